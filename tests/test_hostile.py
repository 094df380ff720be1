"""Files made to do harm: nothing in them runs, and no name in them reads or writes outside the config's folders."""

import json
import os
import pickle
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from net import build_model, load_model
from test import find_checkpoint
from tests.test_text import save_bert
from tests.toy import CONFIG, script
from utils.config import load_config
from utils.data.h5 import h5_path
from utils.data.images import read_image
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.files import plain_name
from utils.guides.text import TextEncoder
from utils.opencv import MAX_PIXELS


class Mark:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_checkpoint_that_runs_code_is_refused(tmp_path, new, name):
    path = tmp_path / name
    content = {"net": {"name": "film"}, "model": {"weight": torch.zeros(2)}, "extra": Mark(tmp_path / "mark")}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match="can be read safely"):
        load_model(path)
    assert not (tmp_path / "mark").exists()


def test_a_run_to_resume_that_runs_code_is_refused(prepared, tmp_path):
    torch.save({"optimizer": Mark(tmp_path / "mark")}, tmp_path / "last.pth")
    output = script("train.py", *prepared, f"train.resume={tmp_path}/last.pth", code=1)
    assert "can be read safely" in output and not (tmp_path / "mark").exists()


def test_a_text_encoder_that_runs_code_is_refused(tmp_path):
    folder = save_bert(tmp_path / "bert")
    os.remove(f"{folder}/model.safetensors")
    torch.save({"embeddings": Mark(tmp_path / "mark")}, f"{folder}/pytorch_model.bin")
    with pytest.raises(InputError, match="bert"):
        TextEncoder("auto", folder, "cpu")
    assert not (tmp_path / "mark").exists()


def test_a_text_encoder_with_code_of_its_own_is_refused(tmp_path, monkeypatch):
    """A checkpoint names its encoder; transformers would ask whether to run what comes with it."""
    folder = Path(save_bert(tmp_path / "bert"))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    own = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for name, changed in (("config.json", {"model_type": "evil"}), ("tokenizer_config.json", {})):
        config = json.loads((folder / name).read_text()) | changed | {"auto_map": own}
        (folder / name).write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="bert"):
        TextEncoder("auto", str(folder), "cpu")
    assert not (tmp_path / "mark").exists()


def test_a_feature_that_runs_code_is_refused(toy, tmp_path):
    feature = tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy" / "a1.npy"
    np.save(feature, np.array([Mark(tmp_path / "mark")], dtype=object), allow_pickle=True)
    output = script("data_process.py", *CONFIG, *toy, "Toy_train", code=1)
    assert "a1.npy cannot be used" in output and not (tmp_path / "mark").exists()


def test_yaml_that_runs_code_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text(f"seed: !!python/object/apply:os.mkdir [{tmp_path / 'mark'}]")
    with pytest.raises(InputError, match=r"c\.yaml.* is not valid YAML"):
        load_config(tmp_path / "c.yaml", [])
    assert not (tmp_path / "mark").exists()


def test_which_names_are_plain_file_names():
    climbing = ["../a2", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\0b", "a\nb", "a\x1bb", ""]
    assert not any(plain_name(name) for name in climbing)
    fine = ["a1", "MRI-PET 1", "1.5x", ".hidden", "..two", "con1", "bücher", "(1)"]
    assert all(plain_name(name) for name in fine)


def test_a_split_file_that_climbs_is_refused(toy, tmp_path):
    (tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "train.txt").write_text("a1\n../a2\n")
    output = script("data_process.py", *CONFIG, *toy, "Toy_train", code=1)
    assert "is not a plain file name" in output and not (tmp_path / "h5" / "Toy_train.h5").exists()


def test_a_set_or_a_run_that_climbs_is_refused(prepared, tmp_path):
    with pytest.raises(InputError, match="is no name of a set"):
        h5_path("h5", "../Toy_test")
    output = script("train.py", *prepared, "name=../evil", code=1)
    assert "becomes part of a folder's name" in output and not list(tmp_path.glob("*evil"))


@pytest.mark.parametrize("key", ["dataset", "name"])
def test_an_h5_that_climbs_is_refused(prepared, tmp_path, key):
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        if key == "dataset":
            file.attrs["dataset"] = "../../evil"
        else:
            for group in ("imageA", "imageB", "text"):
                file[group].move("b1", "..\\..\\evil")
    output = script("test.py", *prepared, "ckpt=null", "net={name: max}", code=1)
    assert "Toy_test.h5" in output and "plain" in output
    assert not list(tmp_path.rglob("*evil*")) and not (tmp_path / "out").exists()


def test_a_task_that_climbs_is_refused():
    """The task of a set becomes part of the path of weights."""
    for task in ("../w", "*", "a/b", "IVF\n"):
        with pytest.raises(InputError, match="say which weights"):
            find_checkpoint("models/{task}.pth", task)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("imageA", 1),
        ("imageA/b1", np.zeros((3, 2, 9, 9), np.uint8)),
        ("imageA/b1", np.zeros((1, 0, 9), np.uint8)),
        ("imageA/b1", np.array([b"text"])),
        ("imageA/b1", np.full((1, 45, 53), -500, np.int16)),
        ("imageA/b1", np.full((1, 45, 53), np.nan, np.float32)),
        ("imageB/b1", np.full((1, 45, 49), 5, np.uint8)),
        ("chroma/b1", np.zeros((2, 5, 5), np.uint8)),
        ("text/b1", None),
        ("text/b1", np.full((5, 12), np.nan, np.float32)),
    ],
)
def test_what_is_no_sample_is_one_sentence(prepared, tmp_path, key, value):
    path = tmp_path / "h5" / "Toy_test.h5"
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value
    with pytest.raises(InputError, match=r"'b1' of .*Toy_test\.h5|Toy_test\.h5 holds no pairs .imageA"):
        PairDataset([path], chroma=True)[0]


@pytest.mark.parametrize("key", ["text/b1", "imageA/b1"])
def test_sizes_that_fill_memory_are_one_sentence(prepared, tmp_path, key):
    """Declared, and never written: a dataset of 400 TB, and a chunk of 3.6 GB for an image of 9 pixels."""
    path = tmp_path / "h5" / "Toy_test.h5"
    with h5py.File(path, "r+") as file:
        del file[key]
        if key == "text/b1":
            file.create_dataset(key, (10**8, 10**6), np.float32, chunks=(10, 10**6))
        else:
            file.create_dataset(key, (1, 3, 3), np.uint8, maxshape=(None,) * 3, chunks=(1, 60000, 60000))
    with pytest.raises(InputError, match=r"'b1' of .*Toy_test\.h5 .*declares"):
        PairDataset([path])[0]


def test_a_name_that_is_no_text_is_one_sentence(prepared, tmp_path):
    path = tmp_path / "h5" / "Toy_test.h5"
    with h5py.File(path, "r+") as file:
        file["imageA"].move("b1", b"b\xff")
    with pytest.raises(InputError, match=r"Toy_test\.h5 names a sample b'b.xff'"):
        PairDataset([path])


@pytest.mark.parametrize("way", ["link", "external", "virtual"])
def test_an_h5_that_reads_other_files_is_refused(prepared, tmp_path, way):
    """The bytes of a file elsewhere would become an image, and be shown."""
    secret = tmp_path / "secret" / "key.h5"
    secret.parent.mkdir()
    path = tmp_path / "h5" / "Toy_test.h5"
    with h5py.File(path, "r+") as file, h5py.File(secret, "w") as other:
        shape = file["imageA/b1"].shape
        other["key"] = np.full(shape, 77, np.uint8)
        del file["imageA/b1"]
        if way == "link":
            file["imageA/b1"] = h5py.ExternalLink(str(secret), "key")
        elif way == "external":
            file["imageA"].create_dataset("b1", shape, np.uint8, external=[(str(secret), 0, int(np.prod(shape)))])
        else:
            layout = h5py.VirtualLayout(shape, np.uint8)
            layout[...] = h5py.VirtualSource(str(secret), "key", shape)
            file["imageA"].create_virtual_dataset("b1", layout)
    with pytest.raises(InputError, match=r"'b1' of .*Toy_test\.h5 .* of another folder"):
        PairDataset([path], ())[0]


def test_an_image_that_declares_a_billion_pixels_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    path = tmp_path / "large.pgm"
    path.write_bytes(b"P5 40000 30000 255\n" + bytes(100))
    with pytest.raises(InputError, match=rf"large\.pgm is 40000 x 30000 pixels, and {MAX_PIXELS // 10**6} million"):
        read_image(path)


@pytest.mark.parametrize(
    "content", [b"\x80\x02]q\x00(K\x01e.", b"PK\x03\x04" + bytes(40), b"", pickle.dumps({"model": 1})]
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, content):
    """Found by tools/fuzz.py: PyTorch's reader raises IndexError and others."""
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} (is not a checkpoint|holds no 'model'|is empty)"):
            load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><title>Virus scan warning</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_what_a_download_left_in_place_of_weights_is_named(tmp_path, content, kind):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} {kind}"):
            load_model(tmp_path / name)


def test_an_npy_with_a_broken_header_is_one_sentence(toy, tmp_path):
    """Found by tools/fuzz.py: NumPy's reader of headers raises tokenize.TokenError."""
    feature = tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy" / "a1.npy"
    np.save(feature, np.zeros((3, 12), np.float32))
    feature.write_bytes(feature.read_bytes().replace(b"}", b"("))
    assert "a1.npy cannot be used" in script("data_process.py", *CONFIG, *toy, "Toy_train", code=1)


BROKEN = ["train: [", "- a\n- b\n", "\x00", "[" * 5000, "seed: 2020-13-45", "a: &a [*a]", "? [1, 2]: 3", "seed: .nan"]


@pytest.mark.parametrize("text", BROKEN)
def test_yaml_that_cannot_be_is_one_sentence(tmp_path, text):
    """Found by tools/fuzz.py: PyYAML raises ValueError and RecursionError."""
    (tmp_path / "c.yaml").write_text(text)
    for name in ("c.yaml", "missing.yaml"):
        with pytest.raises(InputError, match=name):
            load_config(tmp_path / name, [])


def test_yaml_that_doubles_itself_is_one_short_sentence(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "c.yaml").write_text("net:\n" + "\n".join("  " + line for line in lines) + "\nseed: *a8\n")
    with pytest.raises(InputError, match=r"c\.yaml") as caught:
        load_config(tmp_path / "c.yaml", [])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("guides", "words"),
        ("guides", {"clip": {"revision": "1"}}),
        ("net", {"name": "film_blend", "channels": 2**70}),
        ("net", {"name": "film_blend", "channels": "wide"}),
        ("model", {"weight": torch.zeros(2).to_sparse()}),
        ("model", {"weight": torch.zeros(2, device="meta")}),
    ],
    ids=str,
)
def test_what_no_training_records_is_one_sentence(tmp_path, key, value):
    options = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=[8, 8])
    model = build_model("film_blend", **options)
    whole = {"net": model.config, "model": model.state_dict(), "config": {}}
    torch.save(whole, tmp_path / "w.pth")
    load_model(tmp_path / "w.pth")
    torch.save(whole | {key: value}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth"):
        load_model(tmp_path / "w.pth")


def test_a_damaged_run_is_not_resumed(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    (last,) = (tmp_path / "exp").glob("*/model/last.pth")
    whole = torch.load(last, weights_only=True)
    for key, value in {"optimizer": {}, "scheduler": 3, "rng": [], "epoch": None}.items():
        torch.save(whole | {key: value}, last)
        assert "cannot be resumed" in script("train.py", *prepared, "train.epochs=2", f"train.resume={last}", code=1)


def test_a_flipped_bit_of_an_h5_is_noticed(toy, tmp_path):
    """Found by tools/fuzz.py: a pixel was another one, and nobody said so."""
    script("data_process.py", *CONFIG, *toy, "Toy_test")
    path = tmp_path / "h5" / "Toy_test.h5"
    whole = path.read_bytes()
    for group in ("imageA", "imageB", "text", "chroma"):
        with h5py.File(path) as file:
            offset = file[f"{group}/b2"].id.get_chunk_info(0).byte_offset
        content = bytearray(whole)
        content[offset + 40] ^= 4
        path.write_bytes(content)
        dataset = PairDataset([path], chroma=True)
        dataset[0]
        with pytest.raises(InputError, match=r"'b2' of .*Toy_test\.h5"):
            dataset[1]


def test_a_flipped_bit_of_weights_is_noticed(prepared, tmp_path):
    """Found by tools/fuzz.py, as above."""
    script("train.py", *prepared, "train.epochs=1")
    (last,) = (tmp_path / "exp").glob("*/model/last.pth")
    script("utils.export", tmp_path / "w.safetensors", *prepared, f"ckpt={last}")
    weight = max(load_model(last).state_dict().values(), key=torch.numel)
    shared = tmp_path / "w.safetensors"
    for path, place in [
        (last, last.read_bytes().index(weight.numpy().tobytes()) + 9),
        (shared, shared.read_bytes().index(weight.half().numpy().tobytes()) + 9),
        (shared, shared.read_bytes().index(b"Toy_train") + 1),  # what it was trained on, in the header
    ]:
        whole = path.read_bytes()
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(InputError, match=path.name):
            load_model(path)
        path.write_bytes(whole)
        load_model(path)


def test_networks_too_large_to_build_are_one_sentence():
    output = script("train.py", *CONFIG, "net.channels=1000000000", "device=cpu", code=1)
    assert "not enough memory to build the network 'film'" in output
    assert "at most 100" in script("train.py", *CONFIG, "net.blocks=1000000000", "device=cpu", code=1)
