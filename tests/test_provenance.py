"""What made the data and the weights is recorded, and what does not go together is refused in one sentence."""

import json
import shutil

import cv2
import h5py
import numpy as np
import torch

from net import load_model
from net.checkpoint import read_checkpoint
from tests.test_faults import files
from tests.test_mgfusion import save_clip
from tests.test_scripts import only_run
from tests.test_text import save_bert
from tests.toy import CONFIG, FAST, script
from utils.config import load_config
from utils.data.h5 import open_h5
from utils.files import write_file


def attributes(path) -> dict:
    with open_h5(path) as file:
        return dict(file.attrs)


def test_an_h5_of_another_shape_is_refused(toy, tmp_path):
    """A config that has changed must not train on old data without a word."""
    script("data_process.py", *CONFIG, *toy, "Toy_train")
    words = [*CONFIG, *toy, *FAST, f"train.exp={tmp_path / 'exp'}", "train.epochs=1", "data.resize=[32,40]"]
    output = script("train.py", *words, code=1)
    assert "Toy_train.h5 was made with data.resize none and the config has [32" in output
    assert not (tmp_path / "exp").exists()


def test_a_training_set_is_not_tested_on(toy, tmp_path):
    """What was resized for training is no set of whole images."""
    script("data_process.py", *CONFIG, *toy, "data.resize=[32,40]", "Toy_train")
    words = [*CONFIG, *toy, "data.train=[]", "data.test=[Toy_train]", "ckpt=null", "net={name: max}"]
    output = script("test.py", *words, f"test.output={tmp_path / 'out'}", code=1)
    assert "and testing needs none" in output


def test_text_of_another_encoder_is_refused(prepared, tmp_path):
    with h5py.File(tmp_path / "h5" / "Toy_train.h5", "r+") as file:
        file.attrs["text_encoder"] = "auto:other"
    output = script("train.py", *prepared, "train.epochs=1", code=1)
    assert "Toy_train.h5 has text of the encoder auto:other, and blip2:" in output
    script("train.py", *prepared, "train.epochs=1", "text.encoder=auto", "text.path=other")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        file.attrs["text_encoder"] = "auto:third"
    ckpt = f"ckpt={only_run(tmp_path)}/model/last.pth"
    assert "encoder auto:third, and auto:other is wanted" in script("test.py", *prepared, ckpt, code=1)


def test_given_features_are_recorded_as_given(prepared, tmp_path):
    assert attributes(tmp_path / "h5" / "Toy_train.h5")["text_encoder"] == "given"
    script("train.py", *prepared, "train.epochs=1")
    record = load_model(only_run(tmp_path) / "model" / "last.pth").provenance.guides["text"]
    options = {"encoder": "blip2", "path": None, "use": "own", "folder": "Text"}
    assert record.name == "given" and record.options == options
    script("test.py", *prepared, f"ckpt={only_run(tmp_path)}/model/last.pth")
    for path in (tmp_path / "VLF" / "TextFeature").rglob("a*.npy"):  # now a note says what made them
        path.with_suffix(".json").write_text('{"encoder": "auto:mine"}')
    script("data_process.py", *prepared, "Toy_train")
    assert attributes(tmp_path / "h5" / "Toy_train.h5")["text_encoder"] == "auto:mine"
    assert "has text of the encoder auto:mine" in script("train.py", *prepared, "train.epochs=1", code=1)


def test_features_of_two_encoders_do_not_go_together(toy, tmp_path):
    for name, encoder in (("a1", "auto:one"), ("a2", "auto:two")):
        path = tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy" / f"{name}.json"
        path.write_text(json.dumps({"encoder": encoder}))
    output = script("data_process.py", *CONFIG, *toy, "Toy_train", code=1)
    assert "the text features of Toy_train are of several encoders: auto:one, auto:two" in output


def test_no_text_is_needed_where_the_default_text_guides(toy, tmp_path):
    """Images alone: made, trained on, tested, and a pair fused."""
    shutil.rmtree(tmp_path / "VLF" / "TextFeature")
    words = [*CONFIG, *toy, *FAST, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]
    assert "'a1' has no text" in script("data_process.py", *words, code=1)
    words.append("text.use=default")
    output = script("data_process.py", *words)
    assert "note: Toy_train is made without text" in output
    script("train.py", *words, "train.epochs=1", "data.val=[Toy_test]")
    path = only_run(tmp_path) / "model" / "last.pth"
    record = load_model(path).provenance.guides["text"]
    assert record.name == "none" and record.default.shape == (1, 12)
    assert "\nFILM (no text) " in script("test.py", *words, f"ckpt={path}")
    images = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    script("fuse.py", images / "IR" / "b1.png", images / "VI" / "b1.png", "-o", tmp_path / "f.png", f"ckpt={path}")
    assert cv2.imread(str(tmp_path / "f.png")) is not None
    assert "Toy_train.h5 holds no text" in script("train.py", *words[:-1], "train.epochs=1", code=1)


def test_what_decides_the_best_checkpoint_does_not_change(prepared, tmp_path):
    words = [*prepared, "data.val=[Toy_test]", "train.val_every=1"]
    script("train.py", *words, "train.epochs=1")
    resume = f"train.resume={only_run(tmp_path)}/model/last.pth"
    for word in ("data.val=[]", "test.stretch=clamp", "train.best=SF"):
        output = script("train.py", *words, "train.epochs=2", word, resume, code=1)
        assert f"{word.partition('=')[0]} is " in output and "in the run to resume" in output


def test_a_run_resumed_from_an_earlier_epoch_gets_a_folder_of_its_own(prepared, tmp_path):
    """What the run made after that epoch stays, damaged or not, and best.pth is of the run that is in the folder."""
    words = [*prepared, "data.val=[Toy_test]", "train.val_every=1", "train.save_every=1"]
    script("train.py", *words, "train.epochs=3")
    first = only_run(tmp_path)
    (first / "model" / "last.pth").write_bytes(b"cut")
    before = files(first)
    script("train.py", *words, "train.epochs=2", f"train.resume={first}/model/epoch_1.pth", "name=again")
    (second,) = set((tmp_path / "exp").iterdir()) - {first}
    assert files(first) == before
    assert read_checkpoint(second / "model" / "best.pth")["epoch"] == 2
    whole, again = (torch.load(f / "model" / "epoch_2.pth", weights_only=True) for f in (first, second))
    assert all(torch.equal(tensor, again["model"][name]) for name, tensor in whole["model"].items())


def test_a_resumed_run_keeps_its_first_config_and_code(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("train.commit", lambda: "0" * 40 + "-dirty")
    script("train.py", *prepared, "train.epochs=1")
    run = only_run(tmp_path)
    assert load_model(run / "model" / "last.pth").provenance.commit.endswith("-dirty")
    before = files(run)
    script("train.py", *prepared, "train.epochs=2", f"train.resume={run}/model/last.pth")
    after = files(run)
    assert all(after[name] == before[name] for name in before if name.startswith(("code", "config", "param")))
    assert load_config(run / "config_from_epoch_2.yaml").train.epochs == 2
    assert {"code_from_epoch_2/train.py", "code_from_epoch_2/git.txt", "param_from_epoch_2.json"} <= after.keys()


def test_another_network_beside_a_checkpoint_is_refused(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    ckpt = f"ckpt={only_run(tmp_path)}/model/last.pth"
    script("test.py", *prepared, ckpt)  # the same options are no contradiction
    output = script("test.py", *prepared, ckpt, "net.channels=16", code=1)
    assert "net.channels is 16 on the command line and 8 in" in output
    assert "net.name is mean" in script("test.py", *prepared, ckpt, "net={name: mean}", code=1)
    assert "net.a is {'b': 1} on the command line" in script("test.py", *prepared, ckpt, "net.a.b=1", code=1)


def test_missing_sets_are_made_for_the_network_and_not_for_the_config(prepared, tmp_path):
    """The config names a network with text; the checkpoint's takes the vectors of a CLIP that it records."""
    clip = save_clip(tmp_path / "tiny-clip", seed=0)
    net = ["--config", "configs/mgfusion_ivf.yaml", "net={name: mgfusion, clip_dim: 12, channels: 8, heads: 2}"]
    words = [*net, *prepared[2:9], f"data.h5={tmp_path / 'h5_clip'}", f"clip={clip}"]
    script("data_process.py", *words, "Toy_train")
    more = ["train.crop=16", "train.batch_size=2", "train.num_workers=0", f"train.exp={tmp_path / 'exp'}"]
    script("train.py", *words, *more, "train.epochs=1")
    shutil.rmtree(tmp_path / "h5_clip")
    places = [word for word in prepared if word.startswith(("data.", "test.", "device"))]
    places += [f"data.h5={tmp_path / 'h5_clip'}", f"ckpt={only_run(tmp_path)}/model/last.pth"]
    output = script("test.py", *CONFIG, *places)
    assert f"vectors by CLIP {clip}" in output and "guided by CLIP" in output
    assert set(h5py.File(tmp_path / "h5_clip" / "Toy_test.h5")) == {"imageA", "imageB", "chroma", "clip"}


def test_missing_sets_are_encoded_by_the_networks_own_encoder(toy, tmp_path):
    bert = save_bert(tmp_path / "tiny-bert")
    words = [*CONFIG, *toy, *FAST, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]
    shutil.rmtree(tmp_path / "VLF" / "TextFeature")
    for image in (tmp_path / "VLF" / "Image" / "IVF" / "Toy").glob("*/*.png"):
        write_file(tmp_path / "VLF" / "Text" / "IVF" / "Toy" / image.parent.name / f"{image.stem}.txt", "a warm car")
    encoder = ["text.encoder=auto", f"text.path={bert}"]
    script("data_process.py", *words, *encoder, "Toy_train")
    script("train.py", *words, *encoder, "train.epochs=1")
    script("test.py", *words, f"ckpt={only_run(tmp_path)}/model/last.pth")  # the config says blip2
    assert attributes(tmp_path / "h5" / "Toy_test.h5")["text_encoder"] == "auto:tiny-bert"


def test_the_default_text_replaces_text_of_any_width(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        for name in ("b1", "b2"):
            del file[f"text/{name}"]
            file[f"text/{name}"] = np.zeros((3, 20), np.float32)
    ckpt = f"ckpt={only_run(tmp_path)}/model/last.pth"
    assert "has text 20 wide" in script("test.py", *prepared, ckpt, code=1)
    script("test.py", *prepared, ckpt, "text.use=default")
