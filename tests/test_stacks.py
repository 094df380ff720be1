"""More than two images as one; whose colour a result has; 16 bit; what of a photograph's tags is kept."""

import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fuse import fuse
from net import build_model, load_model
from tests.test_align import scene
from tests.test_pairing import put, table
from tests.toy import ROOT, contents, script
from utils.config import Config
from utils.data.images import as_unit, colorize, quantize, read_image, write_image
from utils.filters import gaussian_window, local_moments
from utils.metrics import MEFSSIM_MASS, _weighted_quality
from utils.own.fit import Picture
from utils.own.fuse import Fuser
from utils.own.job import task_of
from utils.own.pairing import OwnPair, read_table
from utils.own.stack import fuse_stack

MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]
LAPLACIAN = ["ckpt=null", "net={name: laplacian}", "device=cpu"]
PHOTOGRAPH = ROOT / "tests" / "sample" / "Image" / "IVF" / "SampleIVF" / "VI" / "coffee.jpg"


def focus_stack(image: np.ndarray, count: int = 5) -> list[np.ndarray]:
    """A photograph (H, W) or (H, W, 3), each time sharp in another of `count` strips, which overlap a little."""
    x = np.arange(image.shape[1]) / image.shape[1]
    blurred = cv2.GaussianBlur(image, (0, 0), 4)
    shares = [np.clip(1.5 - np.abs(x - (k + 0.5) / count) * 6, 0, 1) for k in range(count)]
    shares = [share[:, None] if image.ndim == 3 else share for share in shares]
    return [(share * image + (1 - share) * blurred).round().astype(np.uint8) for share in shares]


def ratio(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of images of 0..255; of equal ones 99."""
    return float(10 * np.log10(255**2 / max(((one.astype(float) - other) ** 2).mean(), 1e-5)))


def fuser_of(name: str):
    """A function of two images (H, W) float32 in [0, 1]: by the weights that ship, or a rule."""
    model = load_model(f"models/{name}.safetensors") if name.isupper() else build_model(name).eval()
    fuser = Fuser(model, Config(), [OwnPair("x", None, None, None)], torch.device("cpu"))
    return lambda a, b: fuser(["x"], [(Picture(a, None), Picture(b, None))], fuser.features[0])[0, 0]


def of_all(fused: np.ndarray, sources: list[np.ndarray]) -> tuple[float, float]:
    """MEFSSIM and QW of a result (H, W) in [0, 1] for any number of sources."""
    stack, target = (torch.from_numpy(np.stack(x))[:, None].double() for x in (sources, [fused]))
    padded = (torch.nn.functional.pad(x, (5,) * 4) for x in (stack, target))
    window = [weight * MEFSSIM_MASS**0.5 for weight in gaussian_window(11, 11 / 6)]
    (_, variance), (_, (of_fused,)), covariance = local_moments(*padded, window)
    strongest = variance.argmax(0, keepdim=True)
    variance, covariance = (x.gather(0, strongest)[0] for x in (variance, covariance))
    structure = (2 * covariance + 0.03**2) / (variance + of_fused + 0.03**2)
    return structure.mean().item(), _weighted_quality(255 * stack, 255 * target).item()


@pytest.mark.parametrize("name", ["laplacian", pytest.param("MFF", marks=pytest.mark.slow)])
def test_a_focus_stack_is_nearer_to_the_truth_than_its_best_image_in_any_order(name):
    truth = cv2.imread(str(PHOTOGRAPH), 0)
    images = [as_unit(image) for image in focus_stack(truth)]
    model = fuser_of(name)
    fused = 255 * fuse_stack(model, images, "MFF")
    best = max(ratio(255 * image, truth) for image in images)
    assert ratio(fused, truth) > best + (15 if name == "MFF" else 5)
    for seed in range(2):
        other = 255 * fuse_stack(model, random.Random(seed).sample(images, 5), "MFF")
        assert ratio(fused, other) > 90


@pytest.mark.slow
@pytest.mark.parametrize("gains", [(1.8, 1, 0.4), (2.5, 1.5, 1, 0.6, 0.3)], ids=["three", "five"])
def test_exposures_are_at_least_as_good_as_by_mertens(gains):
    photograph = cv2.imread(str(PHOTOGRAPH))
    exposures = [np.clip(photograph * gain, 0, 255).astype(np.uint8) for gain in gains]
    grays = [cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2GRAY) for image in exposures]
    found = of_all(fuse_stack(fuser_of("MEF"), grays, "MEF"), grays)
    colored = cv2.cvtColor(cv2.createMergeMertens().process(exposures).clip(0, 1), cv2.COLOR_BGR2GRAY)
    for mertens in (colored, cv2.createMergeMertens().process([255 * gray for gray in grays])):
        assert np.all(np.array(found) > of_all(mertens, grays)), (found, of_all(mertens, grays))


def test_flat_and_small_images_of_a_stack_stay_so():
    def mean(a, b):
        return (a + b) / 2

    for level in (0, 0.4):
        assert (fuse_stack(mean, [np.full((5, 7), level, np.float32)] * 3, "MEF") == np.float32(level)).all()
    flat = [np.full((40, 50), level, np.float32) for level in (0.2, 0.8, 0.4)]
    np.testing.assert_allclose(fuse_stack(mean, flat, "MFF"), (0.6 + 0.3) / 2, atol=1e-6)


def test_stacks_are_named_by_files_folders_patterns_and_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph = cv2.imread(str(PHOTOGRAPH))
    (tmp_path / "s").mkdir()
    for number, image in zip((2, 10, 3, 4, 1), focus_stack(photograph)):
        write_image(f"s/x{number}.png", image)
    words = [f"s/x{number}.png" for number in (1, 2, 3, 4, 10)]
    said = script("fuse.py", *words, "-o", "f.png", "--task", "MFF", *LAPLACIAN)
    assert "1 of 1 fused" in said
    fused = cv2.imread("f.png")
    best = max(ratio(cv2.imread(word), photograph) for word in words)
    assert ratio(fused, photograph) > best + 3  # in colour, of all five
    for given in (words[::-1], ["s"], ["s/x*.png"]):
        script("fuse.py", *given, "-o", "g.png", "--task", "MFF", *LAPLACIAN)
        np.testing.assert_array_equal(cv2.imread("g.png"), fused)
    Image.open(words[0]).save("s.tif", save_all=True, append_images=[Image.open(word) for word in words[1:]])
    script("fuse.py", "s.tif", "-o", "g.png", "--task", "MFF", *LAPLACIAN)  # pages
    np.testing.assert_array_equal(cv2.imread("g.png"), fused)
    said = script("fuse.py", "s", "-o", "there", "--task", "MFF", "--list", *LAPLACIAN)
    assert f"s: {' + '.join(words)} -> there/s.png: 192 x 256" in said
    rows = [
        [*"abcde", "name"],
        [*words, "all"],
        [*words[:2], "", "", "", "two"],
        [*words[:2], "no.png", "", "", "three"],
    ]
    said = script("fuse.py", table(tmp_path / "p.csv", *rows), "--task", "MFF", *LAPLACIAN, code=1)
    assert "2 of 3 fused" in said and "no.png (No such file" in said
    np.testing.assert_array_equal(cv2.imread("fused/all.png"), fused)
    assert [len(pair.images) for pair in read_table(tmp_path / "p.csv", tmp_path)] == [5, 2, 3]


def test_a_stack_is_aligned_to_its_first_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = (255 * scene(160, 200)).astype(np.uint8)
    for number, (y, x) in enumerate([(20, 20), (23, 25), (16, 18)]):
        write_image(f"{number}.png", wide[y : y + 120, x : x + 160])
    words = ["0.png", "1.png", "2.png", "-o", "f.png", "--task", "MFF", *MEAN]
    said = script("fuse.py", *words, "--align", "translation")
    assert "1.png: B moved by 5.8 pixels" in said and "2.png: B moved by 4.5 pixels" in said
    aligned, plain = cv2.imread("f.png", 0), script("fuse.py", *words) and cv2.imread("f.png", 0)
    inner = np.s_[12:-12, 12:-12]
    assert ratio(aligned[inner], wide[20:140, 20:180][inner]) > ratio(plain[inner], wide[20:140, 20:180][inner]) + 10


THREE = ["1.png", "2.png", "3.png", "--task"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (THREE[:3], "IVF fuses two images, A and B, and 3 are named (1.png ...); give --task MEF or MFF for a stack"),
        ([*THREE, "MIF"], "MIF fuses two images, A and B, and 3 are named"),
        (["train.png", *THREE, "MEF"], "train.png is not there; of more than two sources each must be an image"),
        ([".", *THREE, "MEF"], ". is no image file; of more than two sources each must be an image"),
        (["none", "--task", "MEF"], "a stack takes several images, and none holds 0"),
        (["1*", "--task", "MFF"], "a stack takes several images, and 1* holds 0"),
        (["1.png", "--task", "MFF"], "a stack takes several images, and 1.png holds 1"),
        (["no.tif", "--task", "MFF"], "a stack takes several images, and no.tif holds 0"),
        ([*THREE, "MEF", "--metrics"], "are for pairs, and '1' has 3 images; leave them out"),
        ([*THREE, "MEF", "--color", "a"], "are for pairs, and '1' has 3 images; leave them out"),
        ([*THREE, "MEF", "--resize", "max"], "'1' is a stack; use --resize a, the size of its first image"),
        (["1.png", "2.png", "-o", "f.jpg", "--depth", "16"], "f.jpg cannot hold 16 bit; name a .png, .tif, .tiff"),
        ([*THREE, "MEF", "--depth", "16", "--compare"], "--depth 16 is for one image a pair: no video, no --compare"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "1.png", "2.png", "3.png"), (tmp_path / "none").mkdir()
    before = contents(tmp_path)
    said = script("fuse.py", *words, *MEAN, code=1)
    assert message in said and said.count("error") == 1 and "Traceback" not in said and "train.lr" not in said
    assert contents(tmp_path) == before


def test_tasks_of_weights():
    for name, task in (("IVF_fast", "IVF"), ("IVF_instruct", "IVF"), ("MGFusion_IVF", "IVF"), *((t, t) for t in TASKS)):
        assert task_of(load_model(f"models/{name}.safetensors").provenance) == task
    unknown = build_model("mean").provenance
    assert (task_of(unknown), task_of(unknown, "dir/MEF.pth"), task_of(unknown, "last.pth")) == ("IVF", "MEF", "IVF")


TASKS = ("MIF", "MEF", "MFF")


@pytest.mark.parametrize(("color", "task", "of"), [(None, "IVF", "b"), (None, "MIF", "ab"), ("a", "IVF", "a")])
def test_whose_colour(tmp_path, monkeypatch, color, task, of):
    """A is red and B blue: the colour of a palette does not dye the visible image."""
    monkeypatch.chdir(tmp_path)
    for name, channel in (("a", 2), ("b", 0)):
        image = np.full((24, 32, 3), 100, np.uint8)
        image[..., channel] = 180
        write_image(f"{name}.png", image)
    more = ["--color", color] if color else []
    said = script("fuse.py", "a.png", "b.png", "--task", task, *more, *MEAN)
    blue, green, red = cv2.imread("fused.png").mean((0, 1))
    assert (blue > green + 20, red > green + 20) == ("b" in of, "a" in of)
    assert ("a palette's brightness is no temperature" in said) == (task == "IVF")
    script("fuse.py", "a.png", "b.png", "--color", "none", *MEAN)
    assert cv2.imread("fused.png", cv2.IMREAD_UNCHANGED).shape == (24, 32)
    if color or task == "IVF":
        script("fuse.py", "a.png", "b.png", *more, *MEAN)
        found = fuse(build_model("mean"), "a.png", "b.png", color=color)
        np.testing.assert_array_equal(found[..., ::-1], cv2.imread("fused.png"))


def test_exchanged_sources_are_asked_about_once(pair, tmp_path):
    ir, visible = pair
    said = script("fuse.py", visible, ir, *MEAN)
    assert "vis.png has colour and B has none" in said and said.count("are they exchanged?") == 1
    assert cv2.imread("fused.png", cv2.IMREAD_UNCHANGED).ndim == 2
    for words in (pair, [visible, ir, "--task", "MFF"]):
        assert "exchanged" not in script("fuse.py", *words, *MEAN)
    for folder, name in (("a", visible), ("b", ir)):
        for number in (1, 2):
            write_image(f"{folder}/{number}.png", cv2.imread(name, cv2.IMREAD_UNCHANGED))
    assert script("fuse.py", "a", "b", "-o", "f.avi", *MEAN).count("are they exchanged?") == 1
    assert "so it is with 1 more files like a/1.png" in script("fuse.py", "a", "b", *MEAN)


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_16_bit_without_rounding(tmp_path, monkeypatch, extension):
    """The mean of two 16-bit images to half a unit; in colour to a few."""
    monkeypatch.chdir(tmp_path)
    a, b = np.random.default_rng(0).integers(0, 65536, (2, 20, 30), dtype=np.uint16)
    color = np.dstack([b // 2 + 8000, b // 2, b // 2 + 16000])
    write_image("a.png", a), write_image("b.png", b), write_image("c.png", color)
    script("fuse.py", "a.png", "b.png", "-o", f"f{extension}", "--depth", "16", *MEAN)
    found = cv2.imread(f"f{extension}", cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, (a / 2 + b / 2), atol=0.6)
    np.testing.assert_array_equal(fuse(build_model("mean"), a, b, depth=16), found)
    said = script("fuse.py", "a.png", "c.png", "-o", f"color{extension}", "--depth", "16", *MEAN)
    found, gray = cv2.imread(f"color{extension}", cv2.IMREAD_UNCHANGED), read_image("c.png")[0]
    assert found.shape == (20, 30, 3) and found.dtype == np.uint16 and "16 bit by clamp" in said
    inside = ((found > 0) & (found < 65535)).all(axis=2)
    luma = cv2.cvtColor(found.astype(np.float32), cv2.COLOR_BGR2GRAY)
    np.testing.assert_allclose(luma[inside], (a / 2 + gray / 2)[inside], atol=20)
    assert (np.ptp(found.astype(int), axis=2) > 2000).mean() > 0.9


def test_16_bit_levels():
    ramp = np.linspace(0.2, 0.8, 1000, dtype=np.float32)[None]
    assert quantize(ramp, "clamp", 16)[0, [0, -1]].tolist() == [13107, 52428]
    assert np.ptp(quantize(ramp, "minmax", 16)) == 65535 and len(np.unique(quantize(ramp, "clamp", 16))) == 1000
    chroma = np.random.default_rng(0).integers(100, 156, (2, 8, 8), dtype=np.uint8)
    gray = np.full((8, 8), 120, np.uint8)
    deep = colorize(gray.astype(np.uint16) * 257, chroma)
    np.testing.assert_allclose(deep / 257, colorize(gray, chroma), atol=1)


def test_camera_and_place_are_kept(pair):
    """Those of the source in colour, and not its orientation, which was applied; the pixels are the same."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "CAM", 3
    exif.get_ifd(0x8825)[1] = "N"
    Image.open(pair[1]).transpose(Image.Transpose.ROTATE_180).save("turned.png", exif=exif)
    for extension in (".png", ".jpg"):
        script("fuse.py", *pair, "-o", f"plain{extension}", *MEAN)
        script("fuse.py", pair[0], "turned.png", "-o", f"f{extension}", *MEAN)
        with Image.open(f"f{extension}") as fused:
            fused.load()
            kept = fused.getexif()
            assert kept[0x010F] == "CAM" and kept.get_ifd(0x8825)[1] == "N" and 0x0112 not in kept
        np.testing.assert_array_equal(cv2.imread(f"f{extension}"), cv2.imread(f"plain{extension}"))
