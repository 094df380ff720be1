"""Sharing a network as a folder or on the Hugging Face hub: model.safetensors, config.json and a model card."""

from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin

from net.checkpoint import WEIGHTS, find_weights, last_part, load_model, save_weights
from utils.errors import InputError
from utils.files import to_json, write_file

HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # what finds a file on the hub


class HubMixin(PyTorchModelHubMixin):
    """`save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(id)` of a network.

    What a network was trained with and measured to do goes along. Weights are rounded to half precision.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(save_directory, self.checkpoint(), self.label)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **others):
        hub = {key: others.pop(key) for key in HUB if key in others}
        model = load_model(find_weights(model_id, **hub), map_location)
        for key, value in others.items():  # config.json comes as arguments, too
            if value and to_json(value) != to_json(model.config.get(key)):
                raise InputError(f"from_pretrained takes no {key}={value}: {model_id} has the options of its network")
        if not isinstance(model, cls):
            raise InputError(f"{model_id} holds a {type(model).__name__} and not a {cls.__name__}")
        return model


def save_folder(folder: Path, checkpoint: dict, label: str) -> None:
    """Write a network to a folder to share.

    Args:
        folder: a new or empty one, or one that holds a saved network.
        checkpoint: of `FusionNetwork.checkpoint`.
        label: what the card calls the network.

    Raises:
        InputError: another folder, or it cannot be written.
    """
    check_folder(folder)
    save_weights(folder / WEIGHTS, checkpoint)
    write_file(folder / "config.json", to_json(checkpoint["net"], indent=1))
    write_file(folder / "README.md", str(model_card(checkpoint, label)))


def model_card(checkpoint: dict, label: str) -> ModelCard:
    """What the network is, what it was trained on, and the measured table."""
    config, metrics = checkpoint["config"] or {}, checkpoint["metrics"] or {}
    trained = ", ".join(config.get("data", {}).get("train", [])) or "not recorded"
    guides = " and ".join(f"{kind} of {last_part(record['name'])}" for kind, record in checkpoint["guides"].items())
    lines = ["---", "library_name: pytorch", "tags: [image-fusion]", "---", f"# {label}", ""]
    lines += [
        f"Image fusion network `{checkpoint['net']['name']}`, trained on {trained}, guided by {guides or 'none'}."
    ]
    lines += [f"Commit {checkpoint['commit'] or 'not recorded'}, seed {config.get('seed')}.", ""]
    columns = list(dict.fromkeys(metric for means in metrics.values() for metric in means))
    if metrics:
        lines += [f"| mean of | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, means in metrics.items():
        values = (means.get(metric) for metric in columns)  # None: undefined, or not for this set
        lines += [f"| {name} | {' | '.join('-' if value is None else f'{value:.2f}' for value in values)} |"]
    return ModelCard("\n".join([*lines, ""]))


def check_folder(folder: Path) -> None:
    """InputError if a network cannot be saved to a folder without writing over what is not a saved network."""
    if folder.exists() and not (folder.is_dir() and ((folder / WEIGHTS).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder} is there and holds no {WEIGHTS}; choose a new or empty folder to save a network to")
