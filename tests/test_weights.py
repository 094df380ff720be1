"""Weights that ship: the format, the files in models/, and that no test image was trained on."""

import hashlib
import json

import pytest
import safetensors
import torch

from net import build_model, load_model
from net.checkpoint import read_checkpoint, save_weights
from tests.test_scripts import only_run
from tests.toy import ROOT, script
from utils.config import Config, load_config, read_yaml
from utils.errors import InputError
from utils.provenance import GuideRecord, Provenance

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 8))
SHIPPED = sorted((ROOT / "models").glob("*.safetensors"))
CONFIGS = {"IVF": "film_ivf_small", "MIF": "film_mif_small", "MEF": "film_mef_small", "MFF": "film_mff_small"}
CONFIGS |= {"MGFusion_IVF": "mgfusion_ivf_small", "IVF_instruct": "film_instruct_ivf", "IVF_fast": "film_ivf_fast"}


def test_round_trip_in_half_precision(tmp_path):
    """And what weights know of a machine is not passed on."""
    model = build_model("film_blend", **SMALL).eval()
    config = Config().as_dict() | {"clip": "/home/me/clip", "ckpt": "/home/me/w.pth", "seed": 3}
    config["describe"]["url"] = "https://me:s3cret@host/v1"
    config["data"] |= {"root": "/home/me/data", "datasets": "/home/me/d.yaml"}
    config["train"] |= {"exp": "/home/me/exp", "init": "/home/me/first.pth"}
    config["text"]["path"] = "/home/me/bert"
    options = {"encoder": "auto", "path": "/home/me/bert"}
    guides = {
        "text": GuideRecord("auto:bert", None, options, torch.randn(5, 12)),
        "clip": GuideRecord("/home/me/clip", "1"),
    }
    checkpoint = model.checkpoint(Provenance(guides, config, "abc", 2, {"Toy_test": {"EN": 7.0}}))
    save_weights(tmp_path / "w.safetensors", checkpoint | {"optimizer": {"state": {}}})
    loaded = load_model(tmp_path / "w.safetensors")
    assert loaded.config == model.config | {"token_grid": [8, 8]}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    text, before = loaded.provenance.guides["text"], checkpoint["guides"]["text"]
    assert text.name == "auto:bert" and torch.equal(text.default, before["default"].half().float())
    again = read_checkpoint(tmp_path / "w.safetensors")
    assert again["metrics"] == {"Toy_test": {"EN": 7.0}} and again["commit"] == "abc" and again["config"]["seed"] == 3

    assert not any(word in (tmp_path / "w.safetensors").read_bytes() for word in (b"/home", b"s3cret", b"describe"))
    assert text.options["path"] == again["config"]["text"]["path"] == "bert"
    assert loaded.provenance.guides["clip"].name == "clip" and again["config"]["train"]["init"] == "first.pth"
    assert checkpoint["config"]["data"]["root"] == "/home/me/data"  # the checkpoint is as it was

    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint | {"model": wrapped}, tmp_path / "wrapped.pth")  # by somebody's own loop
    assert load_model(tmp_path / "wrapped.pth").state_dict().keys() == model.state_dict().keys()

    save_weights(tmp_path / "new.safetensors", build_model("film_blend", **SMALL).checkpoint())
    assert load_model(tmp_path / "new.safetensors").provenance.guides == {}


@pytest.mark.parametrize("content", [(1 << 60).to_bytes(8, "little") + b"{}", None])
def test_damaged_weights_are_one_sentence(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is None:  # a header that is no JSON
        safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"net": "{"})
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors is not a checkpoint"):
        load_model(path)


def test_default_text_for_all(prepared, tmp_path):
    """text.use=default trains with one text, and the network is tested with it whatever the config says."""
    script("train.py", *prepared, "train.epochs=1", "text.use=default")
    last = only_run(tmp_path) / "model" / "last.pth"
    results = []
    for use in ("own", "default"):
        script("test.py", *prepared, f"ckpt={last}", f"text.use={use}", "test.stretch=clamp")
        results.append(json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text()))
    assert [r["text"] for r in results] == ["default", "default"]
    assert results[0]["mean"] == results[1]["mean"]
    output = script("train.py", *prepared, "train.epochs=2", f"train.resume={last}", code=1)
    assert "text.use is own and was default in the run to resume" in output


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights(path):
    """Small, half precision, with all that is needed to make them again, by the config of this repository."""
    assert len(SHIPPED) == len(CONFIGS) and path.stat().st_size < 5e6
    assert not any(c in path.read_bytes() for c in (b"/work", b"/tmp", b"/home"))
    checkpoint = read_checkpoint(path)
    assert all(value > 0 for means in checkpoint["metrics"].values() for value in means.values())
    assert len(checkpoint["commit"]) == 40 and checkpoint["epoch"] == checkpoint["config"]["train"]["epochs"]
    config = load_config(ROOT / "configs" / f"{CONFIGS[path.stem]}.yaml")
    shipped, ours = (json.dumps(build_model(**net).config) for net in (checkpoint["net"], config.net))
    assert shipped == ours
    for part, keys in (("data", ["train"]), ("train", ["lr", "epochs", "batch_size", "crop", "schedule"])):
        for key in keys:
            assert checkpoint["config"][part][key] == getattr(getattr(config, part), key), key
    assert checkpoint["config"]["loss"] == config.loss and checkpoint["config"]["seed"] == config.seed
    model = load_model(path)
    guides = model.provenance.guides
    assert guides["text"].default.shape[1] == 384 if "text" in model.inputs else guides["clip"].revision


def test_no_test_image_is_trained_on(shared):
    """Neither by its name nor by its content: MEFPairs and SICE come from mixed sources."""
    table, root = read_yaml(ROOT / "configs" / "datasets.yaml"), shared / "data" / "VLFDataset" / "Image"
    for name in CONFIGS.values():
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        trained, tested = set(), set()
        for sets, found in ((config.data.train, trained), (config.data.test, tested)):
            for dataset, _, split in (each.rpartition("_") for each in sets):
                dataset = config.data.simulate.get(dataset, {"of": dataset})["of"]
                row = table[dataset]
                names = (root / row["task"] / dataset / f"{split}.txt").read_text().splitlines()
                names = [each for each in names if each and (split != "train" or each not in config.data.leave_out)]
                for folder in (root / row["task"] / dataset / row[side] for side in "ab"):
                    files = [file for file in folder.iterdir() if file.stem in names]
                    assert len(files) == len(names) > 0
                    found |= {*files, *(hashlib.sha256(file.read_bytes()).digest() for file in files)}
        assert trained and tested and not trained & tested
