"""Sharing: a folder of save_pretrained is a checkpoint wherever one is asked for."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from net import build_model, load_model
from net.film import FILM
from net.film_blend import FILMBlend
from net.mgfusion import MGFusion
from net.provenance import GuideRecord, Provenance
from tests.test_scripts import only_run
from tests.toy import script
from utils.errors import InputError
from utils.files import to_json

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 8))


def test_round_trip(tmp_path):
    model = build_model("film_blend", **SMALL).half().float()
    config = {"seed": 4, "data": {"train": ["Toy_train"]}}
    model.restore(model.checkpoint(Provenance(config=config, metrics={"Toy_test": {"EN": 7.125}})), "it")
    model.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "trained on Toy_train" in card and "seed 4" in card and "| Toy_test | 7.12 |" in card
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["name"] == "film_blend"
    for loaded in (FILMBlend.from_pretrained(tmp_path / "mine"), load_model(tmp_path / "mine")):
        assert type(loaded) is FILMBlend and loaded.provenance == model.provenance and not loaded.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(InputError, match="holds a FILMBlend and not a MGFusion"):
        MGFusion.from_pretrained(tmp_path / "mine")
    assert isinstance(FILM.from_pretrained(tmp_path / "mine"), FILM)  # a variant of it


def test_a_card_with_sets_of_other_metrics(tmp_path):
    model = build_model("film_blend", **SMALL)
    metrics = {"R_test": {"TC": 0.5, "EN": 7.0}, "S_test": {"EN": 6.0}}
    model.restore(model.checkpoint(Provenance(metrics=metrics)), "it")
    model.save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "| mean of | TC | EN |" in card and "| R_test | 0.50 | 7.00 |" in card and "| S_test | - | 6.00 |" in card


def test_a_variant_keeps_its_own_label():
    class Mine(MGFusion):
        label = "Mine"

    assert Mine(clip_dim=12, channels=8, heads=2, blocks=1).label == "Mine"
    assert Mine(clip_dim=12, channels=8, heads=2, blocks=1, without=("cii",)).label == "Mine w/o CII"


def test_push_to_hub(tmp_path, monkeypatch):
    """The hub itself is not asked: what would be uploaded opens."""

    def upload(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "uploaded")
        return f"{repo_id} is up"

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    model = build_model("mgfusion", clip_dim=12, channels=8, heads=2, blocks=1)
    model.restore(model.checkpoint(Provenance({"clip": GuideRecord("some clip", "1")})), "it")
    assert model.push_to_hub("some-body/mgfusion") == "some-body/mgfusion is up"
    loaded = MGFusion.from_pretrained(tmp_path / "uploaded")
    assert to_json(loaded.config) == to_json(model.config) and loaded.provenance == model.provenance


def test_a_shared_folder_is_a_checkpoint(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    last = only_run(tmp_path) / "model" / "last.pth"
    assert (only_run(tmp_path) / "curves.png").is_file()
    script("test.py", *prepared, f"ckpt={last}", "--export", tmp_path / "mine")
    measured = load_model(tmp_path / "mine").provenance.metrics["Toy_test"]
    script("test.py", *prepared, f"ckpt={tmp_path}/mine")
    assert json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["mean"]["FILM"] == measured
    assert re.search(r"\| Toy_test \| \d+\.\d\d \|", (tmp_path / "mine" / "README.md").read_text())


def test_what_is_not_there_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no checkpoint .*model.safetensors"):
        load_model(tmp_path / "empty")


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    build_model("film_blend", **SMALL).save_pretrained(tmp_path / "mine")
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename))
        if repo_id == "no/body":
            raise OSError("unreachable")
        return str(tmp_path / "mine" / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_model("some-body/film-small").config["name"] == "film_blend"
    assert asked == [("some-body/film-small", "model.safetensors")]
    with pytest.raises(InputError, match="no/body is no file or folder here and cannot be loaded from the hub"):
        load_model("no/body")
