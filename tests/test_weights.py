"""Weights that ship: the format, the files in models/, and that no test image was trained on."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
import torch

from net import build_model, load_model
from net.checkpoint import read_checkpoint, save_weights
from net.provenance import GuideRecord, Provenance
from tests.test_scripts import only_run
from tests.toy import ROOT, process, script
from utils.config import Config, load_config, read_yaml

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 8))
SHIPPED = sorted((ROOT / "models").glob("*.safetensors"))
CONFIGS = {"IVF": "film_ivf_small", "MIF": "film_mif_small", "MEF": "film_mef_small", "MFF": "film_mff_small"}
CONFIGS |= {"MGFusion_IVF": "mgfusion_ivf_small", "IVF_instruct": "film_instruct_ivf", "IVF_fast": "film_ivf_fast"}


def checkpoint_of(model: torch.nn.Module) -> dict:
    places = {"data": {"root": "/home/me", "h5": "/home/me", "train": ["Toy_train"]}, "train": {"exp": "/home/me"}}
    config = places | {"test": {"output": "/home/me"}, "ckpt": "/home/me", "seed": 3}
    config["train"]["init"], config["text"] = "/home/me/first.pth", {"instructions": "/home/me/mine.yaml"}
    text = GuideRecord("auto:toy", None, {"encoder": "auto", "path": None}, torch.randn(5, 12))
    provenance = Provenance({"text": text}, config, "abc", 2, {"Toy_test": {"EN": 7.0}})
    return model.checkpoint(provenance) | {"optimizer": {"state": {}}}


def test_round_trip_in_half_precision(tmp_path):
    model = build_model("film_blend", **SMALL).eval()
    checkpoint = checkpoint_of(model)
    save_weights(tmp_path / "w.safetensors", checkpoint)
    loaded = load_model(tmp_path / "w.safetensors")
    assert (
        loaded.config == model.config | {"token_grid": [8, 8]} and loaded.provenance.guides["text"].name == "auto:toy"
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    default = checkpoint["guides"]["text"]["default"]
    assert torch.equal(loaded.provenance.guides["text"].default, default.half().float())
    again = read_checkpoint(tmp_path / "w.safetensors")
    assert again["metrics"] == {"Toy_test": {"EN": 7.0}} and again["commit"] == "abc" and again["config"]["seed"] == 3
    assert again["config"]["train"]["init"] == "first.pth"
    assert b"/home/me" not in (tmp_path / "w.safetensors").read_bytes()  # places of this machine stay here
    assert checkpoint["config"]["data"]["root"] == "/home/me"  # and the checkpoint is as it was


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}", (1 << 60).to_bytes(8, "little") + b"{}"],
)
def test_damaged_weights_are_one_sentence(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    output = script("test.py", f"ckpt={path}", f"data.h5={tmp_path}/h5", code=1)
    assert str(path) in output and "Traceback" not in output


def test_a_header_that_is_no_json_is_one_sentence(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", {"net": "{"})
    output = script("test.py", f"ckpt={tmp_path}/w.safetensors", f"data.h5={tmp_path}/h5", code=1)
    assert "not a checkpoint that can be read" in output and "Traceback" not in output


def test_export_measures_what_it_writes(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    last = only_run(tmp_path) / "model" / "last.pth"
    script("test.py", *prepared, f"ckpt={last}", "--export", tmp_path / "w.safetensors")
    measured = read_checkpoint(tmp_path / "w.safetensors")["metrics"]["Toy_test"]
    script("test.py", *prepared, f"ckpt={tmp_path}/w.safetensors")
    summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
    assert summary["mean"]["FILM"] == measured


@pytest.mark.parametrize("words", [["ckpt=null"], ["ckpt=models/{task}.safetensors"], ["ckpt=a.pth", "--text-study"]])
def test_an_export_without_one_checkpoint_is_one_sentence(tmp_path, words):
    output = script("test.py", *words, "--export", tmp_path / "w.safetensors", code=1)
    assert "--export tests one checkpoint on its sets" in output
    assert "or a folder, not w.pth" in script("test.py", "ckpt=a.pth", "--export", "w.pth", code=1)


def test_what_one_machine_has_is_not_shared(tmp_path):
    config = Config().as_dict() | {"clip": "/home/me/clip", "ckpt": "/home/me/w.pth"}
    config["describe"]["url"] = "https://me:s3cret@host/v1"
    config["data"] |= {"root": "/home/me/data", "datasets": "/home/me/d.yaml"}
    config["text"]["path"] = "/home/me/bert"
    options = {"encoder": "auto", "path": "/home/me/bert"}
    guides = {"text": GuideRecord("auto:bert", None, options, torch.zeros(2, 12))}
    guides["clip"] = GuideRecord("/home/me/clip", "1")
    model = build_model("film_blend", **SMALL)
    save_weights(tmp_path / "w.safetensors", model.checkpoint(Provenance(guides, config)))
    assert not any(word in (tmp_path / "w.safetensors").read_bytes() for word in (b"/home", b"s3cret", b"describe"))
    stored = read_checkpoint(tmp_path / "w.safetensors")
    assert stored["guides"]["text"]["options"]["path"] == stored["config"]["text"]["path"] == "bert"
    assert stored["guides"]["clip"]["name"] == "clip"
    assert stored["config"]["train"] == {k: v for k, v in config["train"].items() if k not in ("exp", "resume")}


def test_weights_without_a_config_are_saved(tmp_path):
    save_weights(tmp_path / "w.safetensors", build_model("film_blend", **SMALL).checkpoint())
    assert load_model(tmp_path / "w.safetensors").provenance.guides == {}


def test_default_text_for_all(prepared, tmp_path):
    """text.use=default trains and tests with one text: another text of the pairs changes nothing."""
    script("train.py", *prepared, "train.epochs=1", "text.use=default")
    last = only_run(tmp_path) / "model" / "last.pth"
    results = []
    for use in ("own", "default"):
        script("test.py", *prepared, f"ckpt={last}", f"text.use={use}", "test.stretch=clamp")
        results.append(json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text()))
    assert [r["text"] for r in results] == ["own", "default"]
    assert results[0]["mean"] != results[1]["mean"]
    output = script("train.py", *prepared, "train.epochs=2", f"train.resume={last}", code=1)
    assert "text.use is own and was default in the run to resume" in output


def test_weights_of_a_task_are_asked_for(tmp_path):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((32, 32), np.uint8))
    output = script("test.py", "--a", image, "--b", image, "--out", tmp_path / "f.png", code=1)
    assert "say which weights a pair of your own is for: ckpt=models/IVF.safetensors" in output


def test_all_ship():
    assert {path.stem for path in SHIPPED} == set(CONFIGS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights(path):
    """Small, half precision, with all that is needed to make them again, by the config of this repository."""
    assert path.stat().st_size < 5e6 and not any(c in path.read_bytes() for c in (b"/work", b"/tmp", b"/home"))
    checkpoint = read_checkpoint(path)
    assert all(value > 0 for means in checkpoint["metrics"].values() for value in means.values())
    assert len(checkpoint["commit"]) == 40 and checkpoint["epoch"] == checkpoint["config"]["train"]["epochs"]
    config = load_config(ROOT / "configs" / f"{CONFIGS[path.stem]}.yaml")
    assert checkpoint["net"] == json.loads(json.dumps(build_model(**config.net).config))
    for part, keys in (("data", ["train"]), ("train", ["lr", "epochs", "batch_size", "crop", "schedule"])):
        for key in keys:
            assert checkpoint["config"][part][key] == getattr(getattr(config, part), key), key
    assert checkpoint["config"]["loss"] == config.loss and checkpoint["config"]["seed"] == config.seed
    model = load_model(path)
    guides = model.provenance.guides
    assert guides["text"].default.shape[1] == 384 if "text" in model.inputs else guides["clip"].revision


def test_sample_by_default(tmp_path):
    """`python test.py` alone: four tables, and a picture of one pair of each set."""
    output = process("test.py", f"data.h5={tmp_path}/h5", f"test.output={tmp_path}/out")
    for name in ("SampleIVF", "SampleMIF", "SampleMEF", "SampleMFF"):
        assert f"The test result of {name}:" in output
        assert cv2.imread(str(tmp_path / "out" / name / "comparison.png")) is not None
    picture = cv2.imread(str(tmp_path / "out" / "comparison.png"))
    assert picture is not None and picture.shape[0] > 400


def test_no_test_image_is_trained_on(shared):
    """By name, and by what images show at 16 x 16: MEFPairs and SICE come from mixed sources."""
    table, root = read_yaml(ROOT / "configs" / "datasets.yaml"), shared / "data" / "VLFDataset" / "Image"
    for name in CONFIGS.values():
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        trained, tested, left_out = {}, {}, config.data.leave_out
        for sets, found in ((config.data.train, trained), (config.data.test, tested)):
            for dataset, _, split in (each.rpartition("_") for each in sets):
                row = table[config.data.simulate.get(dataset, {"of": dataset})["of"]]
                folder = root / row["task"] / config.data.simulate.get(dataset, {"of": dataset})["of"]
                for image in (folder / f"{split}.txt").read_text().split("\n"):
                    used = image and (split != "train" or image not in left_out)
                    for side in (row["a"], row["b"]) if used else ():
                        (path,) = (folder / side).glob(f"{glob_escape(image)}.*")
                        found[path] = thumbnail(path)
        assert trained and tested and not trained.keys() & tested.keys()
        assert not {digest(path) for path in trained} & {digest(path) for path in tested}
        train, test = (np.stack(list(found.values())) for found in (trained, tested))
        nearest = (test @ train.T).max()
        print(f"{name}: {len(train)} training images, {len(test)} test images, nearest two correlate {nearest:.3f}")


def glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def thumbnail(path: Path) -> np.ndarray:
    """16 x 16 gray values, mean 0 and norm 1."""
    small = cv2.resize(cv2.imread(str(path), 0), (16, 16), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1e-9)
