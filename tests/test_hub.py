"""Weights on the Hugging Face hub."""

import pytest

from net import build_model, load_model
from net.checkpoint import save_weights
from utils.errors import InputError

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 8))


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    """The hub itself is not asked."""
    save_weights(tmp_path / "model.safetensors", build_model("film_blend", **SMALL).checkpoint())
    asked = []

    def download(repo_id, filename):
        asked.append((repo_id, filename))
        if repo_id == "no/body":
            raise OSError("unreachable")
        return str(tmp_path / filename)

    monkeypatch.setattr("net.checkpoint.hf_hub_download", download)
    assert load_model("some-body/film-small").config["name"] == "film_blend"
    assert asked == [("some-body/film-small", "model.safetensors")]
    with pytest.raises(InputError, match="no/body is no file here and cannot be loaded from the hub"):
        load_model("no/body")
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_model(tmp_path / "nothing.safetensors")
