"""From the units of a file (counts, degrees) to gray: which value is black, and which is white.

`type`          the range of the pixels' type, or what a file itself declares (a PGM's maximum, a DICOM's window)
`file`          from the smallest to the largest value of all files of a source
`1%,99%`        from one percentile of them to another
`27000,31000`   from one value to another, in the units of the file; values outside become black and white
"""

import contextlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.data.decode import decode
from utils.data.decoded import Decoded, Say
from utils.errors import InputError

Range = tuple[float, float]  # what becomes black and what becomes white, in the units of a file
LITTLE = 0.1  # of its type's range: who uses less shows next to nothing
MOST_SAMPLES = 2**24  # values that percentiles are taken of
ADVICE = "--range-a file or --range-b file (in a table of datasets: range_a, range_b)"


class Percentiles(NamedTuple):
    low: float
    high: float


def parse_range(text: str, where: str) -> Range | Percentiles | None:
    """What a user writes, as the module says; None for `type`. InputError, which names `where`, for anything else."""
    if text in ("type", "file"):
        return Percentiles(0, 100) if text == "file" else None
    number = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    match = re.fullmatch(rf"{number}(%?)\s*,{number}(%?)\s*", text)
    if match and match[2] == match[4]:
        low, high = float(match[1]), float(match[3])
        if low < high < math.inf and low > -math.inf and (not match[2] or 0 <= low < high <= 100):
            return Percentiles(low, high) if match[2] else (low, high)
    raise InputError(
        f"{where} must be type, file, two percentiles (1%,99%) or two values in the file's units (27000,31000), the "
        f"lower first, not {text!r}"
    )


def find_range(wanted: Range | Percentiles | None, images: Iterable[np.ndarray], count: int, side: str) -> Range | None:
    """The one range of about `count` images, of any kind of number; NaN and inf do not count. It prints it.

    Percentiles are those of about MOST_SAMPLES values, evenly taken; the smallest and the largest are of all. `side`
    names the images in what is printed, and in the InputError if none has a value.
    """
    if not isinstance(wanted, Percentiles):
        return wanted
    samples = []
    for pixels in tqdm(images, f"range of {side}", count, unit="image", delay=2, leave=False, disable=None):
        values = pixels[np.isfinite(pixels)]
        if values.size and wanted == (0, 100):
            samples.append(np.array([values.min(), values.max()], np.float64))
        elif values.size:
            samples.append(values[:: math.ceil(values.size * count / MOST_SAMPLES)].astype(np.float64))
    if not samples:
        raise InputError(f"no image of {side} has a value to find the range of")
    low, high = np.percentile(np.concatenate(samples), wanted).tolist()
    print(f"range of {side}: {low:g} becomes black, {high:g} white")
    return low, high if high > low else low + 1


def pixels_of(files: Iterable[Path]) -> Iterable[np.ndarray]:
    """The pixels of image files in their own units; those that cannot be read are left out."""
    for path in files:
        with contextlib.suppress(InputError):
            yield decode(path, lambda *_: None).pixels


def to_levels(decoded: Decoded, value_range: Range | None, path: str | Path, say: Say) -> np.ndarray:
    """Decoded pixels as uint8, uint16 or float32 in [0, 1], black to white; by a range always uint16.

    NaN becomes black. `say` gets the path, and what a user should know: hardly any of the range is used, and the like.
    InputError for what has no range of its own, if none is given.
    """
    pixels, span, kind = decoded.pixels, decoded.span, decoded.pixels.dtype
    low, high = value_range or span or (0, 1)
    if value_range is None and span is None:
        pixels = check_pixels(pixels, path, f", or {ADVICE}")
        return 1 - pixels if decoded.negative else pixels
    if value_range or kind.itemsize > 1:
        finite = pixels[np.isfinite(pixels)] if kind.kind == "f" else pixels
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (low, low)
        if finite.size < pixels.size:
            say(path, f"has {pixels.size - finite.size} pixels without a value (NaN): they become black")
        if value_range and (most <= low or least >= high):
            say(path, f"holds {least:g} to {most:g}, all of it outside the range {low:g} to {high:g}")
        elif not value_range and 0 < most - least < LITTLE * (high - low):
            part = f"uses {100 * (most - least) / (high - low):.1f} % of its range"
            say(path, f"{part} ({least:g} to {most:g} of {low:g} to {high:g}): it is nearly flat without {ADVICE}")
    levels = np.uint8 if value_range is None and kind == np.uint8 else np.uint16
    white = np.iinfo(levels).max
    if kind != levels or (low, high) != (0, white):
        unit = pixels.astype(np.float32 if kind.itemsize <= 2 or kind == np.float32 else np.float64)
        unit = np.nan_to_num((unit - low) / (high - low), copy=False, nan=float(decoded.negative))
        pixels = (unit.clip(0, 1) * white).round().astype(levels)
    return white - pixels if decoded.negative else pixels


def check_pixels(image: np.ndarray, name: str | Path, otherwise: str = "") -> np.ndarray:
    """Pixels as they are, floats as float32; InputError for other types, and for floats outside [0, 1] or NaN."""
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 1):
            given = f"give uint8{otherwise}"
            raise InputError(f"{name} holds floats from {low:g} to {high:g}; scale them to [0, 1], or {given}")
    elif image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name} has pixels of {image.dtype}; give uint8, uint16 or floats in [0, 1]{otherwise}")
    return image
