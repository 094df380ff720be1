"""Videos, and folders of frames in their place: two are read by the moments of their frames, one is written whole."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

import numpy as np

from utils.data.decoded import Decoded
from utils.data.images import as_unit, list_images, split_color, write_image
from utils.data.ranges import Range, to_levels
from utils.errors import InputError
from utils.files import atomic_folder, os_error_as_input_error, whole_file
from utils.opencv import cv2
from utils.own.fit import Picture, common_size, read_picture
from utils.remarks import remark

CODECS = {".avi": "MJPG", ".mkv": "FFV1", ".mov": "mp4v", ".mp4": "mp4v"}  # that are written; FFV1 loses nothing
VIDEOS = ", ".join(CODECS)
AHEAD = 4  # frames that are decoded before they are asked for: the limit of memory
LATE, LATE_SHARE = 1.0, 0.05  # seconds, and the share of the longer one, by which sources may end apart

Moment = tuple[float | None, Picture]  # a frame and when it is shown, in seconds from the first; None: by its number
Write = Callable[[np.ndarray], None]


def is_video(path: str | Path) -> bool:
    return Path(path).suffix.lower() in CODECS


class Frames:
    """The pictures of a video or a folder, one at a time; `moments` starts with the first.

    Attributes:
        fps: frames per second, None for a folder until `open_both` has given it one.
        count: frames as the video declares them, which may be wrong.
        size: (H, W) in pixels, of the first.
    """

    def __init__(self, path: Path, decode: Callable[[], Iterator[Moment]], fps: float | None, count: int):
        self.path, self.decode, self.fps, self.count = path, decode, fps, count
        first = next(decode(), None)
        if first is None:
            raise InputError(f"{path} holds no frame that can be decoded; a .mp4 or .mov that was cut short has none")
        self.size = first[1].gray.shape

    def expected(self, fps: float) -> int:
        """How many frames it gives at another rate, if it has as many as it declares."""
        return round(self.count * fps / self.fps)

    def moments(self) -> Iterator[Moment]:
        """The pictures and their moments, from a thread that is up to AHEAD before; InputError for another size."""
        frames = self.decode()
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(next, frames, None) for _ in range(AHEAD))
            while (found := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, frames, None))
                picture = found[1]
                if picture.gray.shape != self.size:
                    sizes = " and later ".join("{} x {}".format(*size) for size in (self.size, picture.gray.shape))
                    raise InputError(f"the frames of {self.path} are {sizes} pixels; make them one size")
                yield found


def open_frames(path: Path, value_range: Range | None = None) -> Frames:
    """A video, or a folder of images in natural order, frame2 before frame10; InputError if nothing can be decoded."""
    if path.is_dir():
        files = frame_files(path)
        if not files:
            raise InputError(f"{path} holds no images; give a video, or a folder of frames")
        return Frames(path, lambda: ((None, read_picture(file, value_range)) for file in files), None, len(files))
    if not is_video(path):  # FFmpeg takes a .txt for a film of letters
        raise InputError(f"{path} is not a video by its name; use one of {VIDEOS}, or a folder of frames")
    capture = open_capture(path)
    fps, declared = (capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    return Frames(path, lambda: decode_video(path, value_range), fps if fps > 0 else None, max(0, int(declared)))


def frame_files(folder: Path, pattern: str = "*") -> list[Path]:
    files = [file for files in list_images(folder, pattern).values() for file in files]
    return sorted(files, key=lambda file: re.sub(r"\d+", lambda digits: digits[0].zfill(20), file.name))


def open_capture(path: Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)  # "a:b.mp4" would be of a protocol "a"


def raw_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) BGR uint8 of a video, rotated as it says, up to the first that cannot be decoded."""
    return (frame for _, frame in timed_frames(open_capture(path)))


def timed_frames(capture: cv2.VideoCapture) -> Iterator[tuple[float, np.ndarray]]:
    """Each frame and its moment, as the file tells it: a phone's video has no steady rate."""
    start = None
    while (frame := capture.read()[1]) is not None:
        now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        start = now if start is None else start
        yield now - start, frame


def decode_video(path: Path, value_range: Range | None = None) -> Iterator[Moment]:
    """The frames of a video as Pictures, by a range of their 8-bit values if one is given."""
    for moment, frame in timed_frames(open_capture(path)):
        gray, chroma = split_color(to_levels(Decoded(frame, (0, 255)), value_range, path, remark))
        yield moment, Picture(as_unit(gray), chroma)


def open_both(
    a: Path,
    b: Path,
    resize: str | None,
    fps: float,
    ranges: Sequence[Range | None] = (None, None),
    rate: float | None = None,
) -> tuple[Frames, Frames, float, tuple[int, int]]:
    """Two videos or folders, the rate of the result, and their common size; InputError if they do not go together.

    Args:
        fps: of folders, where neither is a video.
        ranges: of the values of A and of B.
        rate: of the result; None for that of A.
    """
    one, two = map(open_frames, (a, b), ranges)
    one.fps = one.fps or two.fps or fps
    two.fps = two.fps or one.fps
    return one, two, rate or one.fps, common_size(one.size, two.size, resize, f"{a} and {b}")


class Track:
    """A source as a row of moments passes over it.

    Attributes:
        read: frames that were shown or left out so far.
        repeated, left_out: of them.
        end: when the last one read ends, seconds.
        after: the frame after it and its moment; None where there is none.
    """

    def __init__(self, frames: Frames):
        self.path, self.fps, self.step, self.moments = frames.path, frames.fps, 1 / frames.fps, frames.moments()
        self.read, self.repeated, self.left_out, self.end, self.used = 0, 0, 0, 0.0, 1
        self.now = self.after = 0.0, next(self.moments)[1]
        self.advance()

    def advance(self) -> None:
        self.left_out += not self.used
        self.now, self.used, self.read = self.after, 0, self.read + 1
        self.end = self.now[0] + self.step
        self.after = next(self.moments, None)
        if self.after and not (self.after[0] or 0) > self.now[0]:  # the source does not tell them
            self.after = self.end, self.after[1]

    def seek(self, moment: float) -> None:
        """Go to the frame that is nearest to a moment; the earlier one where two are about as near."""
        while self.after and self.after[0] - moment < moment - self.now[0] - self.step / 8:
            self.advance()

    def take(self) -> Picture:
        self.repeated += self.used
        self.used = 1
        return self.now[1]


class InStep:
    """Iterates over the pictures of A and B at the moments of a rate, up to the end of the one that ends first.

    Attributes, after the iteration:
        notes: in a sentence each, which frames were repeated or left out, and which of the two goes on a little.
        problem: which of the two ends long before the other, in a sentence; else empty.
    """

    def __init__(self, a: Frames, b: Frames, fps: float):
        self.frames, self.fps, self.notes, self.problem = (a, b), fps, [], ""

    def __iter__(self) -> Iterator[tuple[Picture, Picture]]:
        one, two = tracks = [Track(frames) for frames in self.frames]
        for number in count():
            for track in tracks:
                track.seek(number / self.fps)
            if any((number + 0.5) / self.fps > track.end and not track.after for track in tracks):
                break
            yield one.take(), two.take()
        if any(track.repeated or track.left_out for track in tracks):
            counts = (f"{t.path} ({t.fps:g}): {t.repeated} repeated, {t.left_out} left out" for t in tracks)
            self.notes.append(f"frames are paired by their moments, {self.fps:g} a second; {'; '.join(counts)}")
        short, long = sorted(tracks, key=lambda track: (track.after is not None, track.end))
        while long.after and long.end <= short.end + LATE:
            long.advance()
        late = long.end - short.end
        if late > 1.5 * max(one.step, two.step) and (late > LATE or late > LATE_SHARE * long.end):
            self.problem = f"{short.path} ends after {short.read} frames and {long.path} goes on"
        elif more := round(late / long.step):
            self.notes.append(f"{long.path} ends later than {short.path}; left out, frames: {more}")


def open_output(path: Path, fps: float, codec: str | None = None) -> AbstractContextManager[Write]:
    """`write_video` for the name of a video, else `write_frames`."""
    return write_video(path, fps, codec) if is_video(path) and not path.is_dir() else write_frames(path)


@contextmanager
def write_frames(folder: Path) -> Iterator[Write]:
    """As `write_video`, but as frame_000001.png and so on; earlier ones of this name are replaced, other files kept."""
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
        codec: its four letters, e.g. FFV1, which loses nothing; None for that of CODECS.

    Raises:
        InputError: a rate or codec that OpenCV does not write, no space.
    """
    usual, written = CODECS[path.suffix.lower()], 0
    codec = codec or usual
    with whole_file(path) as whole:
        temporary = whole.with_name(whole.name + path.suffix)  # OpenCV goes by the extension
        writer = cv2.VideoWriter()

        def write(image: np.ndarray) -> None:
            nonlocal written
            image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            image = cv2.copyMakeBorder(image, 0, image.shape[0] % 2, 0, image.shape[1] % 2, cv2.BORDER_REPLICATE)
            if not written:
                code = cv2.VideoWriter_fourcc(*f"{codec:4.4}")
                if not writer.open(str(temporary), cv2.CAP_FFMPEG, code, fps, image.shape[1::-1]):
                    advice = f"use {usual}, or FFV1 in a .mkv, and see that there is space"
                    raise InputError(
                        f"cannot write {path} with the codec {codec!r} at {fps:g} frames a second; {advice}"
                    )
            writer.write(image)
            written += 1

        try:
            yield write
            writer.release()
            capture = open_capture(temporary)
            there = sum(1 for _ in iter(capture.grab, False))  # OpenCV does not say that a disk is full
            if not there == written > 0:
                reason = f"it holds {there} of {written} frames"
                raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?")
            with os_error_as_input_error(path):
                os.replace(temporary, whole)
        finally:
            writer.release()
            temporary.unlink(missing_ok=True)
