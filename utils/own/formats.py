"""Formats that need a package of their own: DICOM (pydicom), NIfTI (nibabel), HEIC (pillow-heif).

`utils.data.decode` finds them by name, so that data sets can hold them, too. Pixels are in the units of the file, by
its slope and intercept. Without a range of the user's, a DICOM is shown by its window, if it has one.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.decoded import Decoded, Say, check_size, pick_page
from utils.errors import InputError


def needed(path: Path, name: str, package: str) -> Any:
    """A module that a format needs; InputError if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{path} needs the package {package}: pip install {package}") from error


def read_dicom(path: Path, page: int | None, say: Say) -> Decoded:
    """A frame of a DICOM file, of several the middle one: MONOCHROME1, MONOCHROME2 or colour.

    Values are slope x stored + intercept; padding is no number.
    """
    file = needed(path, "pydicom", "pydicom").dcmread(path)
    kind = str(file.get("PhotometricInterpretation", ""))
    if not kind.startswith(("MONOCHROME", "RGB", "YBR")):
        raise InputError(f"{path} holds {kind or 'no image'}, which is not read; export it as gray or RGB")
    frames = int(file.get("NumberOfFrames") or 1)
    check_size(path, file.Columns, file.Rows, file.SamplesPerPixel)
    frame = pick_page(path, frames, page, say, frames // 2 + 1) - 1
    pixels = importlib.import_module("pydicom.pixels").pixel_array(path, index=frame)
    stored, signed = int(file.BitsStored), bool(file.PixelRepresentation)
    if pixels.ndim == 3:
        return Decoded(np.ascontiguousarray(pixels[..., ::-1]), (0, 2**stored - 1), pages=frames)

    def entry(sequence: str, key: str) -> Any:
        """A value of the file, or, where frames have their own, of the frame's groups."""
        groups = [*file.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]]
        for group in (*groups, *file.get("SharedFunctionalGroupsSequence", [])):
            if sequence in group:
                return group[sequence].value[0].get(key)
        return file.get(key)

    slope = float(entry("PixelValueTransformationSequence", "RescaleSlope") or 1)
    intercept = float(entry("PixelValueTransformationSequence", "RescaleIntercept") or 0)
    window = [entry("FrameVOILUTSequence", key) for key in ("WindowCenter", "WindowWidth")]
    centre, width = (value[0] if hasattr(value, "__getitem__") else value for value in window)
    if "ModalityLUTSequence" in file:
        raise InputError(f"{path} has a modality table, which is not read; export it with a slope and an intercept")
    padding = file.get("PixelPaddingValue")
    empty = None if padding is None else pixels == padding
    if (slope, intercept) != (1, 0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if empty is not None and empty.any():
        pixels = np.where(empty, np.float32("nan"), pixels.astype(np.float32))
    span = None
    if width:
        span = float(centre) - float(width) / 2, float(centre) + float(width) / 2
        say(path, f"is shown by its window, {span[0]:g} to {span[1]:g}")
    elif not signed and slope > 0:
        span = intercept, intercept + slope * (2**stored - 1)
    return Decoded(pixels, span, kind == "MONOCHROME1", frames)


def read_nifti(path: Path, page: int | None, say: Say) -> Decoded:
    """An axial slice of a NIfTI volume, the middle one if none is named: front above, as a radiologist sees it.

    Values are slope x stored + intercept. InputError where a volume has more than MAX_PIXELS.
    """
    nibabel = needed(path, "nibabel", "nibabel")
    image = nibabel.load(path)
    shape = (*image.shape, 1, 1)[: max(3, image.ndim)]
    axes = nibabel.io_orientation(image.affine)  # by axis of the file: which it is of left-right, back-front, down-up
    across = int(np.argmax(axes[:, 0] == 2)) if image.ndim > 2 else 2
    (x, y), slices = [axis for axis in range(3) if axis != across], shape[across]
    check_size(path, shape[x], shape[y] * slices)  # a volume is decoded as a whole
    pages = slices * int(np.prod(shape[3:]))
    number = pick_page(path, pages, page, say, slices // 2 + 1) - 1
    time, slice_ = divmod(number, slices)
    slice_ = slices - 1 - slice_ if axes[across, 1] < 0 else slice_
    volume = image.dataobj[(..., *map(int, np.unravel_index(time, shape[3:])))] if shape[3:] else image.dataobj
    pixels = np.take(np.asanyarray(volume).reshape(shape[:3]), slice_, across)
    if pixels.dtype.kind not in "uif" or pixels.ndim != 2:
        raise InputError(f"{path} has pixels of {pixels.dtype}, which are not read; give numbers")
    if axes[x, 0] > axes[y, 0]:
        pixels, x, y = pixels.T, y, x
    pixels = pixels[:: -1 if axes[x, 1] > 0 else 1, :: -1 if axes[y, 1] > 0 else 1].T  # right is left, front is above
    shown = [float(image.header.get(key, 0)) for key in ("cal_min", "cal_max")]
    if shown[1] > shown[0]:
        say(path, f"is shown by its own range, {shown[0]:g} to {shown[1]:g}")
        return Decoded(np.ascontiguousarray(pixels), (shown[0], shown[1]), pages=pages)
    span = (0, np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" and pixels.dtype.itemsize < 4 else None
    return Decoded(np.ascontiguousarray(pixels), span, pages=pages)


def read_heif(path: Path, page: int | None, say: Say) -> Decoded:
    """A picture of a HEIC file, upright."""
    file = needed(path, "pillow_heif", "pillow-heif").open_heif(path, convert_hdr_to_8bit=True)
    check_size(path, *file.size)
    picture = file[pick_page(path, len(file), page, say, file.primary_index + 1) - 1].to_pillow()
    return Decoded(np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1]), (0, 255), pages=len(file))
