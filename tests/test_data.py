"""data_process.py and the H5 dataset: what goes in comes out, and every bad input is one sentence."""

import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.toy import make_pairs, script
from utils.data import make
from utils.data.images import colorize, list_images, merge_chroma, read_image, to_8bit
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError
from utils.guides.text import default_text
from utils.targets import warm_map

PROCESS = ["data_process.py", "--config", "configs/film_ivf.yaml"]
WARM = ["loss={contrast_weight: 0.1}"]
IMAGES = Path("Image", "IVF", "Toy")
FEATURE = Path("TextFeature", "IVF", "Toy", "a4.npy")


def gray_of(path) -> np.ndarray:
    """Gray as the published metrics read it."""
    return np.round(cv2.cvtColor(cv2.imread(str(path)).astype(np.float32), cv2.COLOR_BGR2GRAY))


def test_h5_holds_the_images_text_and_colour(toy, tmp_path):
    output = script(*PROCESS, *toy)
    assert "Toy_train.h5: 4 pairs" in output and "Toy_test.h5: 2 pairs" in output
    source = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert file.attrs["dataset"] == "Toy"
        assert file["imageA/b1"].dtype == np.uint8 and file["imageA/b1"].fletcher32
    sample = PairDataset([tmp_path / "h5" / "Toy_test.h5"], chroma=True)[0]
    assert sample["name"] == "b1" and sample["image_a"].shape == (1, 45, 53)
    for key, folder in (("image_a", "IR"), ("image_b", "VI")):
        np.testing.assert_array_equal((sample[key][0] * 255).round(), gray_of(source / folder / "b1.png"))
    feature = np.load(tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy" / "b1.npy")
    np.testing.assert_array_equal(sample["text"], feature)
    # gray and chroma together are the colour source again, up to 8-bit rounding
    visible = cv2.imread(str(source / "VI" / "b1.png"))
    again = colorize(gray_of(source / "VI" / "b1.png").astype(np.uint8), sample["chroma"].numpy())
    assert np.abs(again.astype(int) - visible).mean() < 1.5


def test_training_resize_transposes_portraits(toy, tmp_path):
    make_pairs(tmp_path / "VLF", ["p1", "p2"], "train", size=(60, 40))
    script(*PROCESS, *toy, "data.resize=[30,48]", "Toy_train")
    source = tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "IR" / "p1.png"
    with h5py.File(tmp_path / "h5" / "Toy_train.h5") as file:
        expected = cv2.resize(gray_of(source).astype(np.uint8).T, (48, 30))
        np.testing.assert_array_equal(file["imageA/p1"][0], expected)


def test_bit_depths(tmp_path):
    rng = np.random.default_rng(0)
    for name, image in {
        "gray16.png": rng.integers(0, 65536, (20, 30), dtype=np.uint16),
        "color16.png": rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16),
        "float.tiff": rng.random((20, 30), dtype=np.float32),
    }.items():
        cv2.imwrite(str(tmp_path / name), image)
        gray, chroma = read_image(tmp_path / name)
        assert gray.shape == (20, 30) and gray.dtype == image.dtype and (chroma is not None) == (image.ndim == 3)
        assert image.ndim == 3 or np.array_equal(gray, image)


def test_kinds_of_images(tmp_path):
    """What a file of any kind shows is what an 8-bit colour PNG of the same pixels shows."""
    colour = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), (30, 20))
    picture, turned = Image.fromarray(colour).quantize(200).convert("RGB"), Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: shown turned by 90 degrees
    picture.save(tmp_path / "plain.png")
    picture.quantize(200).save(tmp_path / "palette.png", transparency=3)
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tiff")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    picture.save(tmp_path / "several.tiff", save_all=True, append_images=[picture.rotate(180)])
    picture.save(tmp_path / "turned.jpg", quality=100, subsampling=0, exif=turned)
    gray, chroma = read_image(tmp_path / "plain.png")
    for name, off in {"alpha.png": 0, "cmyk.tiff": 0, "several.tiff": 0, "palette.png": 0, "cmyk.jpg": 4}.items():
        for found, right in zip(read_image(tmp_path / name), (gray, chroma)):
            assert np.abs(found.astype(int) - right).max() <= off, name
    assert np.abs(read_image(tmp_path / "turned.jpg")[0].astype(int) - np.rot90(gray, -1)).max() <= 4
    picture.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png")[0])) == {0, 255}


def test_pixels_that_are_no_brightness_are_one_sentence(tmp_path):
    for value, kind, words in (
        (np.nan, np.float32, "holds floats from nan to nan; scale them to"),
        (-0.1, np.float64, "holds floats from -0.1 to -0.1; scale them to"),
        (3, np.int16, "has pixels of int16; give uint8, uint16 or floats"),
    ):
        cv2.imwrite(str(tmp_path / "x.tiff"), np.full((4, 5), value, kind))
        with pytest.raises(InputError, match=rf"x\.tiff {words}"):
            read_image(tmp_path / "x.tiff")


def test_degenerate_images_do_not_spoil_a_table(toy, tmp_path):
    image = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    odd = {"black": np.zeros((50, 60)), "flat": np.full((50, 60), 90), "dot": np.ones((1, 1)), "line": np.eye(1, 300)}
    for name, pixels in odd.items():
        for folder in ("IR", "VI"):
            cv2.imwrite(str(image / folder / f"{name}.png"), pixels.astype(np.uint8))
        shutil.copy(tmp_path / "VLF/TextFeature/IVF/Toy/b1.npy", tmp_path / f"VLF/TextFeature/IVF/Toy/{name}.npy")
    (image / "test.txt").write_text("\n".join(["b1", "b2", *odd]))
    words = [*PROCESS[1:], *toy, f"test.output={tmp_path}/out", "ckpt=null", "net={name: max}", "--report"]
    output = script("test.py", *words)
    assert "left out of the mean AG of max, undefined there: 2 (dot, line)" in output
    assert "left out of the mean Qabf of max, undefined there: 2 (black, dot)" in output
    summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
    assert all(np.isfinite(value) for value in summary["mean"]["max"].values())
    assert summary["per_image"]["max"]["dot"]["AG"] is None and summary["per_image"]["max"]["flat"]["EN"] == 0


def test_published_h5_opens(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((2, 1, 24, 32), dtype=np.float32)
    with h5py.File(tmp_path / "MSRS_train.h5", "w") as file:
        for i, name in enumerate(("00001D", "00002N")):
            file[f"imageA/{name}"], file[f"imageB/{name}"] = images[i], images[i] / 2
            file[f"text/{name}"] = rng.normal(size=(1, 3 + i, 768)).astype(np.float32)
    dataset = PairDataset([tmp_path / "MSRS_train.h5"], chroma=True)
    batch = collate([dataset[0], dataset[1]])
    torch.testing.assert_close(batch["image_a"], torch.from_numpy(images))
    assert batch["text"].shape == (2, 4, 768) and batch["text_mask"].sum(1).tolist() == [3, 4]
    assert (batch["chroma"] == 128).all()


DAMAGE = {  # how the toy training set is broken, and what the message must say
    "missing partner": (lambda base: (base / IMAGES / "VI" / "a2.png").unlink(), "'a2' has no image in .*VI"),
    "unequal sizes": (
        lambda base: cv2.imwrite(str(base / IMAGES / "VI" / "a2.png"), np.zeros((40, 50), np.uint8)),
        "'a2' has sources of unequal sizes: 40 x 48 and 40 x 50",
    ),
    "unreadable": (lambda base: (base / IMAGES / "IR/a3.png").write_bytes(b"no image"), "a3.png is not an image"),
    "truncated": (lambda base: os.truncate(base / IMAGES / "IR" / "a3.png", 2000), "a3.png is truncated"),
    "listed twice": (lambda base: (base / IMAGES / "train.txt").write_text("a1\na2\na1\n"), "'a1' is listed 2 times"),
    "another encoding": (
        lambda base: (base / IMAGES / "train.txt").write_bytes("a1\n街道".encode("gbk")),
        "the split file .*train.txt is not UTF-8, from byte 3 on; save it as UTF-8",
    ),
    "missing text": (lambda base: (base / FEATURE).unlink(), "'a4' has no text"),
    "NaN": (lambda base: np.save(base / FEATURE, np.full((3, 12), np.nan)), "a4.npy cannot be used .it holds NaN"),
    "note": (lambda base: (base / FEATURE).with_suffix(".json").write_text('{"maker": 1}'), "unknown key 'maker'"),
    "empty split": (lambda base: (base / IMAGES / "train.txt").write_text("\n\n"), "train.txt is empty"),
    "no split": (lambda base: (base / IMAGES / "train.txt").unlink(), "cannot read the split file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_bad_input_is_one_sentence(kind, toy, tmp_path):
    (tmp_path / "h5").mkdir()
    (tmp_path / "h5" / "Toy_train.h5").write_bytes(b"what was there before")
    break_it, expected = DAMAGE[kind]
    break_it(tmp_path / "VLF")
    output = script(*PROCESS, *toy, "Toy_train", code=1)
    assert re.search(expected, output) and "Traceback" not in output
    assert [p.name for p in (tmp_path / "h5").iterdir()] == ["Toy_train.h5"]  # and nothing half done
    assert (tmp_path / "h5" / "Toy_train.h5").read_bytes() == b"what was there before"


@pytest.fixture
def eager(monkeypatch) -> list[int]:
    """Processes read even a few pairs, on any number of cores; how many there are whenever a pair is written."""
    write, seen = make.write_sample, []
    count = lambda *args: [write(*args), seen.append(len(multiprocessing.active_children()))]  # noqa: E731
    monkeypatch.setattr(make, "write_sample", count)
    monkeypatch.setattr(make, "MANY_PAIRS", 1)
    monkeypatch.setattr(make, "worker_count", lambda wanted: wanted)
    return seen


def test_any_number_of_workers_writes_the_same_bytes(toy, tmp_path, eager):
    for side in ("IR", "VI"):  # one of several megabytes, so that it is done last
        path = tmp_path / "VLF" / "Image" / "IVF" / "Toy" / side / "a1.png"
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (900, 700)))
    found = {}
    for count in (0, 3):
        eager.clear()
        script(*PROCESS, *toy, "train.crop_on=warm", "train.crop=16", f"data.num_workers={count}")
        assert max(eager) == count and not multiprocessing.active_children()
        found[count] = {path.name: path.read_bytes() for path in (tmp_path / "h5").iterdir()}
    assert len(found[0]) == 2 and found[0] == found[3]


def test_everything_wrong_is_listed_at_once(toy, tmp_path, eager):
    """In the order of the set, whatever the number of workers; and the good set is made."""
    (tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "train.txt").write_text("a2\na1\na4\na3\n")
    broken = [DAMAGE[kind] for kind in ("missing text", "missing partner", "truncated")]
    for break_it, _ in broken:
        break_it(tmp_path / "VLF")
    listed = []
    for count in (0, 2):
        output = script(*PROCESS, *toy, f"data.num_workers={count}", code=1)
        listed.append(output.partition("was not made:\n")[2].splitlines())
        assert "Traceback" not in output and "Toy_test.h5: 2 pairs" in output
    assert listed[0] == listed[1] and len(listed[0]) == len(broken)
    assert all(re.search(words, line) for (_, words), line in zip(broken, listed[0])), listed[0]
    assert [path.name for path in (tmp_path / "h5").iterdir()] == ["Toy_test.h5"]


def test_a_killed_worker_is_one_sentence(toy, tmp_path, monkeypatch, eager):
    make_pairs(tmp_path / "VLF", [f"c{i}" for i in range(12)], "train")
    kill = lambda *_: [worker.kill() for worker in multiprocessing.active_children()[:1]]  # noqa: E731
    monkeypatch.setattr(make, "write_sample", kill)
    output = script(*PROCESS, *toy, "data.num_workers=2", "Toy_train", code=1)
    assert "a worker process was killed, as happens where memory runs out" in output and "Traceback" not in output
    assert not list((tmp_path / "h5").iterdir()) and not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{task: IVF, a: [5], b: VI, color: [VI]}", "a in the row Toy of .* must be str"),
        ("{task: IVF, a: IR, b: VI}", "the row Toy of .* needs the key 'color'"),
        ("{task: IVF, a: IR, b: VI, color: [IX]}", "must list none, one or both of IR and VI"),
        ("{task: IVF, a: IR, b: IR, color: []}", "must name different folders"),
        ("{task: IVF, a: IR, b: VI, color: [], maps: {text: T}}", "cannot name a map 'text'"),
    ],
)
def test_wrong_rows_of_the_table_are_named(row, words, toy, tmp_path):
    (tmp_path / "datasets.yaml").write_text(f"Toy: {row}\n")
    assert re.search(words, script(*PROCESS, *toy, code=1))


def test_a_file_that_another_program_wrote_is_read_the_same(toy, tmp_path):
    """In one piece or compressed, as big-endian floats, or linked from a file beside it."""
    script(*PROCESS, *toy)
    path, other = tmp_path / "h5" / "Toy_train.h5", tmp_path / "h5" / "other.h5"
    expected = PairDataset([path])[0]
    with h5py.File(other, "w") as file, h5py.File(path) as source:
        file["imageA/a1"] = h5py.ExternalLink(path, "imageA/a1")
        file["imageB/a1"] = (source["imageB/a1"][()] / np.float32(255)).astype(">f4")
        file.create_dataset("text/a1", data=source["text/a1"][()], chunks=True, compression="gzip")
    found = PairDataset([other])[0]
    for key in ("image_a", "image_b", "text"):
        assert torch.equal(found[key], expected[key]), key


def test_an_h5_that_is_cut_short_is_named(prepared, tmp_path):
    path = tmp_path / "h5" / "Toy_train.h5"
    for size in (path.stat().st_size - 1, 3000, 0):
        os.truncate(path, size)
        with pytest.raises(InputError, match=r"Toy_train\.h5 .*damaged"):
            PairDataset([path])


def test_augmentation_draws_once_per_pair_and_again_the_same(toy, tmp_path):
    script(*PROCESS, *toy, "Toy_train")
    path = tmp_path / "h5" / "Toy_train.h5"
    make = lambda **options: PairDataset([path], crop=16, augment=True, **options)  # noqa: E731
    with h5py.File(path, "r+") as file:  # B is A: whatever is drawn must keep them equal
        for name in file["imageA"]:
            file["imageB"][name][...] = file["imageA"][name][...]
    seen = set()
    for epoch in range(6):
        dataset, again = make(seed=3), make(seed=3)
        dataset.set_epoch(epoch)
        again.set_epoch(epoch)
        for i in range(len(dataset)):
            sample = dataset[i]
            assert torch.equal(sample["image_a"], sample["image_b"])
            assert torch.equal(sample["image_a"], again[i]["image_a"])
            seen.add(sample["image_a"].numpy().tobytes())
    assert len(seen) == 24  # every epoch and sample another draw
    assert not torch.equal(make(seed=3)[0]["image_a"], make(seed=4)[0]["image_a"])


def test_pairs_smaller_than_the_crop_are_continued_as_by_mirrors(toy, tmp_path):
    """All maps alike; larger pairs give the crops that they give without padding."""
    for name, size in (("a1", (40, 90)), ("a2", (20, 30)), ("a3", (90, 64))):
        make_pairs(tmp_path / "VLF", [name], "train", size)
    (tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "train.txt").write_text("a1\na2\na3\n")
    script(*PROCESS, *toy, *WARM, "Toy_train")
    path = tmp_path / "h5" / "Toy_train.h5"
    with pytest.raises(
        InputError, match="2 of 3 pairs are smaller than train.crop .64., e.g. 'a1', 40 x 90; set train.pad=r"
    ):
        PairDataset([path], crop=64)
    assert len(PairDataset([path], crop=64, leave_out=["a1", "a2"])) == 1
    dataset = PairDataset([path], crop=64, pad="reflect", maps=["warm"], crop_on="warm")
    assert dataset.padded == 2
    whole, (wide, small, tall) = PairDataset([path], maps=["warm"]), (dataset[i] for i in range(3))
    for key in ("image_a", "image_b", "warm"):
        assert all(sample[key].shape == (1, 64, 64) for sample in (wide, small, tall))
        assert torch.equal(wide[key][:, 40:], wide[key][:, 15:39].flip(1))  # the edge itself is not repeated
        assert torch.equal(small[key][:, :20, :30], whole[1][key])
        assert torch.equal(small[key][:, 20:39], small[key][:, :19].flip(1))
        assert torch.equal(small[key][:, 38:57], small[key][:, :19])  # a second mirror where one is not enough
    padded, plain = (PairDataset([path], crop=16, pad=pad) for pad in ("reflect", None))
    assert all(torch.equal(padded[i]["image_a"], plain[i]["image_a"]) for i in range(3))


def test_the_map_of_warm_targets_is_that_of_the_whole_image(toy, tmp_path):
    y, x = np.mgrid[:80, :100]
    infrared = (60 + x / 2 + 120 * ((y - 30) ** 2 + (x - 70) ** 2 < 40)).astype(np.uint8)
    infrared[60:63, 20:23] += 100  # too small for a target
    for name in ("a1", "a2", "a3", "a4"):
        for side in ("IR", "VI"):
            cv2.imwrite(str(tmp_path / "VLF" / "Image" / "IVF" / "Toy" / side / f"{name}.png"), infrared)
    script(*PROCESS, *toy, *WARM)
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert "warm" not in file  # only a training takes it
    path = tmp_path / "h5" / "Toy_train.h5"
    with h5py.File(path) as file:
        stored = file["warm"]["a1"][0]
        assert np.array_equal(stored, warm_map(infrared.astype(np.float32))) and set(np.unique(stored)) == {0, 127, 255}
    sample = PairDataset([path], maps=["warm"])[0]
    assert np.array_equal(sample["warm"][0].numpy() == 1, (y - 30) ** 2 + (x - 70) ** 2 < 40)

    dataset = PairDataset([path], crop=24, augment=True, maps=["warm"], crop_on="warm")
    found = []
    for epoch in range(50):
        dataset.set_epoch(epoch)
        found += [bool((dataset[i]["warm"] == 1).any()) for i in range(4)]
    anywhere = (24 + 13) ** 2 / (80 - 23) / (100 - 23)  # about the share of crops with a part of it by chance
    assert 0.5 + anywhere / 2 - 0.15 < np.mean(found) < 0.5 + anywhere / 2 + 0.15


def test_a_map_that_is_not_there_is_one_sentence(toy, prepared, tmp_path):
    path = tmp_path / "h5" / "Toy_train.h5"
    for options, words in (
        ({"maps": ["warm"]}, "holds no 'warm', which the loss or train.crop_on takes; make the H5 again with this"),
        ({"crop": 16, "crop_on": "worm"}, "holds no 'worm', .* name its folder under maps in the table"),
        ({"crop_on": "warm"}, "train.crop_on=warm places crops, and train.crop is not set"),
    ):
        with pytest.raises(InputError, match=words):
            PairDataset([path], **options)[0]
    script(*PROCESS, *toy, *WARM)
    script("train.py", *prepared, *WARM, "train.crop=16", "train.crop_on=warm", "train.epochs=1")
    (tmp_path / "datasets.yaml").write_text("Toy: {task: MEF, a: IR, b: VI, color: [VI]}\n")
    for kind in ("Image", "TextFeature"):
        shutil.move(tmp_path / "VLF" / kind / "IVF", tmp_path / "VLF" / kind / "MEF")
    output = script(*PROCESS, *toy, *WARM, code=1)
    assert "the loss or train.crop_on takes 'warm', and MEF has no infrared source" in output


def test_default_text_is_the_one_nearest_the_mean(toy, tmp_path):
    script(*PROCESS, *toy, "Toy_train")
    dataset = PairDataset([tmp_path / "h5" / "Toy_train.h5"])
    means = torch.stack([dataset[i]["text"].mean(0) for i in range(4)])
    nearest = (means - means.mean(0)).norm(dim=1).argmin().item()
    assert torch.equal(default_text(dataset), dataset[nearest]["text"])


def test_images_are_listed_by_the_part_of_the_name_that_counts(tmp_path):
    for name in ("x_ir.png", "y_ir.jpg", "x_vis.png", "_ir.png", "z.txt", "a.b_ir.png"):
        (tmp_path / name).touch()
    assert set(list_images(tmp_path)) == {"x_ir", "y_ir", "x_vis", "_ir", "a.b_ir"}
    assert set(list_images(tmp_path, "*_ir")) == {"x", "y", "a.b"}
    assert set(list_images(tmp_path, "*_ir.png")) == {"x", "a.b"} and set(list_images(tmp_path, "*.jpg")) == {"y_ir"}
    assert set(list_images(tmp_path, "x_*")) == {"ir", "vis"} and list_images(tmp_path / "none") == {}


def test_the_step_to_8_bit():
    stretched = to_8bit(np.array([[0.25, 0.5, 0.75]]), "minmax")
    assert stretched.tolist() == [[0, 127, 255]]  # truncated
    assert to_8bit(np.array([[0.25, 0.5, 1.2]]), "clamp").tolist() == [[64, 128, 255]]
    assert to_8bit(np.full((2, 2), 0.5), "minmax").tolist() == [[128, 128]] * 2


def test_one_coloured_source_keeps_its_chroma():
    one = np.random.default_rng(0).integers(0, 256, (2, 5, 5), dtype=np.uint8)
    np.testing.assert_array_equal(merge_chroma([one, None]), one)
    np.testing.assert_array_equal(merge_chroma([one, np.full_like(one, 128)]), one)
    assert merge_chroma([None, None]) is None


def test_few_samples_stay_open(toy, tmp_path, monkeypatch):
    """Each costs memory; which are open changes nothing."""
    script("data_process.py", "--config", "configs/film_ivf.yaml", *toy)
    read = lambda: PairDataset([tmp_path / "h5" / "Toy_train.h5"])  # noqa: E731
    expected = [read()[i]["image_a"] for i in range(4)]
    monkeypatch.setattr("utils.data.h5.MOST_OPEN", 2)
    dataset = read()
    assert all(torch.equal(dataset[i % 4]["image_a"], expected[i % 4]) for i in range(8))
    (file,) = dataset._files.values()
    assert len(file.opened) == 2
