"""A user's own videos, alignment and texts, through test.py."""

import re

import cv2
import numpy as np
import pytest

from tests.toy import process, script
from utils.own.video import open_frames

MEAN = ["ckpt=null", "net={name: mean}", "device=cpu"]
SIZE = (48, 64)


def scene(count: int = 10) -> list[np.ndarray]:
    """A bright square that moves over a coloured ground, BGR."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.uniform(0, 200, (*SIZE, 3)).astype(np.float32), (0, 0), 4).astype(np.uint8)
    frames = []
    for i in range(count):
        frame = ground.copy()
        frame[10:26, 4 * i : 4 * i + 16] = (90, 110, 180)
        frames.append(frame)
    return frames


def write(path, frames, fps=10.0):
    """A lossless video, or a folder of frames."""
    if path.suffix:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), fps, frames[0].shape[1::-1])
        for frame in frames:
            writer.write(frame)
        writer.release()
    else:
        path.mkdir()
        for i, frame in enumerate(frames):
            cv2.imwrite(str(path / f"frame{i}.png"), frame)
    return path


def read(path) -> list[np.ndarray]:
    """Gray frames of a video or of a folder."""
    return [gray for gray, _ in open_frames(path, 10.0)]


@pytest.mark.parametrize("a", ["ir.avi", "ir_frames"])
@pytest.mark.parametrize("out", ["fused.avi", "fused_frames"])
def test_a_video_is_fused_in_order_and_colour(tmp_path, a, out):
    colour = scene()
    gray = [np.full_like(frame, 10 * i) for i, frame in enumerate(colour)]
    words = ["--a", write(tmp_path / a, gray), "--b", write(tmp_path / "vis.avi", colour), "--out", tmp_path / out]
    output = script("test.py", *words, *MEAN, "video.codec=FFV1", "video.batch_size=3", "video.fps=10")
    assert "10 frames fused, 8 bit by clamp" in output
    frames = open_frames(tmp_path / out, 10.0)
    assert frames.fps == 10 and frames.count == 10
    fused = list(frames)
    for (luma, chroma), one, two in zip(fused, gray, colour, strict=True):
        expected = (cv2.cvtColor(two, cv2.COLOR_BGR2GRAY) + one[..., 0].astype(float)) / 2
        np.testing.assert_allclose(luma, expected, atol=2)
        assert chroma is not None and np.ptp(chroma) > 50
    script("test.py", *words, *MEAN, "video.codec=FFV1", "video.batch_size=1", "video.fps=10")
    for once, again in zip(fused, open_frames(tmp_path / out), strict=True):  # in batches or one by one
        np.testing.assert_array_equal(once[0], again[0])
    assert "10 frames of 48 x 64, 10 a second" in script("test.py", *words, *MEAN, "--list")


def test_two_folders_of_frames_become_a_video(tmp_path):
    a, b = write(tmp_path / "a", scene(3)), write(tmp_path / "b", scene(3))
    words = ["--a", a, "--b", b, "--out", tmp_path / "f.mkv", *MEAN]
    assert "3 frames of 48 x 64, 12 a second" in script("test.py", *words, "--list", "video.fps=12")
    script("test.py", *words, "video.fps=12")
    assert (open_frames(tmp_path / "f.mkv").count, open_frames(tmp_path / "f.mkv").fps) == (3, 12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "f.png"], "cannot write a video named f.png"),
        (["--out", "f.avi", "--text-a", "no.txt", "--text-b", "A street."], "cannot read the text no.txt"),
    ],
    ids=str,
)
def test_list_says_what_a_run_would_say(tmp_path, monkeypatch, words, message):
    video = write(tmp_path / "a.avi", scene(2))
    monkeypatch.chdir(tmp_path)
    output = script("test.py", "--a", video, "--b", video, *words, *MEAN, "--list", code=1)
    assert message in output and "1 of 1 cannot be fused" in output


def test_a_stretch_must_be_asked_for(tmp_path):
    frames = [np.full((*SIZE, 3), 60 + i, np.uint8) for i in range(4)]
    for frame in frames:
        frame[:4] = 100
    a = write(tmp_path / "a.avi", frames)
    words = ["--a", a, "--b", a, "--out", tmp_path / "f.avi", "video.codec=FFV1", *MEAN]
    assert "by clamp" in script("test.py", *words)
    assert max(np.abs(one.astype(int) - two[..., 0]).max() for one, two in zip(read(tmp_path / "f.avi"), frames)) <= 1
    assert "by minmax" in script("test.py", *words, "test.stretch=minmax")
    assert {(frame.min(), frame.max()) for frame in read(tmp_path / "f.avi")} == {(0, 255)}


def test_what_was_decoded_is_kept(tmp_path):
    frames = scene(20)
    whole = write(tmp_path / "vis.avi", frames)
    data = whole.read_bytes()
    (tmp_path / "ir.avi").write_bytes(data[: len(data) // 2])
    words = ["--a", tmp_path / "ir.avi", "--b", whole, "--out", tmp_path / "f.avi", "video.codec=FFV1", *MEAN]
    output = script("test.py", *words, code=1)
    count = len(read(tmp_path / "f.avi"))
    assert 5 < count < 20 and f"ends after {count} of" in output and f"{count} frames fused" in output


def test_a_video_that_does_not_fit_loses_nothing(tmp_path):
    a, b = write(tmp_path / "a.avi", scene(10)), write(tmp_path / "b.avi", scene(9))
    out = write(tmp_path / "f.avi", scene(3))
    before = out.read_bytes()
    still = tmp_path / "g.png"
    cv2.imwrite(str(still), scene(1)[0])
    for other, message in (
        (b, r"a.avi has 10 frames and \S+b.avi 9;"),
        (write(tmp_path / "c.avi", scene(10), fps=12.0), r"a.avi has 10 frames per second and \S+c.avi 12;"),
        (write(tmp_path / "d.avi", [frame[:40] for frame in scene(10)]), r"unequal shapes, 1\.333 and 1\.600"),
        (write(tmp_path / "e.avi", [frame[::2, ::2] for frame in scene(10)]), r"use --resize a, b or max"),
        (still, r"g.png is not a video by its name"),
    ):
        output = script("test.py", "--a", a, "--b", other, "--out", out, *MEAN, code=1)
        assert re.search(rf"error: .*{message}", output) and "Traceback" not in output
        assert out.read_bytes() == before


@pytest.mark.parametrize("out", ["a.avi", "b.avi", "link.avi", "frames"])
def test_a_video_is_not_written_over_its_source(tmp_path, out):
    a, b = write(tmp_path / "a.avi", scene(3)), write(tmp_path / "b.avi", scene(3))
    (tmp_path / "link.avi").symlink_to(a)
    if out == "frames":
        a = write(tmp_path / "frames", scene(3))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for more in ([], ["--list"]):
        words = ["--a", a, "--b", b, "--out", tmp_path / out, *MEAN, *more]
        assert "would write over the source" in script("test.py", *words, code=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_smaller_video_is_resized_and_aligned(tmp_path):
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.uniform(0, 255, (140, 180)).astype(np.float32), (0, 0), 3)
    wide = cv2.cvtColor(cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    a = write(tmp_path / "a.avi", [cv2.resize(wide[10:130, 10:170], (80, 60), interpolation=cv2.INTER_AREA)] * 3)
    b = write(tmp_path / "b.avi", [255 - wide[14:134, 16:176]] * 3)
    words = ["--a", a, "--b", b, "--out", tmp_path / "f.avi", "video.codec=FFV1", *MEAN]
    output = script("test.py", *words, "--resize", "b", "--align", "translation")
    assert re.search(r"by the first frames: B moved by 7\.\d pixels", output)
    for frame in read(tmp_path / "f.avi"):
        np.testing.assert_allclose(frame[12:-12, 12:-12], 127.5, atol=12)


def test_a_video_is_fused_by_one_process(tmp_path):
    a = write(tmp_path / "a.avi", scene(2))
    words = ["--a", a, "--b", a, "--out", tmp_path / "f.avi", *MEAN]
    output = process("-m", "torch.distributed.run", "--nproc_per_node=2", "test.py", *words, code=1)
    assert output.count("error: a video is fused by one process") == 1 and not (tmp_path / "f.avi").exists()


def test_align(tmp_path):
    """B is moved by (5, 3) pixels: with --align the result is what it would be without the move."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.uniform(0, 255, (160, 200)).astype(np.float32), (0, 0), 3)
    wide = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), wide[20:140, 20:180])
    cv2.imwrite(str(tmp_path / "b.png"), 255 - wide[23:143, 25:185])
    words = ["--a", tmp_path / "a.png", "--b", tmp_path / "b.png", "--out", tmp_path / "f.png", *MEAN]
    output = script("test.py", *words, "--align", "translation", "test.stretch=clamp")
    assert "B moved by 5.8 pixels, correlation of edges" in output
    inner = cv2.imread(str(tmp_path / "f.png"), 0)[10:-10, 10:-10]
    np.testing.assert_allclose(inner, 127.5, atol=6)  # an image and its negative
    cv2.imwrite(str(tmp_path / "b.png"), rng.integers(0, 256, (120, 160), dtype=np.uint8))
    assert "a: warning: B is kept as it is" in script("test.py", *words, "--align", "affine")
