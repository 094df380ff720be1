"""Sharing a network as a folder or on the Hugging Face hub: model.safetensors, config.json and a model card."""

from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin

from net.checkpoint import WEIGHTS, checkpoint_of, find_weights, load_model, save_weights
from utils.errors import InputError
from utils.files import to_json, write_file


class Shared(PyTorchModelHubMixin):
    """`save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(id)` of a network.

    What a network was trained with and measured to do goes along, if `load_model` opened it. Weights are
    rounded to half precision.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint = checkpoint_of(self)
        save_weights(save_directory / WEIGHTS, checkpoint)
        write_file(save_directory / "config.json", to_json(self.config, indent=1))
        write_file(save_directory / "README.md", str(self.generate_model_card()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **hub):
        hub = {key: hub[key] for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")}
        model = load_model(find_weights(model_id, **hub), map_location)
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
            lines += [f"| {name} | {' | '.join(f'{value:.2f}' for value in means.values())} |"]
        return ModelCard("\n".join([*lines, ""]))
