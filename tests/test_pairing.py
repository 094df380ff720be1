"""Which images belong together: folders, patterns, tables of pairs; and in which size."""

import csv
import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.matching import cut
from utils.errors import InputError
from utils.own.fit import Picture, common_size, resized
from utils.own.pairing import find_pairs, read_table


def put(folder, *names, size=(12, 16)):
    """Small images of random gray, (H, W) or (H, W, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.random.default_rng(len(name)).integers(0, 256, size, dtype=np.uint8))
    return folder


def paired(a, b) -> dict[str, tuple[str, str]]:
    """{name: (file of A, file of B)} of `find_pairs`."""
    pairs = find_pairs(Path(a), Path(b), Path("out"))
    assert all(pair.out == Path("out") / f"{pair.name}.png" for pair in pairs)
    return {pair.name: (pair.a.name, pair.b.name) for pair in pairs}


@pytest.mark.parametrize(
    ("side_a", "side_b", "names"),
    [
        (["1.png", "2.png"], ["1.jpg", "2.png"], ["1", "2"]),
        (["x_ir.png", "y_ir.png"], ["x_vis.png", "y_vis.png"], ["x", "y"]),
        (["IR1.png", "IR2.png", "IR10.png"], ["VIS1.png", "VIS2.png", "VIS10.png"], ["1", "2", "10"]),
        (["FLIR_0007_a.png", "FLIR_0070_a.png"], ["v-0007.jpg", "v-0070.jpg"], ["0007", "0070"]),
        (["ir.png", "ir_2.png"], ["vis.png", "vis_2.png"], ["ir", "_2"]),
        (["x.png", "ir_x.png"], ["x.png", "ir_x.png"], ["x", "ir_x"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_two_folders(tmp_path, side_a, side_b, names):
    order = random.Random(0)
    a = put(tmp_path / "a", *order.sample(side_a, len(side_a)))
    b = put(tmp_path / "b", *order.sample(side_b, len(side_b)))
    assert paired(a, b) == dict(zip(names, zip(side_a, side_b)))
    assert set(paired(b, a).values()) == set(zip(side_b, side_a))  # the partners do not depend on which side is A


@pytest.mark.parametrize(
    ("side_a", "side_b", "alone"),
    [
        (["IR1.png", "IR2.png", "IR3.png"], ["VIS1.png", "VIS3.png"], "IR2.png"),
        (["t_0001.png", "t_0010.png"], ["r_1.png", "r_10.png"], "t_0001.png, t_0010.png, r_1.png, r_10.png"),
        (["x.png", "x.jpg", "y.png"], ["x.png", "y.png"], "x.jpg, x.png, x.png"),
        ([], [], "no images at all"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_what_has_no_partner_is_named(tmp_path, side_a, side_b, alone):
    a, b = put(tmp_path / "a", *side_a), put(tmp_path / "b", *side_b)
    with pytest.raises(InputError, match=rf"cannot be paired: .* Without: {re.escape(alone)}\. Otherwise .* a table"):
        find_pairs(a, b, tmp_path / "out")


def test_cut_names_pair_alike_whatever_a_side_adds():
    """Random scenes with random beginnings and ends on each side."""
    rng = random.Random(0)
    for _ in range(500):
        phrases = ["".join(rng.choices(["ir", "vis", "_", "-", "1", "22", "a"], k=rng.randint(0, 3))) for _ in range(8)]
        p, s, q, t, *scenes = phrases
        rest_a, rest_b = cut([p + scene + s for scene in scenes]), cut([q + scene + t for scene in scenes])
        assert rest_a == rest_b or set(rest_a) != set(rest_b)


def test_patterns_pair_the_images_of_one_folder(tmp_path):
    folder = put(tmp_path / "both", "x_ir.png", "x_vis.png", "y_ir.png", "y_vis.jpg")
    expected = {"x": ("x_ir.png", "x_vis.png"), "y": ("y_ir.png", "y_vis.jpg")}
    assert paired(f"{folder}/*_ir.png", f"{folder}/*_vis") == expected
    with pytest.raises(InputError, match=r"which images of .* are A and which B\? Give two patterns, e\.g\. .*_ir\."):
        paired(folder, folder)
    with pytest.raises(InputError, match=r"1\.png is no folder; give two images, two folders or two patterns"):
        paired(folder, put(tmp_path, "1.png") / "1.png")
    (folder / "x_vis.png").unlink()
    (folder / "y_ir.png").unlink()
    with pytest.raises(InputError, match=r"Without: x_ir\.png, y_vis\.jpg"):  # a pattern decides alone
        paired(f"{folder}/*_ir.png", f"{folder}/*_vis")


def table(path, *rows) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_of_pairs(tmp_path):
    put(tmp_path / "im", "1.png", "2.png", "3.png")
    path = table(
        tmp_path / "pairs.csv",
        ["b", "a", "name", "text_a", "text_b", "instruct"],
        ["im/2.png", "im/1.png", "first", "A man, walking.", "dark.txt", ""],
        [],
        ["im/3.png", "im/1.png", "", "", "", 'Say "heat",\nonly.'],
    )
    first, second = read_table(path, tmp_path / "out")
    assert (first.name, first.a.name, first.b.name) == ("first", "1.png", "2.png")
    assert (first.text_a, first.text_b) == ("A man, walking.", str(tmp_path / "dark.txt")) and not first.instruct
    assert second.name == "1" and second.instruct == 'Say "heat",\nonly.' and second.out == tmp_path / "out" / "1.png"
    for delimiter in ";\t":  # as spreadsheets write it
        path.write_text("\ufeffA;b\r\nim/1.png;im/2.png\r\n;\r\n".replace(";", delimiter), encoding="utf-8")
        assert [pair.name for pair in read_table(path, tmp_path)] == ["1"]


MISTAKES = {
    "a,b\n,im/2.png\n": r"line 2: no image in column a",
    "a,b,name\nim/1.png,im/2.png,x\nim/1.png,im/3.png,x\n": r"line 3: the name 'x' is that of another pair; give names",
    "a,b,name\nim/1.png,im/2.png,x/y\n": r"line 2: 'x/y' is not a plain file name",
    "a,b,text\nim/1.png,im/2.png,x\n": r"may have name, text_a, text_b, instruct, not \['a', 'b', 'text'\]",
    "a,b\n": r"lists no pairs",
    "a,b\nim/1.png\n": r"line 2: it must have 2 values",
}


def test_mistakes_of_a_table(tmp_path):
    put(tmp_path / "im", "1.png", "2.png", "3.png")
    for content, message in MISTAKES.items():
        (tmp_path / "pairs.csv").write_text(content)
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / "pairs.csv", tmp_path / "out")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("image.csv", "missing.csv"):
        with pytest.raises(InputError, match=f"the table .*{name}"):
            read_table(tmp_path / name, tmp_path)


@pytest.mark.parametrize(("resize", "size"), [("a", (20, 30)), ("max", (40, 60))])
def test_resize(resize, size):
    rng = np.random.default_rng(0)
    a = Picture(rng.random((20, 30), dtype=np.float32), None)
    b = Picture(rng.random((40, 60), dtype=np.float32), rng.integers(0, 256, (2, 40, 60), dtype=np.uint8))
    assert common_size((20, 30), (40, 60), resize, "x") == size
    one, two = resized(a, size), resized(b, size)
    assert one.gray.shape == two.gray.shape == size and two.chroma.shape == (2, *size) and one.chroma is None
    assert two.chroma.dtype == np.uint8 and (one.gray.min() >= 0 and one.gray.max() <= 1)
    if resize == "a":  # a mean of areas
        np.testing.assert_allclose(two.gray, b.gray.reshape(20, 2, 30, 2).mean(axis=(1, 3)), atol=1e-6)
        assert one.gray is a.gray


def test_unequal_sizes_and_shapes():
    with pytest.raises(InputError, match=r"x have unequal sizes, 20 x 30 and 40 x 60 pixels; use --resize a, b or max"):
        common_size((20, 30), (40, 60), None, "x")
    assert common_size((100, 100), (199, 201), "max", "x") == (199, 201)  # 1 %
    for resize in (None, "max"):
        with pytest.raises(InputError, match=r"unequal shapes, 1\.333 and 1\.778 times as wide as high"):
            common_size((480, 640), (720, 1280), resize, "x")
