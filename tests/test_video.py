"""Videos: frames in order and in step, whole files or the old ones, and a sentence for each that cannot be read."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.test_align import scene
from tests.toy import contents, process, script
from utils.data.images import colorize, to_8bit, write_image
from utils.errors import InputError
from utils.opencv import cv2
from utils.own.fit import Picture
from utils.own.video import CODECS, Frames, InStep, open_both, open_frames, open_output

FRAMES = 12
MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]


def picture(number: int, size=(48, 64)) -> np.ndarray:
    """A moving picture, BGR, with its number as five bits in the upper half."""
    y, x = np.mgrid[: size[0], : size[1]] / 12
    waves = [np.sin(x + number / 5), np.cos(y - number / 4), np.sin(x + y)]
    image = (128 + 60 * np.dstack(waves)).round().astype(np.uint8)
    for bit in range(5):
        image[:24, 12 * bit : 12 * bit + 12] = 220 if number >> bit & 1 else 30
    return image


def numbers(images) -> list[int]:
    """The numbers of pictures."""
    places = [np.s_[4:20, 12 * bit + 3 : 12 * bit + 9] for bit in range(5)]
    return [sum(int(gray[place].mean() > 0.5) << bit for bit, place in enumerate(places)) for gray, _ in images]


def make(path: Path, count: int = FRAMES, fps: float = 25, size=(48, 64), codec: str | None = None) -> Path:
    with open_output(path, fps, codec) as write:
        for number in range(count):
            write(picture(number, size))
    return path


def pictures(frames: Frames) -> list[Picture]:
    return [picture for _, picture in frames.moments()]


@pytest.mark.parametrize("extension", CODECS)
def test_order_rate_and_colour_are_kept(tmp_path, extension):
    frames = open_frames(make(tmp_path / f"a:b{extension}"))  # a colon is no protocol
    images = pictures(frames)
    assert numbers(images) == list(range(FRAMES)) == numbers(pictures(frames))  # twice
    assert (frames.count, frames.size) == (FRAMES, (48, 64)) and frames.fps == pytest.approx(25)
    for number, (gray, chroma) in enumerate(images):
        assert gray.shape == (48, 64) and chroma.shape == (2, 48, 64) and gray.dtype == np.float32
        error = np.mean((colorize(to_8bit(gray, "clamp"), chroma).astype(float) - picture(number)) ** 2)
        assert error < (2 if extension == ".mkv" else 260), number  # gray and chroma are rounded


def test_an_odd_side_gets_a_copy_of_its_last_row(tmp_path):
    gray, chroma = pictures(open_frames(make(tmp_path / "a.mkv", 3, size=(49, 65))))[2]
    expected = np.pad(picture(2, (49, 65)), ((0, 1), (0, 1), (0, 0)), mode="edge")
    np.testing.assert_allclose(colorize(to_8bit(gray, "clamp"), chroma).astype(int), expected, atol=4)


def test_a_folder_is_read_in_natural_order_at_any_depth(tmp_path):
    for number in (10, 9, 2, 11):
        write_image(tmp_path / f"frame{number}.png", picture(number))
    cv2.imwrite(str(tmp_path / "frame1.png"), picture(1)[..., 0].astype(np.uint16) * 257)
    frames = open_frames(tmp_path)
    assert numbers(pictures(frames)) == [1, 2, 9, 10, 11] and pictures(frames)[0].chroma is None
    assert (frames.count, frames.fps, frames.size) == (5, None, (48, 64))
    write_image(tmp_path / "frame12.png", picture(1)[:40])
    with pytest.raises(InputError, match=r"the frames of .* are 48 x 64 and later 40 x 64 pixels"):
        pictures(open_frames(tmp_path))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("text.mp4", lambda path: path.write_text("no video\n" * 99), "holds no frame that can be decoded"),
        ("text.txt", lambda path: path.write_text("no video\n" * 99), "is not a video by its name; use one of .avi, "),
        ("short.mp4", lambda path: path.write_bytes(make(path).read_bytes()[:-2000]), "that was cut short has none"),
        ("folder.mp4", lambda path: path.mkdir(), "folder.mp4 holds no images; give a video, or a folder of frames"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as raised:
        open_frames(tmp_path / name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("a", "b", "rate", "numbers_a", "numbers_b", "note"),
    [
        ((9, 9), (30, 30), None, [*range(9)], [0, 3, 7, 10, 13, 17, 20, 23, 27], "a.mkv (9): 0 repeated, 0 left out"),
        ((9, 9), (30, 30), 30, [round(0.3 * n - 0.01) for n in range(29)] + [8], [*range(30)], "21 repeated, 0 left"),
        ((30, 30), (29.97, 30), None, [*range(30)], [*range(30)], ""),
        ((29.97, 30), (29.98, 30), None, [*range(30)], [*range(30)], ""),  # rates that are read as one
        ((25, 12), (25, 13), None, [*range(12)], [*range(12)], "b.mkv ends later than .*a.mkv; left out, frames: 1"),
        ((10, 10), (20, 19), 5, [0, 2, 4, 6, 8], [0, 4, 8, 12, 16], "a.mkv (10): 0 repeated, 4 left out; .*b.mkv (20)"),
    ],
    ids=["9 beside 30", "at 30", "30 and 29.97", "nearly one", "one more", "fewer of both"],
)
def test_frames_are_paired_by_their_moments(tmp_path, a, b, rate, numbers_a, numbers_b, note):
    for name, (fps, count) in (("a.mkv", a), ("b.mkv", b)):
        make(tmp_path / name, count, fps)
    one, two, fps, _ = open_both(tmp_path / "a.mkv", tmp_path / "b.mkv", None, 25, rate=rate)
    assert fps == pytest.approx(rate or a[0])
    steps = InStep(one, two, fps)
    pairs = list(steps)
    assert (numbers(x for x, _ in pairs), numbers(x for _, x in pairs)) == (numbers_a, numbers_b)
    assert not steps.problem and re.search(note.replace("(", r"\(").replace(")", r"\)"), " ".join(steps.notes))
    assert bool(steps.notes) == bool(note)


def test_a_video_without_a_steady_rate_is_read_by_its_moments(tmp_path):
    moments = [0, 0.1, 0.2, 0.5, 0.6]
    phone = Frames(
        tmp_path, lambda: ((t, Picture(picture(i)[..., 0] / 255, None)) for i, t in enumerate(moments)), 10, 5
    )
    steady = open_frames(make(tmp_path / "b.mkv", 7, 10))
    steps = InStep(phone, steady, 10)
    pairs = list(steps)
    assert numbers(x for x, _ in pairs) == [0, 1, 2, 2, 3, 3, 4] and numbers(x for _, x in pairs) == [*range(7)]
    assert "2 repeated, 0 left out" in steps.notes[0] and not steps.problem


def test_a_folder_has_the_rate_of_the_other(tmp_path):
    near = make(tmp_path / "near.mkv", 4, 29.98)
    one, _, fps, _ = open_both(make(tmp_path / "frames", 4), near, None, 25)
    assert fps == one.fps == pytest.approx(29.98)


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_a_block_that_fails_leaves_the_old_output(tmp_path, name):
    make(tmp_path / name, 5)
    old = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / name, 25) as write:
        write(picture(9))
        1 / 0  # noqa: B018
    assert contents(tmp_path) == old


def test_a_full_disk_is_one_sentence(tmp_path):
    make(tmp_path / "out.mp4", 5)
    old = contents(tmp_path)
    code = """if True:  # a file cannot become longer, as on a full disk
        import pathlib, resource, sys
        import numpy as np
        from utils.errors import run_script
        from utils.own.video import open_output
        def main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            with open_output(pathlib.Path(sys.argv[1]), 25) as write:
                for frame in np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), "uint8"):
                    write(frame)
        run_script(main)"""
    message = process("-c", code, tmp_path / "out.mp4", code=1)
    assert re.search(r"\(it holds \d+ of 60 frames\); is there space, and is the folder yours\?", message), message
    assert contents(tmp_path) == old


@pytest.mark.parametrize(("codec", "fps"), [("zzzz", 25), ("abc", 25), (None, 1e6)])
def test_a_codec_or_rate_that_cannot_be_written_is_one_sentence(tmp_path, codec, fps):
    with pytest.raises(InputError, match=r"cannot write .*a.mp4 with the codec '\w+' at \S+ frames a second; use mp4v"):
        make(tmp_path / "a.mp4", codec=codec, fps=fps)
    assert not list(tmp_path.iterdir())


def test_frames_replace_those_of_the_run_before(tmp_path):
    make(tmp_path / "out", 5)
    others = ["frame_0001.png", "frame_notes.png", "notes.txt"]
    for name in others:
        (tmp_path / "out" / name).write_text("kept")
    make(tmp_path / "out", 3)
    names = ["frame_000001.png", "frame_000002.png", "frame_000003.png", *others]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize(("a", "out"), [("ir.mkv", "fused.mkv"), ("ir", "frames")])
def test_a_video_is_fused_in_order_and_colour(tmp_path, monkeypatch, a, out):
    monkeypatch.chdir(tmp_path)
    make(Path(a)), make(Path("vis.mkv"))
    words = [a, "vis.mkv", "-o", out, *MEAN]
    assert "12 frames of 48 x 64, 25 a second\n1 would be fused" in script("fuse.py", *words, "--list")
    assert f"12 frames fused, 8 bit by clamp: {out}" in script("fuse.py", *words, "video.batch_size=5")
    fused = pictures(open_frames(Path(out)))
    assert numbers(fused) == list(range(FRAMES)) and all(chroma is not None for _, chroma in fused)
    for number, (gray, _) in enumerate(fused):
        np.testing.assert_allclose(255 * gray, cv2.cvtColor(picture(number), cv2.COLOR_BGR2GRAY), atol=2)
    if a == "ir":  # two folders of frames have the rate that is asked for
        script("fuse.py", "ir", "ir", "-o", "f.mkv", "video.fps=12", *MEAN)
        assert open_frames(Path("f.mkv")).fps == 12
        said = script("fuse.py", "ir", "vis.mkv", "-o", "f.mkv", "--fps", "50", *MEAN)
        assert "note: frames are paired by their moments, 50 a second; ir (25): 12 repeated, 0 left out" in said
        assert open_frames(Path("f.mkv")).fps == 50 and len(pictures(open_frames(Path("f.mkv")))) == 24


@pytest.mark.parametrize("coloured", [False, True])
def test_a_gray_video_is_not_called_coloured(tmp_path, monkeypatch, coloured):
    """Though decoders give its channels some levels apart."""
    monkeypatch.chdir(tmp_path)
    for path, gray in (("ir.avi", not coloured), ("vis.mkv", False)):
        with open_output(Path(path), 25) as write:
            for number in range(3):
                write(picture(number)[..., 0] if gray else picture(number))
    assert pictures(open_frames(Path("ir.avi")))[0].chroma is not None
    said = script("fuse.py", "ir.avi", "vis.mkv", "-o", "f.mkv", *MEAN)
    assert ("has colour" in said) == coloured


@pytest.mark.parametrize("cut", [False, True], ids=["fewer frames", "cut short"])
def test_a_video_that_ends_early_is_fused_as_far_and_told(tmp_path, monkeypatch, cut):
    monkeypatch.chdir(tmp_path)
    make(Path("vis.mkv")), make(Path("ir.avi"), FRAMES if cut else 7)
    if cut:
        Path("ir.avi").write_bytes(Path("ir.avi").read_bytes()[: Path("ir.avi").stat().st_size * 2 // 3])
    said = script("fuse.py", "ir.avi", "vis.mkv", "-o", "f.mkv", *MEAN, code=1)
    count = len(pictures(open_frames(Path("f.mkv"))))
    assert (5 <= count < FRAMES if cut else count == 7) and f"{count} frames fused" in said
    assert f"ir.avi ends after {count} frames and vis.mkv goes on; f.mkv has no more" in said


def test_a_video_that_does_not_fit_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("a.mkv"), 3), make(Path("f.avi"), 3)
    make(Path("wide.mkv"), 3, size=(48, 96))
    write_image("still.png", picture(0))
    before = contents(tmp_path)
    for other, out, message in (
        ("wide.mkv", "f.avi", "unequal shapes, 1.333 and 2.000"),
        ("still.png", "f.avi", "still.png is not a video by its name"),
        ("a.mkv", "f.png", "cannot write a video named f.png; use one of .avi, .mkv, .mov, .mp4, or a folder"),
        ("b.mkv", "f.avi", "there is no b.mkv"),
        ("f.avi", "a.mkv", "a.mkv would be written over a source"),
    ):
        for more in ([], ["--list"]):
            assert message in script("fuse.py", "a.mkv", other, "-o", out, *more, *MEAN, code=1)
    assert contents(tmp_path) == before


def test_a_smaller_video_is_resized_and_aligned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = (255 * scene(140, 180)).astype(np.uint8)
    small = cv2.resize(wide[10:130, 10:170], (80, 60), interpolation=cv2.INTER_AREA)
    for path, frame in (("a.mkv", small), ("b.mkv", 255 - wide[14:134, 16:176])):
        with open_output(Path(path), 25) as write:
            write(frame), write(frame)
    said = script("fuse.py", "a.mkv", "b.mkv", "-o", "f.mkv", "--resize", "b", "--align", "translation", *MEAN)
    assert re.search(r"by the first frames: B moved by 7\.\d pixels", said)
    for gray, chroma in pictures(open_frames(Path("f.mkv"))):
        assert chroma is None
        np.testing.assert_allclose(255 * gray[16:-16, 16:-16], 127.5, atol=12)  # beside it A alone
