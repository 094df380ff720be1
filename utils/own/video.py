"""Videos, and folders of frames in their place: two are read in step, one is written whole or not at all."""

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.images import list_images, read_image, split_color, write_image
from utils.errors import InputError
from utils.files import atomic_folder, exclusive_lock, os_error_as_input_error, replace_durably
from utils.opencv import cv2

CODECS = {".avi": "MJPG", ".mkv": "FFV1", ".mov": "mp4v", ".mp4": "mp4v"}  # that are written; FFV1 loses nothing
VIDEOS = set(CODECS)
NAMES = ", ".join(CODECS)
AHEAD = 4  # frames that are decoded before they are asked for: the limit of memory
ONE_RATE = 5e-4  # rates that differ by a smaller part are one; 30 and 29.97 differ by twice as much
ONE_MOMENT = 0.75  # of the time of a frame: frames closer than this show the same
MISSES = 1000  # failures in a row that end a video; after fewer a frame may follow that needs none of the damaged ones

Image = tuple[np.ndarray, np.ndarray | None]  # gray and chroma, as of `read_image`
Write = Callable[[np.ndarray], None]


class Frames(ABC):
    """Images one at a time, each as `read_image` gives it; an iteration starts with the first.

    Attributes:
        path: the video or folder.
        fps: frames per second, or what `open_frames` was given.
        count: frames; a container may declare it wrongly, as a .mkv does whose sound is longer than its pictures.
        size: (H, W) in pixels.
        decoded, alone: how many the last iteration gave, and how many of them `in_step` left out.
    """

    def __init__(self, path: Path, fps: float | None):
        self.path, self.fps, self.count, self.size = path, fps, 0, (0, 0)
        self.decoded, self.alone, self.lost = 0, 0, ""  # lost: says after the last frame which are missing

    @abstractmethod
    def decode(self) -> Iterator[tuple[float, Image]]:
        """All frames with their moments, in frames since the beginning: where one is missing there is a gap."""

    def __iter__(self) -> Iterator[Image]:
        return (image for _, image in self.ahead())

    def ahead(self) -> Iterator[tuple[float, Image]]:
        """What `decode` gives, from a thread that is up to AHEAD frames before; InputError for another size."""
        self.decoded, self.alone, self.lost, frames = 0, 0, "", self.decode()
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(next, frames, None) for _ in range(AHEAD))
            while (frame := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, frames, None))
                if frame[1][0].shape != self.size:
                    sizes = " and later ".join("{} x {}".format(*size) for size in (self.size, frame[1][0].shape))
                    raise InputError(f"the frames of {self.path} are {sizes} pixels; make them one size")
                self.decoded += 1
                yield frame

    def notes(self) -> list[str]:
        """After an iteration: a sentence for each reason why frames were left out."""
        alone = f"{self.path}: {self.alone} frames have no partner of their moment and are left out"
        return [note for note in (self.lost, alone if self.alone else "") if note]


class Folder(Frames):
    """The images of a folder in natural order, frame2 before frame10."""

    def __init__(self, path: Path, fps: float | None):
        super().__init__(path, fps)
        files = [file for files in list_images(path).values() for file in files]
        self.files = sorted(files, key=lambda file: re.sub(r"\d+", lambda digits: digits[0].zfill(20), file.name))
        if not self.files:
            raise InputError(f"{path} holds no images; give a video, or a folder of frames")
        self.count, self.size = len(self.files), read_image(self.files[0])[0].shape

    def decode(self) -> Iterator[tuple[float, Image]]:
        for number, file in enumerate(self.files):
            yield float(number), read_image(file)


class Video(Frames):
    """The frames of a video in 8 bit, rotated as it says."""

    def __init__(self, path: Path, fps: float | None):
        super().__init__(path, fps)
        if path.suffix.lower() not in VIDEOS:  # FFmpeg takes a .txt for a film of letters
            raise InputError(f"{path} is not a video by its name; use one of {NAMES}, or a folder of frames")
        try:
            with open(path, "rb") as file:
                self.is_avi, declared_size = file.read(4) == b"RIFF", int.from_bytes(file.read(4), "little")
            self.is_short = path.stat().st_size < declared_size
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror})") from error
        capture, self.by_time = self._open(), True
        self.count, own = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
        self.fps = own if own > 0 else fps
        first = next(self.decode(), None)
        if first is None:
            raise InputError(f"{path} holds no frame that can be decoded; a .mp4 or .mov that was cut short has none")
        self.size = first[1][0].shape
        if self.count <= 0:  # an image, or a video that was not closed
            self.recount()
            if self.count == 1:
                raise InputError(f"{path} is one image and no video; give a video, or a folder of frames")

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(str(self.path.resolve()), cv2.CAP_FFMPEG)  # "a:b.mp4" would be of a protocol "a"

    def _grab(self, capture: cv2.VideoCapture) -> Iterator[float]:
        """Go to each frame that can be decoded; its moment.

        Where bytes are damaged OpenCV leaves frames out, or stops, and goes on if it is asked again. Only the times of
        the frames show what is missing; where there are none, the order counts.
        """
        moment, misses, start = -1.0, 0, 0.0
        while misses < MISSES:
            if not capture.grab():
                misses += 1
                continue
            time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 * (self.fps or 0) if self.by_time else -1.0
            if moment < 0 and self.is_avi and self.by_time:  # it starts late where frames are not stored in order
                start = time - misses
            moment = time - start if time - start > moment else moment + 1
            misses = 0
            yield moment

    def decode(self) -> Iterator[tuple[float, Image]]:
        capture, moment, decoded = self._open(), -1.0, 0
        for moment in self._grab(capture):
            success, image = capture.retrieve()
            if success:
                decoded += 1
                yield moment, split_color(image)
        if decoded >= self.count:
            return
        self.lost, until = f"{self.path} lacks {self.count - decoded} of {self.count} frames", round(moment) + 1
        if self.is_avi and until < self.count and not self.is_short:  # its times do not count what is not found
            self.lost += ", and does not say which; A and B may be out of step"
        elif until == decoded:
            self.lost = f"{self.path} ends after {decoded} of {self.count} declared frames: the rest cannot be decoded"

    def recount(self) -> None:
        """Set `count` to the frames that can be decoded, in a pass over the video; from now on their order counts."""
        grabbed = tqdm(self._grab(self._open()), f"counting frames of {self.path.name}", delay=3, leave=False)
        self.count, self.by_time = sum(1 for _ in grabbed), False


def open_frames(path: str | Path, fps: float | None = None) -> Frames:
    """Open a video, or a folder of images; `fps` is for one without a rate. InputError if there is no frame."""
    path = Path(path)
    return Folder(path, fps) if path.is_dir() else Video(path, fps)


def check_together(a: Frames, b: Frames) -> None:
    """InputError for unequal rates or counts; counts that are declared unequal are counted first."""
    if a.fps and b.fps and abs(a.fps - b.fps) > ONE_RATE * a.fps:
        raise InputError(f"{a.path} has {a.fps:.6g} frames per second and {b.path} {b.fps:.6g}; convert one of them")
    if a.count != b.count:
        for video in (side for side in (a, b) if isinstance(side, Video)):
            video.recount()
    if a.count != b.count:
        raise InputError(f"{a.path} has {a.count} frames and {b.path} {b.count}; cut them to the same moments")


def in_step(a: Frames, b: Frames) -> Iterator[tuple[Image, Image]]:
    """The images of A and B of each moment that both have; ends with the shorter one."""
    with closing(a.ahead()) as frames_a, closing(b.ahead()) as frames_b:
        of_a, of_b = next(frames_a, None), next(frames_b, None)
        while of_a and of_b:
            early, late = of_a[0] - of_b[0] <= -ONE_MOMENT, of_a[0] - of_b[0] >= ONE_MOMENT
            a.alone, b.alone = a.alone + early, b.alone + late
            if not (early or late):
                yield of_a[1], of_b[1]
            of_a, of_b = of_a if late else next(frames_a, None), of_b if early else next(frames_b, None)


def open_output(path: str | Path, fps: float, codec: str | None = None) -> AbstractContextManager[Write]:
    """`write_frames` for a folder and for a name without extension, else `write_video`."""
    path = Path(path)
    return write_frames(path) if path.is_dir() or not path.suffix else write_video(path, fps, codec)


def check_output(path: Path) -> None:
    """InputError for a name that is neither that of a folder nor of a video."""
    if path.suffix.lower() not in {*VIDEOS, ""} and not path.is_dir():
        raise InputError(f"cannot write a video named {path}; use one of {NAMES}, or a folder")


@contextmanager
def write_frames(folder: Path) -> Iterator[Write]:
    """As `write_video`, but as frame_000001.png and so on; earlier ones of this name are replaced, other files kept."""
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder, or a video with one of {NAMES}")
    ours = re.compile(r"frame_\d{6}\.png")
    numbers, old = count(1), [path.name for path in folder.glob("frame_*") if ours.fullmatch(path.name)]
    with atomic_folder(folder, outdated=old) as staged:
        yield lambda image: write_image(staged / f"frame_{next(numbers):06d}.png", image)


@contextmanager
def write_video(path: Path, fps: float, codec: str | None = None) -> Iterator[Write]:
    """Write a video when the block has ended: whole, or not at all. The block gets a function that takes each frame.

    A frame is (H, W) gray or (H, W, 3) BGR uint8, all of one size. OpenCV cuts the last row or column of an odd side,
    with any codec; such a side gets one more, a copy of the last.

    Args:
        path: one of VIDEOS by its extension.
        fps: frames per second, 0.1 to 1000.
        codec: its four letters, e.g. FFV1, which loses nothing; None for that of CODECS.

    Raises:
        InputError: another extension, rate or codec; another run is writing `path`; no frames, or no space for them.
    """
    check_output(path)
    path, extension = path.resolve(), path.suffix.lower()
    if not 0.1 <= fps <= 1000:
        raise InputError(f"cannot write a video of {fps} frames per second; give a rate from 0.1 to 1000")
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary, codec = folder / path.name, codec or CODECS[extension]  # OpenCV goes by the extension
    writer, size, written = cv2.VideoWriter(), (0, 0), 0

    def write(image: np.ndarray) -> None:
        nonlocal size, written
        image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        image = cv2.copyMakeBorder(image, 0, image.shape[0] % 2, 0, image.shape[1] % 2, cv2.BORDER_REPLICATE)
        if not written:
            size, code = image.shape[:2], cv2.VideoWriter_fourcc(*(codec if len(codec) == 4 else "????"))
            if not writer.open(str(temporary), cv2.CAP_FFMPEG, code, fps, size[::-1]):
                advice = f"use {CODECS[extension]}, or FFV1 in a .mkv, and see that there is space"
                raise InputError(f"cannot write {path} with the codec {codec!r}; {advice}")
        writer.write(image)
        written += 1

    with exclusive_lock(path):
        try:
            with os_error_as_input_error(path):
                folder.mkdir()
            yield write
            writer.release()
            there = 0  # frames that are in the file: OpenCV does not say that a disk is full
            with suppress(InputError):
                video = Video(temporary, None)
                video.recount()  # a .avi declares all of them, too, where the disk is full
                there = video.count if video.size == size else 0
            if not there == written > 0:
                reason = f"it holds {there} of {written} frames"
                raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?")
            with os_error_as_input_error(path):
                replace_durably(temporary, path)
        finally:
            writer.release()
            shutil.rmtree(folder, ignore_errors=True)
