"""Models and weights on the Hugging Face hub, which itself is not asked here."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers

from net import build_model, load_model
from net.checkpoint import save_weights
from utils.errors import InputError
from utils.files import hub_reached
from utils.guides.text import TextEncoder

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 8))


@pytest.fixture(params=[True, False], ids=["connected", "alone"])
def connected(request, monkeypatch) -> bool:
    """Whether the hub answers."""

    def head(url, timeout):
        if not request.param:
            raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    hub_reached.cache_clear()
    yield request.param
    hub_reached.cache_clear()


def test_a_hub_id_is_downloaded(connected, tmp_path, monkeypatch):
    save_weights(tmp_path / "model.safetensors", build_model("film_blend", **SMALL).checkpoint())
    asked = []

    def download(repo_id, filename, local_files_only):
        asked.append((repo_id, filename, local_files_only))
        if repo_id == "no/body":
            raise OSError("it is private")
        return str(tmp_path / filename)

    monkeypatch.setattr("net.checkpoint.hf_hub_download", download)
    assert load_model("some-body/film-small").config["name"] == "film_blend"
    assert asked == [("some-body/film-small", "model.safetensors", not connected)]
    reason = "it is private" if connected else "which does not answer"
    with pytest.raises(InputError, match=rf"no/body is no file here and cannot be loaded from the hub \({reason}\)"):
        load_model("no/body")
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_model(tmp_path / "nothing.safetensors")


def test_a_model_is_waited_for_only_where_the_hub_answers(connected, tmp_path, monkeypatch):
    asked = []

    def load(path, trust_remote_code, local_files_only):
        asked.append(local_files_only)
        raise OSError("no such model")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    for path in ("no/body", str(tmp_path)):
        with pytest.raises(InputError, match=rf"cannot be loaded from '{path}' \(no such model\); give text.path"):
            TextEncoder("auto", path)
    assert asked == [not connected, False]  # a folder needs no hub
