"""Images on disk: reading as gray and colour, the step to 8 bit, writing."""

import re
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.decode import FORMATS, decode
from utils.data.decoded import Say, ending_of
from utils.data.ranges import Range, check_pixels, to_levels
from utils.errors import InputError, shortened
from utils.files import write_file
from utils.opencv import cv2
from utils.remarks import remark

WRITABLE = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
EXTENSIONS = WRITABLE | {".avif", ".gif", ".jfif", ".jp2", ".jpe", ".pgm", ".pnm", ".ppm", *FORMATS}
ORIENTATION = 0x0112  # the tag
NEUTRAL = 128  # chroma of a gray pixel


def read_image(
    path: str | Path, value_range: Range | None = None, say: Say = remark
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image of any common format and bit depth.

    Gray is OpenCV's BGR to gray on float32, rounded, as the published metrics read images. An alpha
    channel is dropped and an EXIF rotation applied.

    Args:
        path: a file; x.tif#4 is the fourth of its pages.
        value_range: what is black and what is white, in the units of the file, see utils/data/ranges.py; None: by
            its type.
        say: gets the path, and what is passed over.

    Returns:
        gray: (H, W), uint8 or uint16 as the file, float32 in [0, 1] for a float file; uint16 by a range.
        chroma: (2, H, W) uint8, Cr and Cb around 128; None for an image without colour.

    Raises:
        InputError: as `decode`; and without a range signed integers, NaN, or floats outside [0, 1].
    """
    return split_color(to_levels(decode(path, say), value_range, path, say))


def split_color(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded image, (H, W) gray or (H, W, 3) BGR of uint8, uint16 or float32 -> gray and chroma as `read_image`."""
    if image.ndim == 2:
        return image, None
    gray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY)
    if image.dtype != np.float32:
        gray = gray.round().astype(image.dtype)
    if (image == image[..., :1]).all():
        return gray, None
    scale = {np.uint8: 1, np.uint16: 1 / 257, np.float32: 255}[image.dtype.type]
    ycrcb = cv2.cvtColor((image * scale).round().astype(np.uint8), cv2.COLOR_BGR2YCrCb)
    return gray, ycrcb[..., 1:].transpose(2, 0, 1)


def open_images(images: Mapping[str, str | Path | np.ndarray], as_8bit: bool = False) -> list[tuple]:
    """Images of one size, files or arrays, as `read_image` gives a file: gray as tables are made of it, and chroma.

    Args:
        images: by name, for messages, a path or an array: (H, W) gray or (H, W, 3) RGB, of the types of files.
        as_8bit: round float arrays to 8 bit before they become gray.

    Raises:
        InputError: as `read_image`; an array of another shape or type, unequal sizes.
    """
    opened: dict[str, tuple] = {}
    for name, image in images.items():
        if isinstance(image, (str, Path)):
            opened[name] = read_image(image)
        else:
            array = np.asarray(image)
            if array.shape[2:] not in ((), (3,)) or array.ndim < 2 or not array.size:
                raise InputError(f"{name} is an array {array.shape}; give (H, W) gray or (H, W, 3) RGB")
            array = check_pixels(array[..., ::-1] if array.ndim == 3 else array, name)
            array = to_8bit(array, "clamp") if as_8bit and array.dtype == np.float32 else array
            opened[name] = split_color(np.ascontiguousarray(array))
    sizes = {name: "{} x {}".format(*gray.shape) for name, (gray, _) in opened.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the images have unequal sizes: {found}; make them one size")
    return [*opened.values()]


def read_rgb(path: str | Path) -> Image.Image:
    """Read an image as 8-bit RGB, gray as three equal channels; InputError as `read_image`."""
    gray, chroma = read_image(path)
    return Image.fromarray(cv2.cvtColor(colorize(to_8bit(as_unit(gray), "clamp"), chroma), cv2.COLOR_BGR2RGB))


def list_images(folder: Path, pattern: str = "*") -> dict[str, list[Path]]:
    """Image files of a folder, if it is there, by the * of a pattern, e.g. "*_ir" (any format) or "*_ir.png".

    What else a folder holds, without a pattern, is said.
    """
    before, _, after = pattern.partition("*")
    named = ending_of(f"x{after}")
    after, endings = (after[: -len(named)], [named]) if named in EXTENSIONS else (after, EXTENSIONS)
    fits = re.compile(f"{re.escape(before)}(.+?){re.escape(after)}(?i:{'|'.join(map(re.escape, endings))})")
    files: dict[str, list[Path]] = {}
    others: dict[str, list[str]] = {"subfolders": [], "files that are no images by their names": []}
    for path in sorted(folder.glob("[!.]*")):  # macOS leaves files ._x.png beside images
        match, is_folder = fits.fullmatch(path.name), path.is_dir()
        if match and not is_folder:
            files.setdefault(match[1], []).append(path)
        else:
            others["subfolders" if is_folder else "files that are no images by their names"].append(path.name)
    for kind, names in others.items():
        if names and pattern == "*":
            remark(folder, f"holds {len(names)} {kind} ({shortened(names, 3)}), which are passed over")
    return files


def merge_chroma(sources: list[np.ndarray | None]) -> np.ndarray | None:
    """One chroma (2, H, W) uint8 from those of several sources; None if none has colour.

    Each source counts by how far it is from gray at a pixel (the rule of U2Fusion and others).
    """
    colored = [chroma.astype(np.float32) - NEUTRAL for chroma in sources if chroma is not None]
    if not colored:
        return None
    mixed = sum(np.abs(c) * c for c in colored) / np.maximum(sum(map(np.abs, colored)), 1e-6)
    return (mixed + NEUTRAL).round().astype(np.uint8)


def as_unit(image: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1], by the range of their own depth; floats are taken to be in it already."""
    unit = image.astype(np.float32)
    if np.issubdtype(image.dtype, np.integer):
        unit /= np.iinfo(image.dtype).max
    return unit


STRETCHES = ("minmax", "clamp", "truncate", "round")
DEPTHS = (8, 16)


def to_8bit(fused: np.ndarray, stretch: str) -> np.ndarray:
    """A fused image (H, W) in [0, 1] as uint8, as `quantize`."""
    return quantize(fused, stretch, 8)


def quantize(fused: np.ndarray, stretch: str, depth: int) -> np.ndarray:
    """A fused image (H, W) in [0, 1] as uint8, or uint16 where depth is 16.

    Stretch is one of STRETCHES. "minmax" is that of FILM's released test.py: from black to white by the image's own
    range, truncated, which moves EN, SD, SF and AG by itself; "round" rounds that. With "clamp", and for a constant
    image, pixels are clamped to [0, 1] and rounded; "truncate" truncates them.
    """
    low, high = fused.min(), fused.max()
    if stretch in ("minmax", "round") and high > low:
        fused = (fused - low) / (high - low)
    elif stretch == "minmax":
        stretch = "clamp"
    levels = fused.clip(0, 1) * (2**depth - 1)
    return (levels if stretch in ("minmax", "truncate") else levels.round()).astype(f"uint{depth}")


def colorize(gray: np.ndarray, chroma: np.ndarray | None) -> np.ndarray:
    """Gray (H, W) uint8 or uint16 as luma and chroma (2, H, W) uint8 or None -> BGR (H, W, 3) of gray's type."""
    if chroma is None:
        return cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    if gray.dtype == np.uint16:  # OpenCV knows no 16 bit with chroma of 8
        unit = [as_unit(gray), *(chroma.astype(np.float32) - NEUTRAL) / 255 + np.float32(0.5)]
        bgr = cv2.cvtColor(np.dstack(unit), cv2.COLOR_YCrCb2BGR)
        return (65535 * bgr.clip(0, 1)).round().astype(np.uint16)
    return cv2.cvtColor(np.dstack([gray, *chroma]), cv2.COLOR_YCrCb2BGR)


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) of any width under each other, on white."""
    width = max(row.shape[1] for row in rows)
    padding = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    return np.vstack([np.pad(row, p, constant_values=255) for row, p in zip(rows, padding)])


def read_exif(path: Path) -> bytes:
    """Camera, time and place of a photograph, as `write_image` takes them; empty where there are none.

    Not its orientation, which `read_image` applies, nor the tags of a TIFF, which say how its pixels lie.
    """
    try:
        with Image.open(path) as picture:
            exif = picture.getexif() if picture.format != "TIFF" else {}
            exif.pop(ORIENTATION, None)
            data = exif.tobytes() if exif else b""
    except Exception:  # Pillow's decoders raise many kinds, and tags are no reason not to fuse
        return b""
    data = data.removeprefix(b"Exif\0\0")
    return data if len(data) < 65000 else b""  # what fits into a segment of a JPEG


def check_writable(path: Path) -> None:
    """InputError if an image cannot be written under this name."""
    if path.suffix.lower() not in WRITABLE:
        raise InputError(f"cannot write an image named {path}; use one of {', '.join(sorted(WRITABLE))}")


def write_image(path: str | Path, image: np.ndarray, exif: bytes = b"") -> None:
    """Write (H, W) gray or (H, W, 3) BGR, uint8, or uint16 as PNG or TIFF; InputError if the file cannot be written.

    Also for an extension not in WRITABLE. A JPEG or PNG gets the tags `exif`, as bytes of a TIFF.
    """
    path = Path(path)
    check_writable(path)
    data = cv2.imencode(path.suffix, image)[1].tobytes()
    if exif and path.suffix.lower() in (".jpg", ".jpeg"):
        segment = b"Exif\0\0" + exif
        data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    elif exif and path.suffix.lower() == ".png":
        chunk = b"eXIf" + exif
        data = data[:33] + len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]
    write_file(path, data, sync=False)  # an image can be made again


def shrunk(image: np.ndarray, width: int = 640) -> np.ndarray:
    """A picture at most `width` pixels wide."""
    scale = min(1, width / image.shape[1])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def side_by_side(images: list[np.ndarray], labels: list[str] | None = None) -> np.ndarray:
    """Images of one size, gray or BGR uint8, in a row with a white gap and labels above, wrapped: BGR uint8."""
    scale = min(0.5, images[0].shape[1] / 260)
    room = max(4, int(images[0].shape[1] / (18 * scale)))  # letters a line
    texts = [textwrap.wrap(label, room, max_lines=3, placeholder="...") for label in labels or [""] * len(images)]
    above = 16 * max(map(len, texts)) + (8 if labels else 2)
    row = []
    for image, lines in zip(images, texts):
        image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        image = cv2.copyMakeBorder(image, above, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for number, line in enumerate(lines, start=1):
            cv2.putText(image, line, (4, 16 * number + 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
        row.append(image)
    return np.hstack(row)
