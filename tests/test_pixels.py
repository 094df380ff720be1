"""What files of sensors hold: layouts of TIFF, depths, ranges, pages; the right gray or one sentence, never a wrong one."""

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from utils.data.images import as_unit, read_image
from utils.errors import InputError

H, W = 32, 48
UNIT = np.linspace(0, 1, H * W).reshape(H, W)
COLOUR = np.stack([UNIT, UNIT[::-1], UNIT[:, ::-1]], axis=-1)  # RGB
GRAY_OF_COLOUR = COLOUR @ [0.299, 0.587, 0.114]
LAYOUTS = [
    dict(photometric=photometric, kind=kind, compression=compression, byteorder=order, tile=tile, planar=planar)
    for photometric, kind, compression, order, tile, planar in itertools.product(
        ("miniswhite", "minisblack", "rgb"),
        ("1", "8", "10", "12", "16", "float32"),
        (None, "lzw", "deflate", "packbits", "zstd"),
        "<>",
        (None, (16, 16)),
        ("contig", "separate"),
    )
    if (planar == "contig" or photometric == "rgb") and (kind != "1" or photometric != "rgb")
    if order == "<" or kind not in ("10", "12")  # tifffile reads packed bits of either order, and writes one right
]


def write(path, photometric, kind, compression=None, byteorder="<", tile=None, planar="contig", **more):
    """An image of UNIT, or COLOUR, in a layout; returns the gray that it should have, and how near in [0, 1]."""
    unit = COLOUR if photometric == "rgb" else UNIT
    bits = 32 if kind == "float32" else int(kind)
    if kind == "float32":
        pixels, right = unit.astype(np.float32), unit
    elif kind == "1":
        pixels, right = unit > 0.5, (unit > 0.5).astype(float)
    else:
        pixels = (unit * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
        right = pixels / (2**bits - 1)
    if bits in (10, 12):
        more["bitspersample"] = bits
    if photometric == "miniswhite":
        right = 1 - right
    pixels = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    more |= {"planarconfig": planar} if photometric == "rgb" else {}
    tifffile.imwrite(
        path, pixels, photometric=photometric, compression=compression, byteorder=byteorder, tile=tile, **more
    )
    return right @ [0.299, 0.587, 0.114] if photometric == "rgb" else right


def test_every_layout_of_tiff_is_read_right(tmp_path):
    refused = 0
    for number, layout in enumerate(LAYOUTS):
        path = tmp_path / f"{number}.tif"
        try:
            right = write(path, **layout)
        except Exception:  # tifffile does not write it
            refused += 1
            continue
        gray, chroma = read_image(path)
        np.testing.assert_allclose(as_unit(gray), right, atol=0.004, err_msg=str(layout))
        assert (chroma is not None) == (layout["photometric"] == "rgb"), layout
    print(len(LAYOUTS), refused)
