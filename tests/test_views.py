"""Two sources that do not match: cut or padded to one shape, registered or refused, and each alone where it must."""

import re

import numpy as np
import pytest

from tests.test_align import other_camera, scene
from tests.toy import script
from utils.data.align import valid_area
from utils.data.images import write_image
from utils.errors import InputError
from utils.opencv import cv2
from utils.own.fit import Picture, common_size, fit
from utils.own.views import FEATHER, Views

MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]


def gray(image: np.ndarray) -> Picture:
    return Picture(image.astype(np.float32), None)


def views(a: np.ndarray, b: np.ndarray, resize=None, motion=None, otherwise=None, frames=True) -> Views:
    return Views(gray(a), gray(b), resize, motion, otherwise, frames, "x")


def save(path: str, image: np.ndarray) -> str:
    write_image(path, (255 * image).round().astype(np.uint8))
    return path


@pytest.mark.parametrize(
    ("own", "target", "how", "inner", "remark"),
    [
        ((1440, 1920), (512, 640), "crop", (512, 640), "60 columns at the left, 60 columns at the right are cut off"),
        ((513, 640), (480, 640), "crop", (480, 640), "16 rows at the top, 17 rows at the bottom are cut off"),
        ((480, 640), (480, 640), "crop", (480, 640), ""),
        ((1440, 1920), (512, 640), "pad", (480, 640), "16 rows at the top, 16 rows at the bottom are padded"),
        ((512, 640), (480, 640), "pad", (480, 600), "20 columns at the left, 20 columns at the right are padded"),
    ],
)
def test_what_is_cut_or_padded(own, target, how, inner, remark):
    found = fit(own, target, how)
    assert (found.inner, found.remark()) == (inner, remark)
    there = found.apply(np.ones(own, np.uint8), cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
    assert there.shape == target and there.sum() == np.prod(inner)


def test_sizes_of_unequal_shapes():
    thermal, visible = (512, 640), (1440, 1920)
    sizes = {"crop": thermal, "pad": thermal}
    assert all(common_size(thermal, visible, how, "x") == size for how, size in sizes.items())
    for how in ("a", "max", None):
        with pytest.raises(InputError, match=r"unequal shapes, 1\.250 and 1\.333 .*; use --resize crop or pad"):
            common_size(thermal, visible, how, "x")


def test_a_crop_keeps_the_centre_and_a_padded_part_is_of_a_alone():
    a, b = scene(60, 60), np.tile(np.linspace(0.1, 0.9, 80), (60, 1))
    view = views(a, b, "crop")(gray(a), gray(b))
    np.testing.assert_allclose(view.b.gray, b[:, 10:70], atol=1e-6)
    assert view.finish(a) is a  # nothing is alone
    made = views(a, b, "pad", frames=False)
    view = made(gray(a), gray(b))
    assert made.notes == ["B (60 x 80 pixels): 7 rows at the top, 8 rows at the bottom are padded"]
    fused = view.finish(np.zeros_like(a))
    np.testing.assert_array_equal(fused[:7], a[:7])
    np.testing.assert_array_equal(fused[-8:], a[-8:])
    assert not fused[7 + FEATHER : -8 - FEATHER].any()  # passes over within FEATHER pixels
    np.testing.assert_allclose(view.b.gray[:7], a[:7], atol=1e-6)  # no edge for a network to see


def framed(value: float, angle: float = 4, shift=(12, -9), size=(120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """A turned and shifted scene in a frame, and where it is."""
    turn = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), angle, 0.95)
    turn[:, 2] += shift
    image = cv2.warpAffine(scene(*size).clip(0.02, 0.98), turn, size[::-1], borderValue=value)
    return image, cv2.warpAffine(np.ones(size, np.uint8), turn, size[::-1], flags=cv2.INTER_NEAREST) > 0


@pytest.mark.parametrize("value", [0, 1])
def test_a_frame_is_found(value):
    image, there = framed(value)
    found = valid_area(image)
    assert found[there].mean() > 0.9 and not found[~there].any()  # a rim of mixed pixels is lost
    mount = np.pad(scene(100, 120).clip(0.02, 0.98), ((3, 0), (0, 0)), constant_values=value)
    assert np.array_equal(np.flatnonzero(~valid_area(mount).any(axis=1)), np.arange(5))


def test_what_is_no_frame():
    roofs, hole, speck, image = (scene(100, 120).clip(0.02, 0.98) for _ in range(4))
    roofs[:30] = 0
    roofs[20:30, 40:60] = roofs[20:30, 80:90] = 0.5  # houses before a black sky
    hole[40:60, 40:60] = 0
    speck[:4, 50:60] = 1
    for number, each in enumerate((roofs, hole, speck, image, np.zeros((50, 60)), np.ones((50, 60)))):
        assert valid_area(each.astype(np.float32)) is None, number


def test_beside_a_frame_the_other_counts_alone():
    """Infrared in a black frame, visible in colour: there gray and colour are those of the visible."""
    infrared, there = framed(0)
    visible = Picture(scene(120, 160, seed=3), np.full((2, 120, 160), 90, np.uint8))
    made = Views(gray(infrared), visible, None, None, None, True, "x")
    assert re.search(r"^A has a black or white frame, \d\d\.\d % of it: the other counts there$", made.notes[0])
    view = made(gray(infrared), visible)
    fused = view.finish((view.a.gray + view.b.gray) / 2)
    np.testing.assert_array_equal(fused[~there], visible.gray[~there])
    np.testing.assert_allclose(view.a.gray[~there], visible.gray[~there], atol=1e-6)
    assert (view.b.chroma == 90).all()
    view = Views(visible, gray(infrared), None, None, None, True, "x")(visible, gray(infrared))
    np.testing.assert_array_equal(view.finish(view.b.gray)[~there], visible.gray[~there])
    swapped = Views(visible, Picture(infrared, visible.chroma), None, None, None, True, "x")
    chroma = swapped(visible, Picture(infrared, visible.chroma)).b.chroma
    assert (chroma[:, ~there] == 128).all() and (chroma[:, 60, 80] == 90).all()
    assert not views(infrared, visible.gray, frames=False).notes  # other tasks have black grounds


def test_outside_a_registered_image_the_other_counts_alone():
    image = scene()
    b = np.roll(other_camera(image), -40, axis=1)
    b[:, -40:] = b[:, -41:-40]
    made = views(image, b, motion="translation")
    assert re.search(
        r"B moved by 40\.\d pixels \(confidence 0\.\d\d, halves of .* differ by [01]\.\d pixels", made.notes[0]
    )
    view = made(gray(image), gray(b))
    fused = view.finish(np.zeros_like(image))
    np.testing.assert_array_equal(fused[:, :38], image[:, :38])
    assert not fused[:, 42 + FEATHER :].any()


def test_what_is_in_its_place_is_sure():
    made = views(scene(), other_camera(scene()), motion="affine")
    assert made.notes[0].startswith("B is in its place already (confidence 0.") and made.alone is None


@pytest.mark.parametrize("choice", [None, "a", "b", "plain"])
def test_what_is_not_sure_is_refused_or_chosen(tmp_path, monkeypatch, choice):
    monkeypatch.chdir(tmp_path)
    a, b = scene(), scene(seed=9)
    words = [save("a.png", a), save("b.png", b), "-o", "f.png", "--align", "affine", *MEAN]
    said = script("fuse.py", *words, *(["--align-or", choice] if choice else []), code=int(choice is None))
    assert re.search(r"confidence 0\.\d\d, halves of the image differ by (\d+\.\d|inf) pixels", said)
    if choice is None:
        assert "are not registered for sure" in said and "0 of 1 fused" in said and not (tmp_path / "f.png").exists()
        return
    a, b = (cv2.imread(name, 0).astype(float) for name in ("a.png", "b.png"))
    expected = {"a": a, "b": b, "plain": (a + b) / 2}[choice]
    np.testing.assert_allclose(cv2.imread("f.png", 0), expected, atol=0.51)
    assert "warning: B is not registered for sure" in said


def test_options_without_a_use_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [save("a.png", scene(40, 50)), "a.png", *MEAN]
    assert "give --align, too" in script("fuse.py", *words, "--align-or", "a", code=1)
    assert "--fps is for videos" in script("fuse.py", *words, "--fps", "9", code=1)


def test_a_thermal_image_beside_a_wider_view(tmp_path, monkeypatch):
    """The usual rig: 5:4 beside 4:3, which sees a tenth more; cut, then registered."""
    monkeypatch.chdir(tmp_path)
    wide = scene(480, 640)
    a = cv2.resize(other_camera(wide)[24:456, 50:590], (320, 256), interpolation=cv2.INTER_AREA)
    said = script(
        "fuse.py", save("a.png", a), save("b.png", wide), "-o", "f.png", "--resize", "crop", "--align", "affine", *MEAN
    )
    assert "B (480 x 640 pixels): 20 columns at the left, 20 columns at the right are cut off" in said
    assert re.search(r"B moved by \d+\.\d pixels \(confidence 0\.[5-9]", said)
    moved = 2 * cv2.imread("f.png", 0).astype(float) - 255 * a
    expected = 255 * cv2.resize(wide[24:456, 50:590], (320, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(moved - expected)[16:-16, 16:-16].mean() < 4
