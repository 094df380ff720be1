"""The two images of a pair in one size."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.images import as_unit, read_image
from utils.data.ranges import Range
from utils.errors import InputError
from utils.opencv import cv2

RESIZE = ("a", "b", "max")  # the size of A, of B, or of the one with more pixels
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
    if max(aspect_a, aspect_b) > (1 + ASPECT) * min(aspect_a, aspect_b):
        aspects = f"{aspect_a:.3f} and {aspect_b:.3f} times as wide as high"
        raise InputError(f"{names} have unequal shapes, {aspects}; cut them to the same view first")
    if resize is None:
        sizes = "{} x {} and {} x {}".format(*size_a, *size_b)
        raise InputError(f"{names} have unequal sizes, {sizes} pixels; use --resize a, b or max")
    return {"a": size_a, "b": size_b, "max": max(size_a, size_b, key=np.prod)}[resize]


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture in another size (H, W): means of areas where it shrinks, cubic where it grows."""
    if picture.gray.shape == size:
        return picture
    way = cv2.INTER_AREA if size[0] < picture.gray.shape[0] else cv2.INTER_CUBIC
    planes = [picture.gray, *(picture.chroma if picture.chroma is not None else ())]
    gray, *chroma = (cv2.resize(plane, size[::-1], interpolation=way) for plane in planes)
    return Picture(gray.clip(0, 1), np.stack(chroma) if chroma else None)


def read_pair(
    a: Path, b: Path, resize: str | None, ranges: Sequence[Range | None] = (None, None)
) -> tuple[Picture, Picture]:
    """Two image files in one size, by their ranges; InputError as `read_image` and `common_size`."""
    one, two = map(read_picture, (a, b), ranges)
    size = common_size(one.gray.shape, two.gray.shape, resize, f"{a} and {b}")
    return resized(one, size), resized(two, size)
