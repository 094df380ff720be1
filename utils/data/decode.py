"""Files to pixels as they are stored, by whoever decodes each format right: nothing is scaled, nothing invented."""

import importlib
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.data.decoded import Decoded, Say, check_size, ending_of, pick_page, split_page
from utils.errors import InputError, reason_of
from utils.opencv import cv2

Image.MAX_IMAGE_PIXELS = None  # `check_size` counts them, before anything is decoded
# found by name, as the core imports no wing: by ending, the function of it that opens such a file
FORMATS = dict.fromkeys((".dcm", ".dicom"), "read_dicom") | dict.fromkeys((".nii", ".nii.gz"), "read_nifti")
FORMATS |= dict.fromkeys((".heic", ".heif"), "read_heif")
FORMATS_OF = "utils.own.formats"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" + rb"\s")


def decode(path: str | Path, say: Say) -> Decoded:
    """The picture of a file; `say` gets what it holds beside it.

    Raises:
        InputError: missing, unreadable or truncated file, more than MAX_PIXELS, a format or layout that is not read.
    """
    path, page = split_page(path)
    try:
        with open(path, "rb") as file:
            start = file.read(132)
            ending = ".dcm" if start[128:] == b"DICM" else ending_of(path.name)
            data = b"" if ending in FORMATS or start[:4] in TIFF else start + file.read()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    try:
        if ending in FORMATS:
            return getattr(importlib.import_module(FORMATS_OF), FORMATS[ending])(path, page, say)
        if start[:4] in TIFF:
            from utils.data.tiff import decode_tiff  # here: it takes a while to import, and most images are others

            return decode_tiff(path, page, say)
        if data[:1] == b"P" and data[1:2] in (b"2", b"3", b"5", b"6", b"7"):
            return decode_netpbm(path, data, say)
        return decode_common(path, data, page, say)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds
        raise InputError(f"{path} is truncated or damaged ({reason_of(error)})") from error


def pages_of(path: Path) -> list[Path]:
    """The pages of a file, x.tif#01 and so on; the file itself if it has one, is one, or cannot be read."""
    try:
        pages = 1 if split_page(path)[1] else decode(path, lambda *_: None).pages
    except InputError:
        pages = 1
    return [Path(f"{path}#{page:0{len(str(pages))}d}") for page in range(1, pages + 1)] if pages > 1 else [path]


def decode_common(path: Path, data: bytes, page: int | None, say: Say) -> Decoded:
    """PNG, JPEG and so on, by OpenCV. It fills up a truncated file with gray and says nothing; Pillow refuses it."""
    image, pages = None, 1
    try:
        with Image.open(io.BytesIO(data)) as picture:
            check_size(path, *picture.size)
            pages = getattr(picture, "n_frames", 1)
            if picture.format == "MPO":  # a phone's JPEG: previews and gain maps are no pages
                say(path, f"holds {pages} pictures: the first is used")
                pages = 1
            number = pick_page(path, pages, page, say)
            picture.seek(number - 1)
            picture.load()
            if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                say(path, "is transparent in parts, which is ignored: all of its pixels count")
            if number > 1:
                image = np.asarray(picture.convert("RGB"))[..., ::-1]
    except UnidentifiedImageError:
        pass  # not one of Pillow's formats
    if image is None:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
        except cv2.error:
            image = None
    if image is None:
        raise InputError(f"{path} is not an image that can be read")
    return Decoded(image, (0, np.iinfo(image.dtype).max) if image.dtype.kind == "u" else None, pages=pages)


def decode_netpbm(path: Path, data: bytes, say: Say) -> Decoded:
    """PGM and PPM, whose own maximum is white: OpenCV takes that of the type."""
    header = NETPBM.match(data)
    if header is None:
        raise InputError(f"{path} has a header of Netpbm that is not read; give PGM or PPM")
    kind, width, height, white = map(int, header.groups())
    check_size(path, width, height)
    count = width * height * (3 if kind in (3, 6) else 1)
    if not 0 < white < 65536 or not count:
        raise InputError(f"{path} declares {width} x {height} pixels up to {white}; 1 to 65535 are possible")
    rest = data[header.end() :]
    if kind > 3:
        pixels = np.frombuffer(rest, np.uint8 if white < 256 else ">u2", count)
        if rest[pixels.nbytes :].lstrip()[:1] == b"P":
            say(path, "holds more pictures: the first is used")
    else:
        pixels = np.array(re.sub(rb"#[^\r\n]*", b"", rest).split()[:count]).astype(np.uint32)
    if len(pixels) < count or pixels.max() > white:
        raise InputError(f"{path} is truncated or damaged ({len(pixels)} of {count} values, up to {pixels.max()})")
    pixels = pixels.astype(np.uint8 if white < 256 else np.uint16).reshape(height, width, -1)[..., ::-1]
    return Decoded(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels), (0, white))
