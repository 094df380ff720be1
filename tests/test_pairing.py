"""Which images belong together: folders, one folder, tables of pairs; sizes; the dry run."""

import csv
import random
import re

import cv2
import numpy as np
import pytest

from tests.toy import script
from utils.errors import InputError
from utils.own.fit import Picture, common_size, fit
from utils.own.pairing import find_pairs, match_names, read_table, split_folder

MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]


def put(folder, *names, size=(12, 16)):
    """Small images of random gray, (H, W) or (H, W, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.random.default_rng(len(name)).integers(0, 256, size, dtype=np.uint8))
    return folder


def paired(a, b, out="out") -> dict[str, tuple[str, str]]:
    """{name: (file of A, file of B)} of `find_pairs`."""
    pairs, _ = find_pairs(str(a), str(b), a / out)
    assert all(pair.out == a / out / f"{pair.name}.png" for pair in pairs)
    return {pair.name: (pair.a.name, pair.b.name) for pair in pairs}


@pytest.mark.parametrize(
    ("side_a", "side_b", "names"),
    [
        (["1.png", "2.png"], ["1.jpg", "2.png"], ["1", "2"]),
        (["x_ir.png", "y_ir.png"], ["x_vis.png", "y_vis.png"], ["x", "y"]),
        (["IR1.png", "IR2.png", "IR10.png"], ["VIS1.png", "VIS2.png", "VIS10.png"], ["1", "2", "10"]),
        (["thermal_0001.png", "thermal_0002.png"], ["rgb_0001.jpg", "rgb_0002.jpg"], ["0001", "0002"]),
        (["cam1_a.png", "cam1_b.png"], ["cam2_a.png", "cam2_b.png"], ["a", "b"]),
        (["cat_ir.png", "bat_ir.png"], ["cat_vis.png", "bat_vis.png"], ["cat", "bat"]),
        (["catir.png", "batir.png"], ["catvis.png", "batvis.png"], ["c", "b"]),
        (["FLIR_7_a.png", "FLIR_70_a.png"], ["v-7.png", "v-70.png"], ["7", "70"]),
        (["ir.png"], ["visible.png"], ["ir"]),
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
    swapped, _ = find_pairs(str(b), str(a), tmp_path)  # the partners do not depend on which side is A
    assert {(pair.b.name, pair.a.name) for pair in swapped} == set(zip(side_a, side_b))


@pytest.mark.parametrize(
    ("side_a", "side_b", "alone"),
    [
        (["IR1.png", "IR2.png", "IR3.png"], ["VIS1.png", "VIS3.png"], "IR2.png"),
        (["a.png", "b.png", "c.png"], ["b.png", "c.png", "d.png"], "a.png, d.png"),
        (["one.png", "two.png"], ["three.png", "four.png"], "one.png, two.png, four.png, three.png"),
        (["t_0001.png", "t_0010.png"], ["r_1.png", "r_10.png"], "t_0001.png, t_0010.png, r_1.png, r_10.png"),
        (["img10.png", "img11.png"], ["img0.png", "img1.png"], "img10.png, img11.png, img0.png, img1.png"),
        (["x.png", "x.jpg", "y.png"], ["x.png", "y.png"], "x.jpg, x.png, x.png"),
        (["1.png"], [], "1.png"),
        (["1.png"], ["1.png", "2.png"], "2.png"),
        ([], [], "no images at all"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_what_has_no_partner_is_named(tmp_path, side_a, side_b, alone):
    a, b = put(tmp_path / "a", *side_a), put(tmp_path / "b", *side_b)
    with pytest.raises(InputError, match=rf"cannot be paired: .* Without: {re.escape(alone)}\. Otherwise .* --pairs"):
        find_pairs(str(a), str(b), tmp_path / "out")


def test_every_way_to_cut_names_pairs_them_alike():
    """Why a pairing by names is unambiguous: random scenes with random beginnings and ends on each side."""
    rng = random.Random(0)
    words = ["ir", "vis", "_", "-", "1", "22", "a", "set"]

    def phrase(most: int) -> str:
        return "".join(rng.choices(words, k=rng.randint(0, most)))

    matched = 0
    for _ in range(2000):
        scenes = list({phrase(4) for _ in range(rng.randint(2, 5))})
        (p, s), (q, t) = ((phrase(2), phrase(2)) for _ in range(2))
        names_a, names_b = [p + scene + s for scene in scenes], [q + scene + t for scene in scenes]
        if not set(names_a) & set(names_b):
            side_a, side_b = match_names(names_a, names_b)
            if side_a.keys() == side_b.keys() and len(scenes) > 1:
                matched += 1
                assert {side_a[k]: side_b[k] for k in side_a} == dict(zip(names_a, names_b))
    assert matched > 1000


def test_one_folder_with_both_kinds(tmp_path):
    folder = put(tmp_path / "both", "x_ir.png", "x_vis.png", "2-IR-b.png", "2-VIS-b.jpg", "IR3.png", "VIS3.png")
    expected = {"x": ("x_ir.png", "x_vis.png"), "2-b": ("2-IR-b.png", "2-VIS-b.jpg"), "3": ("IR3.png", "VIS3.png")}
    assert paired(folder, folder) == expected
    assert paired(put(tmp_path / "m", "1_MRI.png", "1_PET.png"), tmp_path / "m") == {"1": ("1_MRI.png", "1_PET.png")}
    put(folder, "irish.png", "ir_vis.png")
    with pytest.raises(InputError, match=r"which images of .* are A and which B\? .* Unclear: ir_vis.png, irish.png"):
        split_folder(folder)
    put(tmp_path / "half", "x_ir.png", "x_vis.png", "y_ir.png")
    with pytest.raises(InputError, match=r"Without: y_ir.png"):
        paired(tmp_path / "half", tmp_path / "half")


def table(path, *rows) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_of_pairs(tmp_path):
    put(tmp_path / "im", "1.png", "2.png", "3.png")
    (tmp_path / "dark.txt").write_text("A dark street.")
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
    "a,b\nim/1.png,im/9.png\nim/8.png,im/1.png\n": r"line 2: there is no .*9\.png\n.*line 3: there is no .*8\.png",
    "a,b\nim/1.png,im/2.png\nim/1.png,im/3.png\n": r"line 3: the name '1' is that of line 2, too; give names",
    "a,b,name\nim/1.png,im/2.png,x/y\n": r"line 2: 'x/y' is not a plain file name",
    "a,b,text\nim/1.png,im/2.png,x\n": r"has a column 'text'; the columns are a, b, name, text_a, text_b, instruct",
    "a,b,a\nim/1.png,im/2.png,x\n": r"must have the columns a and b, .* each once",
    "im/1.png,im/2.png\n": r"has a column 'im/1\.png'; the columns are a, b",
    "a\nim/1.png\n": r"must have the columns a and b",
    "": r"must have the columns a and b",
    "a,b\n": r"lists no pairs",
    "a,b\nim/1.png\n": r"line 2: 1 values for 2 columns",
    "a,b\nim/1.png,im/2.png,im/3.png\n": r"line 2: 3 values for 2 columns",
    "a,b\n,im/2.png\n": r"line 2: no image in column a",
    "a,b\nim/1.png,im/2.png\nim/3.png,im/9.png\nIM/1.png,im/2.png\n": r"line 3: there is no .*9\.png",
    "a,b,text_a,text_b\nim/1.png,im/2.png,x,no.txt\n": r"line 2: there is no .*no\.txt",
    "a,b,name\nim/1.png,im/2.png,x\nim/1.png,im/3.png,X\n": r"line 3: the name 'X' is that of line 2",
    "a,b,text_a,text_b\nim/1.png,im/2.png,x,\n": r"line 2: only one of text_a and text_b",
    'a,b\n"im/1.png,im/2.png\n': r"line 2, is not a row of a table",
}


@pytest.mark.parametrize("content", MISTAKES, ids=lambda content: content.replace("\n", "|") or "empty")
def test_mistakes_of_a_table(tmp_path, content):
    put(tmp_path / "im", "1.png", "2.png", "3.png")
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(InputError, match=MISTAKES[content]):
        read_table(tmp_path / "pairs.csv", tmp_path / "out")


def test_a_table_that_cannot_be_read(tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("image.csv", "missing.csv"):
        with pytest.raises(InputError, match=f"cannot read the table .*{name}"):
            read_table(tmp_path / name, tmp_path)


def test_no_source_is_written_over(tmp_path):
    folder = put(tmp_path / "p", "1.png", "2.png", "x_ir.png", "x_vis.png", "y_ir.png", "y_vis.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for words in (
        ["--pairs", table(tmp_path / "p.csv", ["a", "b"], ["p/1.png", "p/2.png"]), "--out", folder],
        ["--a", folder / "1.png", "--b", folder / "2.png", "--out", folder / "2.png"],
        ["--a", f"{folder}/*_ir.png", "--b", f"{folder}/*_vis.png", "--out", folder / ".." / "p"],
    ):
        for more in ([], ["--list"]):
            assert "--out would write over the source" in script("test.py", *words, *MEAN, *more, code=1)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("a, b", [("nofolder", "b"), ("a", "no.png"), ("x.png", "a")])
def test_what_is_not_there_is_named(tmp_path, a, b):
    put(tmp_path / "a", "1.png"), put(tmp_path / "b", "1.png")
    with pytest.raises(InputError, match=r"there is no .*(nofolder|no\.png|x\.png)$"):
        find_pairs(str(tmp_path / a), str(tmp_path / b), tmp_path / "out")


def test_a_word_or_a_pattern_decides_alone(tmp_path):
    """What the user's pattern, or a word in the names, leaves of a name is not cut again."""
    folder = put(tmp_path / "both", "x_ir.png", "y_vis.png")
    for sides in ((folder, folder), (f"{folder}/*_ir.png", f"{folder}/*_vis.png")):
        with pytest.raises(InputError, match=r"Without: x_ir\.png, y_vis\.png"):
            find_pairs(*map(str, sides), tmp_path / "out")


def test_what_is_no_image_is_no_partner(tmp_path):
    a, b = put(tmp_path / "a", "1.png"), put(tmp_path / "b", "1.png", "._1.png")
    (a / "2.png").mkdir()
    assert paired(a, b) == {"1": ("1.png", "1.png")}


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resize", "size"), [("a", (20, 30)), ("b", (40, 60)), ("max", (40, 60))])
def test_resize(resize, size):
    rng = np.random.default_rng(0)
    a = Picture(rng.random((20, 30), dtype=np.float32), None)
    b = Picture(rng.random((40, 60), dtype=np.float32), rng.integers(0, 256, (2, 40, 60), dtype=np.uint8))
    one, two = fit(a, b, resize, "x")
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
        message = r"unequal shapes, 1\.333 and 1\.778 times as wide as high"
        with pytest.raises(InputError, match=message):
            common_size((480, 640), (720, 1280), resize, "x")


# --- through test.py -------------------------------------------------------------------------------------------------


def test_folders_are_fused_and_the_pairing_is_printed(tmp_path):
    a, b = put(tmp_path / "a", "IR1.png", "IR2.png"), put(tmp_path / "b", "VIS1.png", "VIS2.png", size=(24, 32))
    words = ["--a", a, "--b", b, *MEAN]
    output = script("test.py", *words, "--out", tmp_path / "out", code=1)
    assert output.count("unequal sizes, 12 x 16 and 24 x 32 pixels; use --resize") == 2
    output = script("test.py", *words, "--list", "--resize", "max")
    assert re.search(r"1: \S+IR1.png \+ \S+VIS1.png -> fused/1.png: 24 x 32\n", output)
    output = script("test.py", *words, "--list", code=1)
    assert output.count("unequal sizes") == 2 and "2 of 2 cannot be fused" in output
    assert not (tmp_path / "out").exists()
    output = script("test.py", *words, "--out", tmp_path / "out", "--resize", "max")
    assert "IR2.png + VIS2.png -> 2.png" in output
    assert cv2.imread(str(tmp_path / "out" / "1.png"), -1).shape == (24, 32)


def test_a_table_is_fused(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png", size=(12, 16, 3))
    rows = [["a", "b", "name"], ["1.png", "2.png", "x"], ["2.png", "3.png", "y"]]
    words = ["--pairs", table(tmp_path / "pairs.csv", *rows), *MEAN]
    script("test.py", *words, "--out", tmp_path / "out", "test.stretch=clamp")
    for a, b, name in rows[1:]:
        one, two, fused = (
            cv2.imread(str(path), 0) for path in (tmp_path / a, tmp_path / b, tmp_path / f"out/{name}.png")
        )
        np.testing.assert_allclose(fused, (one.astype(float) + two) / 2, atol=3)
    assert "2 would be fused" in script("test.py", *words, "--list")


def test_a_bad_pair_does_not_stop_the_others(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png", "4.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:-20])
    rows = [["a", "b"], ["1.png", "2.png"], ["3.png", "2.png"], ["4.png", "2.png"]]
    words = ["--pairs", table(tmp_path / "pairs.csv", *rows), *MEAN]
    output = script("test.py", *words, "--out", tmp_path / "out", code=1)
    assert "2 of 3 fused" in output and re.search(r"error: \S+3.png is ", output)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "4.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "p.csv", "--a", "x.png"], "--pairs is in place of --a and --b"),
        (["--pairs", "p.csv"], "--pairs needs --out"),
        (["--list"], "--list is for files of your own"),
        (["--resize", "max"], "--resize is for files of your own"),
        (["--align", "affine"], "--align is for files of your own"),
        (["--a", "x.png", "--list"], "needs all of --a, --b and --out"),
        (
            ["--a", "x.mp4", "--b", "y.mp4", "--out", "z.mp4", "--instruct", "a", "--instruct", "b"],
            "takes one --instruct",
        ),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together(words, message):
    assert message in script("test.py", *words, *MEAN, code=1)
