"""TIFF by tifffile: every layout right, or refused. OpenCV inverts 16-bit WhiteIsZero, mixes up planes, and decodes
compressions that it lacks to zeros."""

import io
import logging
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from utils.data.decoded import Decoded, Say, check_size, pick_page
from utils.errors import InputError, reason_of

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what fails is told by a sentence of ours
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # channels: white is zero, black is, RGB, palette, CMYK, YCbCr
CCITT, LZW, JPEG, DEFLATE, PACKBITS, LZMA, ZSTD = (2, 3, 4), 5, 7, (8, 32946), 32773, 34925, 50000
COMPRESSIONS = (1, *CCITT, LZW, JPEG, *DEFLATE, PACKBITS, LZMA, ZSTD)


def decode_tiff(path: Path, page: int | None, say: Say) -> Decoded:
    """A page of a TIFF; thumbnails are no pages. Raises InputError, and whatever tifffile raises for damage."""
    with tifffile.TiffFile(path) as file:
        chain: dict[int, tifffile.TiffPage] = {}
        for each in file.pages:
            if each.offset in chain:
                raise InputError(f"{path} is damaged (its pages go round in a circle)")
            chain[each.offset] = each
        pages = [each for each in chain.values() if not each.is_reduced] or [*chain.values()]
        stored = pages[pick_page(path, len(pages), page, say) - 1]
        check_size(path, stored.imagewidth, stored.imagelength, stored.samplesperpixel)
        check_size(path, stored.tilewidth, stored.tilelength, stored.samplesperpixel)
        check_layout(path, stored)
        try:
            values, palette = stored.asarray(squeeze=False)[:, 0], stored.colormap
        except Exception as error:
            if "imagecodecs" not in str(error):
                raise
            raise InputError(f"{path} is compressed, and reading it needs the package imagecodecs") from error
    values = values.transpose(1, 2, 0, 3).reshape(*values.shape[1:3], -1)  # (planes, H, W, together)
    count, extra = COLOURS[stored.photometric], values.shape[2] - COLOURS[stored.photometric]
    if extra == 1 and stored.extrasamples[:1] in ((1,), (2,)):
        if values.min(axis=(0, 1))[count] < values.max():
            say(path, "is transparent in parts, which is ignored: all of its pixels count")
    elif extra:
        say(path, f"has {values.shape[2]} channels: the first {f'{count} are' if count > 1 else 'is'} used")
    span = (0, 2**stored.bitspersample - 1) if values.dtype.kind in "bu" and values.itemsize < 4 else None
    pixels = values[..., :count].astype(np.uint8) if values.dtype.kind == "b" else values[..., :count]
    if stored.photometric == 3:
        pixels, span = (palette >> 8).astype(np.uint8).T[pixels[..., 0]], (0, 255)
    elif stored.photometric == 5:
        inks = span[1] - pixels.astype(np.float32)
        pixels = (inks[..., :3] * inks[..., 3:] / span[1]).astype(pixels.dtype)
    pixels = turned(pixels, int(stored.tags.valueof(274, 1)))
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., ::-1]
    return Decoded(np.ascontiguousarray(pixels), span, negative=stored.photometric == 0, pages=len(pages))


def check_layout(path: Path, page: tifffile.TiffPage) -> None:
    """InputError for a page that is not read, or whose data are not all there."""
    photometric, compression, depth = page.photometric, page.compression, page.bitspersample
    refused = ""
    if page.dtype is None or page.dtype.kind not in "buif" or not isinstance(depth, int):
        refused = f"pixels of {depth} bits in sample format {page.sampleformat}"
    elif photometric not in COLOURS or page.imagedepth != 1:
        refused = f"the photometric interpretation {getattr(photometric, 'name', photometric)}"
    elif compression not in COMPRESSIONS:
        refused = f"the compression {getattr(compression, 'name', compression)}"
    elif photometric == 6 and (compression != JPEG or page.planarconfig == 2 or page.extrasamples):
        refused = "YCbCr outside JPEG, or in planes"
    elif compression == JPEG and (depth != 8 or photometric in (3, 5) or page.samplesperpixel not in (1, 3)):
        refused = f"JPEG of {page.samplesperpixel} channels of {depth} bits in {photometric.name}"
    elif photometric in (3, 5) and page.dtype.kind != "u" and depth != 1:
        refused = f"{photometric.name} in {page.dtype}"
    if refused:
        raise InputError(f"{path} has {refused}, which is not read; save it as gray or RGB, by LZW or uncompressed")
    parts, file = [*zip(page.dataoffsets, page.databytecounts)], page.parent.filehandle
    if len(parts) < np.prod(page.chunked) or any(not n or start + n > file.size for start, n in parts):
        raise InputError(f"{path} is truncated or damaged (strips or tiles are missing)")
    for start, length in parts if compression == JPEG else ():  # libjpeg fills up what is missing
        file.seek(start)
        part = file.read(length)
        try:
            inside = Image.open(io.BytesIO(part)).size
        except Exception as error:
            raise InputError(f"{path} is truncated or damaged ({reason_of(error)})") from error
        most = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        if any(np.greater(inside, most)) or b"\xff\xd9" not in part[-64:]:
            raise InputError(f"{path} is truncated or damaged (a JPEG in it is of {inside}, or has no end)")


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) upright, by the tag of TIFF and EXIF: 1 to 8, anything else as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]
