"""Videos: frames in order and in step, whole files or the old ones, and a sentence for each that cannot be read."""

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import wave
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.toy import ROOT, process
from utils.data.images import colorize, write_image
from utils.errors import InputError
from utils.files import exclusive_lock
from utils.opencv import cv2
from utils.own import video
from utils.own.video import AHEAD, CODECS, check_together, in_step, open_frames, open_output

FRAMES = 30
LIMITED = (  # a file cannot become longer, as on a full disk
    "import resource, sys, numpy as np; from pathlib import Path; from utils.own.video import open_output;"
    "from utils.errors import run_script; frames = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), 'uint8');"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
    "def main():\n"
    "    with open_output(sys.argv[1], 25) as write:\n"
    "        [write(frame) for frame in frames]\n"
    "run_script(main)"
)


def picture(number: int, size=(48, 64)) -> np.ndarray:
    """A moving picture, BGR, with its number as five bits in the upper half."""
    y, x = np.mgrid[: size[0], : size[1]] / 12
    waves = [np.sin(x + number / 5), np.cos(y - number / 4), np.sin(x + y)]
    image = (128 + 60 * np.dstack(waves)).round().astype(np.uint8)
    for bit in range(5):
        image[:24, 12 * bit : 12 * bit + 12] = 220 if number >> bit & 1 else 30
    return image


def numbers(images) -> list[int]:
    """The numbers of pictures, given as gray and chroma."""
    places = [np.s_[4:20, 12 * bit + 3 : 12 * bit + 9] for bit in range(5)]
    return [sum(int(gray[place].mean() > 125) << bit for bit, place in enumerate(places)) for gray, _ in images]


def make(path: Path, count: int = FRAMES, fps: float = 25, size=(48, 64), codec: str | None = None) -> Path:
    with open_output(path, fps, codec) as write:
        for number in range(count):
            write(picture(number, size))
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-10)))


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def places(path: Path) -> list[int]:
    """Where the frames of an MJPG video begin, and where the last ends."""
    data = path.read_bytes()
    begins = [match.start() for match in re.finditer(rb"\xff\xd8\xff", data)]
    assert len(begins) == FRAMES
    return [*begins, data.index(b"\xff\xd9", begins[-1]) + 2]


def damage(path: Path, *which: tuple[int, int], header: int = 0) -> None:
    """Fill runs of frames of an MJPG video with zeros, and `header` bytes before each; a frame has 8 in a .avi."""
    at = places(path)
    for first, last in which:
        begin, end = at[first] - header, at[last + 1] - (8 if path.suffix == ".avi" else 0)
        overwrite(path, begin, bytes(end - begin))


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """A video of 30 frames of each container, by extension."""
    folder = tmp_path_factory.mktemp("videos")
    return {extension: make(folder / f"a{extension}") for extension in CODECS}


@pytest.fixture
def copy(made, tmp_path) -> Callable[[str, str], Path]:
    """A function that copies the video of an extension to a name."""
    return lambda extension, name: Path(shutil.copy(made[extension], tmp_path / name))


@pytest.mark.parametrize("extension", CODECS)
def test_order_and_colour_are_kept(made, extension):
    frames = open_frames(made[extension])
    images = list(frames)
    assert numbers(images) == list(range(FRAMES)) == numbers(frames)  # twice
    assert (frames.count, frames.decoded, frames.size, frames.notes()) == (FRAMES, FRAMES, (48, 64), [])
    assert frames.fps == pytest.approx(25)
    for number, (gray, chroma) in enumerate(images):
        assert gray.shape == (48, 64) and chroma.shape == (2, 48, 64) and gray.dtype == chroma.dtype == np.uint8
        quality = psnr(colorize(gray, chroma), picture(number))
        assert quality > (45 if extension == ".mkv" else 24), number  # gray and chroma are rounded


def test_the_default_of_mkv_loses_nothing(made):
    capture = cv2.VideoCapture(str(made[".mkv"]))
    for number in range(FRAMES):
        assert (capture.read()[1] == picture(number)).all(), number


@pytest.mark.parametrize("extension", CODECS)
@pytest.mark.parametrize("size", [(49, 65), (48, 65), (49, 64)])
def test_an_odd_side_gets_a_copy_of_its_last_row(tmp_path, extension, size):
    frames = open_frames(make(tmp_path / f"a{extension}", 3, size=size))
    even = tuple(side + side % 2 for side in size)
    assert frames.size == even
    expected = np.pad(picture(2, size), ((0, even[0] - size[0]), (0, even[1] - size[1]), (0, 0)), mode="edge")
    gray, chroma = list(frames)[2]
    assert psnr(colorize(gray, chroma)[-4:, -4:], expected[-4:, -4:]) > 24


@pytest.mark.parametrize("extension", CODECS)
def test_one_frame_is_a_video(tmp_path, extension):
    assert numbers(open_frames(make(tmp_path / f"a{extension}", 1))) == [0]


def test_gray_stays_gray(tmp_path):
    with open_output(tmp_path / "a.mkv", 10) as write:
        write(picture(3)[..., 0])
    (gray, chroma), *_ = open_frames(tmp_path / "a.mkv")
    assert chroma is None and (gray == picture(3)[..., 0]).all()


def test_a_codec_can_be_chosen(tmp_path):
    path = make(tmp_path / "a.avi", 3, codec="FFV1")
    assert cv2.VideoCapture(str(path)).read()[1].tobytes() == picture(0).tobytes()


def test_a_folder_is_read_in_natural_order_at_any_depth(tmp_path):
    for number in (10, 9, 2, 11):
        write_image(tmp_path / f"frame{number}.png", picture(number))
    cv2.imwrite(str(tmp_path / "frame1.png"), picture(1)[..., 0].astype(np.uint16) * 257)
    frames = open_frames(tmp_path, 12)
    images = list(frames)
    assert numbers([(images[0][0] / 257, None), *images[1:]]) == [1, 2, 9, 10, 11]
    assert images[0][0].dtype == np.uint16 and images[0][1] is None
    assert (frames.count, frames.fps, frames.size, frames.decoded) == (5, 12, (48, 64), 5)


def test_a_folder_with_an_image_of_another_size_is_one_sentence(tmp_path):
    write_image(tmp_path / "1.png", picture(1))
    write_image(tmp_path / "2.png", picture(1)[:40])
    with pytest.raises(InputError, match=r"the frames of .* are 48 x 64 and later 40 x 64 pixels"):
        list(open_frames(tmp_path))


def test_few_frames_are_in_memory(made, monkeypatch):
    alive, most, split = [], 0, video.split_color

    def watched(image):
        gray, chroma = split(image)
        alive.append(weakref.ref(gray))
        return gray, chroma

    monkeypatch.setattr(video, "split_color", watched)
    frames = open_frames(made[".mkv"])
    alive.clear()
    for image in frames:
        time.sleep(0.01)  # the thread decodes as much as it may
        most = max(most, sum(ref() is not None for ref in alive))
        del image
    assert len(alive) == FRAMES and AHEAD < most <= AHEAD + 2


def test_frames_can_be_left_before_the_end(made):
    for image in open_frames(made[".avi"]):
        assert numbers([image]) == [0]
        break


def silence(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))


NO_FRAME, ONE_IMAGE = "holds no frame that can be decoded", "is one image and no video; give a video, or a folder"
NO_NAME = "is not a video by its name; use one of .avi, .mkv, .mov, .mp4, or a folder of frames"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.mp4", lambda path: None, r"cannot read .*missing.mp4 \(No such file or directory\)"),
        ("empty.mp4", lambda path: path.touch(), NO_FRAME),
        ("text.mp4", lambda path: path.write_text("no video\n" * 99), NO_FRAME),
        ("text.txt", lambda path: path.write_text("no video\n" * 99), NO_NAME),
        ("sound.wav", silence, NO_NAME),
        ("sound.mp4", silence, NO_FRAME),
        ("noise.avi", lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), NO_FRAME),
        ("still.png", lambda path: cv2.imwrite(str(path), picture(0)), NO_NAME),
        ("still.mp4", lambda path: path.write_bytes(cv2.imencode(".jpg", picture(0))[1]), ONE_IMAGE),
        ("still.avi", lambda path: path.write_bytes(cv2.imencode(".png", picture(0))[1]), ONE_IMAGE),
        ("folder.mp4", lambda path: path.mkdir(), "folder.mp4 holds no images; give a video, or a folder of frames"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as raised:
        open_frames(tmp_path / name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("extension", CODECS)
def test_a_video_without_frames_is_one_sentence(tmp_path, extension):
    path = str(tmp_path / f"none{extension}")
    cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*CODECS[extension]), 25.0, (64, 48)).release()
    with pytest.raises(InputError, match=NO_FRAME):
        open_frames(path)


@pytest.mark.parametrize("extension", [".mp4", ".mov"])
def test_a_short_mp4_is_lost_as_a_whole(copy, extension):
    path = copy(extension, f"short{extension}")
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(InputError, match="a .mp4 or .mov that was cut short has none"):
        open_frames(path)


@pytest.mark.parametrize("extension", [".avi", ".mkv"])
def test_of_a_short_video_all_is_read_that_is_there(copy, made, extension):
    path = copy(extension, f"short{extension}")
    os.truncate(path, places(path)[20] if extension == ".avi" else path.stat().st_size * 2 // 3)
    frames, whole = open_frames(path), open_frames(made[extension])
    check_together(frames, whole)  # both declare 30
    pairs = list(in_step(frames, whole))
    decoded = len(pairs)
    assert decoded == 20 if extension == ".avi" else 15 <= decoded <= 21
    assert numbers(a for a, _ in pairs) == numbers(b for _, b in pairs) == list(range(decoded))
    assert frames.decoded == decoded and whole.notes() == []
    ends = f"{path} ends after {decoded} of {FRAMES} declared frames: the rest cannot be decoded"
    assert frames.notes() == [ends]


def test_the_partner_of_a_damaged_frame_is_left_out(made, tmp_path):
    path = make(tmp_path / "a.mov", codec="MJPG")
    damage(path, (0, 0), (12, 13))
    damaged, whole = open_frames(path), open_frames(made[".mkv"])
    check_together(damaged, whole)
    left = [number for number in range(FRAMES) if number not in (0, 12, 13)]
    for a, b in ((damaged, whole), (whole, damaged)):
        pairs = list(in_step(a, b))
        assert numbers(a for a, _ in pairs) == numbers(b for _, b in pairs) == left
        assert (damaged.decoded, damaged.alone, whole.decoded, whole.alone) == (27, 0, 30, 3)
    assert damaged.notes() == [f"{path} lacks 3 of 30 frames"]
    assert whole.notes() == [f"{made['.mkv']}: 3 frames have no partner of their moment and are left out"]


def test_a_damaged_frame_of_an_avi_counts(copy, made):
    path = copy(".avi", "a.avi")
    damage(path, (0, 0), (12, 12))
    frames = open_frames(path)
    pairs = list(in_step(frames, open_frames(made[".mkv"])))
    left = [number for number in range(FRAMES) if number not in (0, 12)]
    assert numbers(a for a, _ in pairs) == numbers(b for _, b in pairs) == left
    assert frames.notes() == [f"{path} lacks 2 of 30 frames"]


def test_an_avi_that_hides_its_damage_is_told(copy):
    path = copy(".avi", "a.avi")
    damage(path, (12, 13), header=8)
    frames = open_frames(path)
    assert numbers(frames) == [*range(12), *range(14, FRAMES)]
    hidden = f"{path} lacks 2 of 30 frames, and does not say which; A and B may be out of step"
    assert frames.notes() == [hidden]


def declare(path: Path, count: int) -> None:
    """Write another number of frames into the header of a .avi."""
    at = path.read_bytes().index(b"strh") + 40
    assert struct.unpack("<I", path.read_bytes()[at : at + 4]) == (FRAMES,)
    overwrite(path, at, struct.pack("<I", count))


@pytest.mark.parametrize("declared", [FRAMES - 1, FRAMES + 1, 0])
def test_a_wrong_declared_count_is_counted(copy, made, declared):
    path = copy(".avi", "a.avi")
    declare(path, declared)
    frames, whole = open_frames(path), open_frames(made[".mp4"])
    assert frames.count == (declared or FRAMES)
    check_together(frames, whole)
    assert frames.count == FRAMES and len(list(in_step(frames, whole))) == FRAMES
    assert frames.notes() == whole.notes() == []


@pytest.mark.parametrize(
    ("declared", "told"),
    [(FRAMES, lambda time: (time + 80) % (40 * FRAMES + 40)), (FRAMES + 1, lambda time: time + 40 * (time > 0))],
    ids=["B-frames", "from .mp4"],
)
def test_odd_times_of_a_whole_avi_do_not_matter(copy, made, monkeypatch, declared, told):
    """As FFmpeg writes them, and OpenCV does not: late and not in order at the end; an empty chunk after the first."""
    path, capture_class = copy(".avi", "a.avi"), cv2.VideoCapture
    declare(path, declared)

    class Capture:
        def __init__(self, name, backend):
            self.capture, self.is_avi = capture_class(name, backend), name.endswith(".avi")
            self.grab, self.retrieve = self.capture.grab, self.capture.retrieve

        def get(self, key):
            value = self.capture.get(key)
            return told(value) if self.is_avi and key == cv2.CAP_PROP_POS_MSEC else value

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    frames, whole = open_frames(path), open_frames(made[".mp4"])
    check_together(frames, whole)
    for pairs in (in_step(frames, whole), in_step(whole, frames)):
        pairs = list(pairs)
        assert numbers(a for a, _ in pairs) == numbers(b for _, b in pairs) == list(range(FRAMES))
    assert frames.notes() == whole.notes() == []


def test_pairs_that_do_not_go_together_are_one_sentence(made, tmp_path):
    whole = open_frames(made[".avi"])
    with pytest.raises(InputError, match=r"a.avi has 30 frames and .*short.avi 20; cut them"):
        check_together(whole, open_frames(make(tmp_path / "short.avi", 20)))
    ntsc, film = (open_frames(make(tmp_path / f"{fps}.mp4", 4, fps)) for fps in (29.97, 30))
    with pytest.raises(InputError, match=r"has 29.97 frames per second and .*30.mp4 30; convert one of them"):
        check_together(ntsc, film)
    check_together(ntsc, open_frames(make(tmp_path / "a.mkv", 4, 29.98)))
    with open_output(tmp_path / "frames", 25) as write:
        for number in range(4):
            write(picture(number))
    check_together(ntsc, open_frames(tmp_path / "frames"))  # a folder has no rate


def test_damaged_videos_print_nothing(copy, tmp_path):
    for extension in CODECS:
        path = copy(extension, f"a{extension}")
        overwrite(path, path.stat().st_size // 3, np.random.default_rng(0).bytes(200))
    code = (
        f"from utils.own.video import open_frames\nfor x in {list(CODECS)}:\n    list(open_frames('{tmp_path}/a' + x))"
    )
    assert process("-c", code) == ""


def content(path: Path) -> bytes:
    """The bytes of a file, or of all frames of a folder."""
    return b"".join(file.read_bytes() for file in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out"])
def test_a_block_that_fails_leaves_the_old_output(tmp_path, name):
    old = content(make(tmp_path / name, 5))
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / name, 25) as write:
        write(picture(9))
        1 / 0  # noqa: B018
    assert content(tmp_path / name) == old and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out"])
def test_a_kill_leaves_the_old_output(tmp_path, name):
    old = content(make(tmp_path / name, 5))
    code = (
        "import sys, time, numpy as np; from utils.own.video import open_output\n"
        "with open_output(sys.argv[1], 25) as write:\n"
        "    for _ in range(200): write(np.random.default_rng(0).integers(0, 256, (48, 64, 3), 'uint8'))\n"
        "    print('written', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "written\n"
        with pytest.raises(InputError, match="another run is writing"), open_output(tmp_path / name, 25):
            pass
        run.send_signal(signal.SIGKILL)
    assert content(tmp_path / name) == old and len(list(tmp_path.iterdir())) > 1
    make(tmp_path / name, 6)  # removes what the kill left
    assert open_frames(tmp_path / name).count == 6 and [path.name for path in tmp_path.iterdir()] == [name]


def test_two_writers_of_a_video_are_one_sentence(tmp_path):
    with (
        exclusive_lock(tmp_path / "a.mp4"),
        pytest.raises(InputError, match=r"another run is writing .*a\.mp4"),
        open_output(tmp_path / "a.mp4", 25),
    ):
        pass


@pytest.mark.parametrize("extension", CODECS)
def test_a_full_disk_is_one_sentence(tmp_path, extension):
    path = make(tmp_path / f"out{extension}", 5)
    old = path.read_bytes()
    message = process("-c", LIMITED, path, code=1)
    assert re.search(r"\(it holds \d+ of 60 frames\); is there space, and is the folder yours\?", message), message
    assert path.read_bytes() == old and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("codec", ["zzzz", "av01", "abc", "MJPGMJPG"])
def test_a_codec_that_cannot_be_written_is_one_sentence(tmp_path, codec):
    with pytest.raises(
        InputError, match=rf"cannot write .*a.mp4 with the codec '{codec}'; use mp4v, or FFV1 in a .mkv, and"
    ):
        make(tmp_path / "a.mp4", codec=codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), 90000])
def test_a_rate_that_cannot_be_written_is_one_sentence(tmp_path, fps):
    with pytest.raises(InputError, match=f"cannot write a video of {fps} frames per second; give a rate"):
        make(tmp_path / "a.mp4", fps=fps)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.txt", "a.mp3"])
def test_other_extensions_are_one_sentence(tmp_path, name):
    with pytest.raises(
        InputError, match=rf"cannot write a video named .*{name}; use one of .avi, .mkv, .mov, .mp4, or"
    ):
        make(tmp_path / name)


def test_an_empty_block_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="it holds 0 of 0 frames"), open_output(tmp_path / "a.mp4", 25):
        pass
    assert not list(tmp_path.iterdir())


def test_frames_replace_those_of_the_run_before(tmp_path):
    make(tmp_path / "out", 5)
    others = ["frame_0001.png", "frame_notes.png", "notes.txt"]
    for name in others:
        (tmp_path / "out" / name).write_text("kept")
    make(tmp_path / "out", 3)
    names = ["frame_000001.png", "frame_000002.png", "frame_000003.png", *others]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in others:
        (tmp_path / "out" / name).unlink()
    assert numbers(open_frames(tmp_path / "out")) == [0, 1, 2]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file; name a folder, or a video with one of .avi"):
        make(tmp_path / "file")


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert numbers(open_frames(make(Path("ir:1.mkv"), 2))) == [0, 1]
