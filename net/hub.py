"""Sharing a network as a folder or on the Hugging Face hub: model.safetensors, config.json and a model card."""

from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin

from net.checkpoint import WEIGHTS, checkpoint_of, find_weights, load_model, save_weights
from utils.errors import InputError
from utils.files import to_json, write_file

HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # what finds a file on the hub


class Shared(PyTorchModelHubMixin):
    """`save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(id)` of a network.

    What a network was trained with and measured to do goes along, if `load_model` opened it. Weights are
    rounded to half precision.
    """

    text, clip, facts = None, None, {}  # of a network that nothing is known of

    def _save_pretrained(self, save_directory: Path) -> None:
        check_place(save_directory)
        if not hasattr(self, "config"):
            raise InputError("only networks of build_model and load_model, which know their options, can be saved")
        save_weights(save_directory / WEIGHTS, checkpoint_of(self))
        write_file(save_directory / "config.json", to_json(self.config, indent=1))
        write_file(save_directory / "README.md", str(self.generate_model_card()))

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

    def generate_model_card(self, **_) -> ModelCard:
        """What it is, what it was trained on, and the measured table."""
        config, metrics = self.facts.get("config") or {}, self.facts.get("metrics") or {}
        trained = ", ".join(config.get("data", {}).get("train", [])) or "not recorded"
        guide = f"text of {self.text.name}" if self.text else f"CLIP {self.clip['name']}" if self.clip else "nothing"
        lines = ["---", "library_name: pytorch", "tags: [image-fusion]", "---", f"# {self.label}", ""]
        lines += [f"Image fusion network `{self.config['name']}`, trained on {trained}, guided by {guide}."]
        lines += [f"Commit {self.facts.get('commit')}, seed {config.get('seed')}.", ""]
        for i, (name, means) in enumerate(metrics.items()):
            if not i:
                lines += [f"| mean of | {' | '.join(means)} |", "| --- |" + " ---: |" * len(means)]
            numbers = ("-" if value is None else f"{value:.2f}" for value in means.values())  # None: undefined
            lines += [f"| {name} | {' | '.join(numbers)} |"]
        return ModelCard("\n".join([*lines, ""]))


def check_place(folder: Path) -> None:
    """InputError if a network cannot be saved to a folder without writing over what is not a saved network."""
    if folder.exists() and not (folder.is_dir() and ((folder / WEIGHTS).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder} is there and holds no {WEIGHTS}; choose a new or empty folder to save a network to")
