"""Each original download, as a small folder of its shape, becomes the VLF layout; mistakes change nothing."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.toy import ROOT, contents, script
from utils.arrange import arrange
from utils.config import read_yaml
from utils.data.images import list_images, read_image
from utils.data.sources import Source
from utils.errors import InputError

ROWS = read_yaml(ROOT / "configs" / "datasets.yaml")
ORIGINALS = read_yaml(ROOT / "configs" / "originals.yaml")

# dataset, split, name of a pair, the files of source A and of source B: each pattern of configs/originals.yaml once
PAIRS = """
MSRS train 00001D train/ir/00001D.png train/vi/00001D.png
MSRS test 00004N test/ir/00004N.png test/vi/00004N.png
MSRS test 00008N test/ir/00008N.png test/vi/00008N.png
LLVIP train 010001 infrared/train/010001.jpg visible/train/010001.jpg
LLVIP test 190001 infrared/test/190001.jpg visible/test/190001.jpg
M3FD all 00000 Ir/00000.png Vis/00000.png
M3FD all 00471 Ir/00471.png vi/00471.png
RoadScene all FLIR_00006 cropinfrared/FLIR_00006.jpg crop_LR_visible/FLIR_00006.jpg
TNO all lake Athena_images/lake/IR_lake_g.bmp Athena_images/lake/VIS_lake_r.bmp
TNO all bunker Athena_images/bunker/ir.bmp Athena_images/bunker/bunker_r.bmp
TNO all trees Athena_images/trees/IR_g.bmp Athena_images/trees/vis.bmp
TNO all APC_1_view_1 Athena_images/APC_1/view_1/IR_06_005.bmp Athena_images/APC_1/view_1/VIS_06_005.bmp
TNO all APC_2_view_1 Athena_images/APC_2/view_1/2_03_005.bmp Athena_images/APC_2/view_1/1_03_005.bmp
TNO all wall DHV_images/wall/IR_163rad.bmp DHV_images/wall/VIS_163dhvR.BMP
TNO all Bosnia Triclobs_images/Bosnia/LWIR_B.bmp Triclobs_images/Bosnia/VIS_R.bmp
TNO all Kaptein_01 Triclobs_images/Kaptein_01/IR01.bmp Triclobs_images/Kaptein_01/Vis01.bmp
TNO all Reek Triclobs_images/Reek/Reek_IR.bmp Triclobs_images/Reek/Reek_Vis.bmp
TNO all tank tank/LWIR.tif tank/Vis.tif
Harvard all MRI_CT_3008 CT-MRI/MRI/3008.png CT-MRI/CT/3008.png
Harvard all MRI_PET_3008 PET-MRI/MRI/3008.png PET-MRI/PET/3008.png
Harvard all MRI_SPECT_3008 SPECT-MRI/MRI/3008.png SPECT-MRI/SPECT/3008.png
SICE all Part1_1 Dataset_Part1/1/5.JPG Dataset_Part1/1/1.JPG
SICE all Part2_1 Dataset_Part2/1/7.PNG Dataset_Part2/1/1.PNG
MEFB all 507 input/507/_MDF0003.tif input/507/507_B.tif
RealMFF all 001 imageA/001_A.png imageB/001_B.png
Lytro all lytro-01 lytro-01-A.jpg lytro-01-B.jpg
"""
PAIRS = [line.split() for line in PAIRS.strip().splitlines()]

# other files in the downloads, which are left out
BESIDE = {
    "MSRS": ["detection/ir/1.png", "train/Segmentation_labels/00001D.png"],
    "RoadScene": ["crop_HR_visible/FLIR_00006.jpg"],
    "TNO": ["Triclobs_images/Bosnia/NIR_G.bmp", "Triclobs_images/House/VIS.bmp", "DHV_images/Fire/part_1/dhv/DHV2.bmp"],
    "SICE": ["Dataset_Part1/1/3.JPG", "Dataset_Part1/Label/1.JPG"],
    "Lytro": ["Triple Series/lytro-01-A.jpg"],
}
BRIGHT, DARK = 180, 60  # of A and of B


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((24, 32), level, np.uint8))


def pairs_of(dataset: str) -> list[list[str]]:
    return [pair for pair in PAIRS if pair[0] == dataset]


def download_of(dataset: str, folder: Path) -> Path:
    for _, _, _, a, b in pairs_of(dataset):
        save(folder / a, BRIGHT)
        save(folder / b, DARK)
    for name in BESIDE.get(dataset, []):
        save(folder / name, 90)
    return folder


def run(dataset: str, download: Path, *lists: Path, code: int = 0) -> str:
    """Arrange a download in a folder VLF beside it; what is printed."""
    return script("data_process.py", "arrange", dataset, download, *lists, "data.root=VLF", code=code)


def counts(said: str) -> list[str]:
    """The lines on split files in what is printed."""
    return re.findall(r"^VLF/.*pairs$", said, re.M)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dataset", ORIGINALS)
def test_arranges(dataset, tmp_path):
    folder = download_of(dataset, tmp_path / "download" / "level")
    said = run(dataset, Path("download"))
    row = ROWS[dataset]
    base = Path("VLF", "Image", row["task"], dataset)
    lines = []
    for split in ORIGINALS[dataset]:
        names = sorted(name for _, its_split, name, _, _ in pairs_of(dataset) if its_split == split)
        lines.append(f"{base / split}.txt: {len(names)} pairs")
        assert (base / f"{split}.txt").read_text().split("\n") == [*names, ""]
    assert counts(said) == lines and "nothing like" not in said
    for key, column in ((row["a"], 3), (row["b"], 4)):
        images = list_images(base / key)
        assert len(images) == len(pairs_of(dataset))
        for pair in pairs_of(dataset):
            (path,) = images[pair[2]]
            assert path.is_symlink() and path.samefile(folder / pair[column])
            assert read_image(path)[0].shape == (24, 32)
    assert not list(base.rglob(".*"))

    before = contents(tmp_path)
    assert counts(run(dataset, folder)) == lines  # also from the folder itself
    assert contents(tmp_path) == before


def test_without_symbolic_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not here")

    monkeypatch.setattr(os, "symlink", refuse)
    source = download_of("MSRS", tmp_path / "download") / "test" / "ir" / "00004N.png"
    said = run("MSRS", Path("download"))
    made = Path("VLF/Image/IVF/MSRS/IR/00004N.png")
    assert not made.samefile(source) and made.read_bytes() == source.read_bytes()
    assert counts(run("MSRS", Path("download"))) == counts(said)


def test_splits_of_the_user(tmp_path):
    folder, mine, base = download_of("M3FD", Path("M3FD_Fusion")), Path("mine.txt"), Path("VLF/Image/IVF/M3FD")
    mine.write_text("# one\n00471.png\n\n")
    assert counts(run("M3FD", folder, mine)) == [f"{base / mine}: 1 pairs"]
    assert sorted(path.name for path in base.iterdir()) == ["IR", "VI", "mine.txt"]
    assert list(list_images(base / "IR")) == ["00471"]
    run("M3FD", folder)  # `all` beside it
    assert (base / "mine.txt").read_text() == "00471\n" and len(list_images(base / "IR")) == 2
    for names, message in (("7\n8\n", "'7' of mine is not in .*\n.*'8' of mine"), ("# none\n", "mine.txt is empty")):
        mine.write_text(names)
        assert re.search(message, run("M3FD", folder, mine, code=1))


def test_says_what_the_download_lacks():
    save(Path("test/ir/1.png"), BRIGHT)
    save(Path("test/vi/1.png"), DARK)
    said = run("MSRS", Path())
    assert "test.txt: 1 pairs" in said and "nothing like train/ir/<name>.png" in said


def test_lists_all_problems_and_writes_nothing(tmp_path):
    folder, base = download_of("MSRS", Path("download")), Path("VLF/Image/IVF/MSRS")
    (folder / "test" / "vi" / "00004N.png").unlink()
    save(folder / "train" / "vi" / "00009D.png", DARK)
    save(base / "IR" / "00008N.png", 100)  # something else
    save(base / "VI" / "00008N.jpg", 100)
    (base / "train.txt").write_text("00002D\n")
    (base / "IR" / "00001D.png").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    title, *lines = run("MSRS", folder, code=1).partition("error: ")[2].splitlines()
    assert title == "MSRS was not arranged:"
    expected = ["'00004N' has no image of source B", "'00009D' has no image of source A", "IR/00001D.png is there"]
    expected += ["IR/00008N.png is there and", "VI/00008N.jpg is there", "train.txt is there and lists other names"]
    assert len(lines) == len(expected) and all(sum(words in line for line in lines) == 1 for words in expected)
    assert contents(tmp_path) == before and os.path.lexists(base / "IR" / "00001D.png")


def test_refuses_what_it_cannot_find():
    download_of("M3FD", Path("two/M3FD_Fusion")), download_of("M3FD", Path("two/M3FD_Detection"))
    Path("empty").mkdir()
    for dataset, folder, message in (
        ("MRSR", "empty", "no dataset 'MRSR'; did you mean 'MSRS'"),
        ("LLVIPFocus", "empty", "configs/originals.yaml has no dataset 'LLVIPFocus'"),
        ("MSRS", "empty", "empty has nothing like train/ir/<name>.png; give the folder of the unpacked MSRS"),
        ("MSRS", "none", "none is no folder"),
        ("M3FD", "two", "in each of M3FD_Detection, M3FD_Fusion; give one"),
    ):
        assert message in run(dataset, Path(folder), code=1)
    assert "takes a dataset and the folder of its download" in script("data_process.py", "arrange", "MSRS", code=1)
    assert not Path("VLF").exists()


def test_refuses_images_that_make_no_pair(tmp_path):
    save(Path("input/One/a.png"), 100)
    save(Path("input/Bad/a.png"), 100)
    Path("input/Bad/b.png").write_bytes(b"not an image")
    said = run("MEFB", Path(), code=1)
    assert re.search("b.png is not an image that can be read\n.*'One' has no two images of diff", said)
    download_of("TNO", Path("TNO"))
    for name in ("Athena_images/lake/IR_more.bmp", "DHV_images/tank/IR_1.bmp", "DHV_images/tank/VIS_1.bmp"):
        save(Path("TNO", name), 90)
    assert re.search(r"'lake' has several images .*\n.*'tank' names two pairs", run("TNO", Path("TNO"), code=1))


def test_refuses_a_wrong_row():
    source = Source(**ROWS["MSRS"], dataset="MSRS", split="", root=Path("VLF"))
    with pytest.raises(InputError, match="MSRS.* in configs/originals.yaml"):
        arrange(source, {"all": {"a": "x/<name>.png", "b": "y/<other>.png"}}, Path())
