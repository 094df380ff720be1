"""The two images of a pair in one size: stretched to it, cut, or padded."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.images import as_unit, read_image
from utils.data.ranges import Range
from utils.errors import InputError
from utils.opencv import cv2

SIZES = ("a", "b", "max")  # that of A, of B, or of the one with more pixels
WAYS = ("crop", "pad")  # to the aspect ratio and the size of A
PLACES = ("rows at the top", "rows at the bottom", "columns at the left", "columns at the right")
RESIZE = (*SIZES, *WAYS)
ASPECT = 0.02  # aspect ratios that differ by more show different views


class Picture(NamedTuple):
    """An image to fuse: gray (H, W) float32 in [0, 1], and chroma (2, H, W) uint8, None where it has no colour."""

    gray: np.ndarray
    chroma: np.ndarray | None


def read_picture(path: Path, value_range: Range | None = None) -> Picture:
    """An image file as a Picture, by a range of its values if one is given; InputError as `read_image`."""
    gray, chroma = read_image(path, value_range)
    return Picture(as_unit(gray), chroma)


def common_size(size_a: tuple[int, int], size_b: tuple[int, int], resize: str | None, names: str) -> tuple[int, int]:
    """The size (H, W) to fuse sources of two sizes in; InputError, with their `names`, if they do not go together."""
    if size_a == size_b:
        return size_a
    aspect_a, aspect_b = (width / height for height, width in (size_a, size_b))
    if resize not in WAYS and max(aspect_a, aspect_b) > (1 + ASPECT) * min(aspect_a, aspect_b):
        aspects = f"{aspect_a:.3f} and {aspect_b:.3f} times as wide as high"
        raise InputError(f"{names} have unequal shapes, {aspects}; use --resize crop or pad")
    if resize is None:
        sizes = "{} x {} and {} x {}".format(*size_a, *size_b)
        raise InputError(f"{names} have unequal sizes, {sizes} pixels; use --resize a, b or max")
    return {"b": size_b, "max": max(size_a, size_b, key=np.prod)}.get(resize, size_a)


class Fit(NamedTuple):
    """How a source gets into a size: `cut` at its sides, resized to `inner` (H, W), and padded; see PLACES."""

    cut: tuple[int, int, int, int]
    inner: tuple[int, int]
    pad: tuple[int, int, int, int]

    def apply(self, image: np.ndarray, way: int | None = None, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """An image (H, W): means of areas where it shrinks, cubic where it grows, or by `way`."""
        top, bottom, left, right = self.cut
        image = image[top : image.shape[0] - bottom, left : image.shape[1] - right]
        if image.shape != self.inner:
            usual = cv2.INTER_AREA if self.inner[0] < image.shape[0] else cv2.INTER_CUBIC
            image = cv2.resize(image, self.inner[::-1], interpolation=usual if way is None else way)
        return cv2.copyMakeBorder(image, *self.pad, border)

    def picture(self, picture: Picture) -> Picture:
        gray, chroma = picture
        if gray.shape == self.inner and not any(self.pad):
            return picture
        return Picture(
            self.apply(gray).clip(0, 1), None if chroma is None else np.stack([self.apply(c) for c in chroma])
        )

    def remark(self) -> str:
        """What is cut or padded, in words; empty if nothing is."""
        both = zip((self.cut, self.pad), ("cut off", "padded"))
        words = [(", ".join(f"{n} {at}" for n, at in zip(sides, PLACES) if n), done) for sides, done in both]
        return "".join(f"{said} are {done}" for said, done in words if said)


def fit(size: tuple[int, int], target: tuple[int, int], resize: str | None) -> Fit:
    """How a source (H, W) gets into a target: stretched, or about the centre cut or padded to its aspect ratio."""
    (height, width), (rows, columns) = size, target
    kept, inner = size, target
    if resize == "crop":
        kept = min(height, round(width * rows / columns)), min(width, round(height * columns / rows))
    if resize == "pad":
        inner = min(rows, round(columns * height / width)), min(columns, round(rows * width / height))
    return Fit(margins(size, kept), inner, margins(target, inner))


def margins(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int, int, int]:
    rows, columns = np.subtract(outer, inner).tolist()
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture in another size (H, W)."""
    return fit(picture.gray.shape, size, None).picture(picture)


def read_pair(a: Path, b: Path) -> tuple[Picture, Picture]:
    """Two image files of one size; InputError as `read_picture` and `common_size`."""
    one, two = read_picture(a), read_picture(b)
    common_size(one.gray.shape, two.gray.shape, None, f"{a} and {b}")
    return one, two
