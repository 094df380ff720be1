"""H5 files of image pairs: their layout, which is written and read here alone.

A superset of the published layout: groups imageA and imageB (1, H, W), text (L, dim), clip (2, E), chroma (2, H, W)
and further maps (1, H, W), with one dataset a sample name. Ours stores images in their own depth, mostly 8 bit, the
features that a network takes, and chroma where a source has colour, in chunks with checksums. Attributes say of which
dataset and task it is, its resize, and the encoder of each kind of features and the folder of the texts; one of each
dataset of text, how many of its tokens are A's, where that is known. Where a range was given, `rangeA` and `rangeB` are
the values (low, high) of the files that became 0 and 65535. Where B was registered to A, `align` is the motion, and
that of each dataset of imageB its matrix (3, 3), see utils/data/align.py. A published file (floats in [0, 1], text
(1, L, dim), no attributes) opens as well.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from utils.config import Data
from utils.data.features import FEATURES, check_feature
from utils.errors import InputError
from utils.files import plain_name
from utils.opencv import MAX_PIXELS
from utils.provenance import GuideRecord

DAMAGE = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)  # what h5py raises
MOST_BYTES = 8 * MAX_PIXELS  # of one dataset: an image in float64
ROWS_OF_A = "rows_of_a"  # attribute of a feature: how many rows are of A, before those of B
BAND = 64  # rows of an image in one chunk
MOST_OPEN = 4096  # datasets that a file keeps open, at 28 KiB each
NO_CACHE = {"rdcc_nbytes": 0}  # a chunk is read once; and a full disk is noticed at once, while the file can be closed


def h5_path(folder: str | Path, name: str) -> Path:
    """Where the set <dataset>_<split> is; InputError for a name that leaves the folder."""
    if not plain_name(name):
        raise InputError(f"'{name}' is no name of a set; sets are called <dataset>_<split>")
    return Path(folder) / f"{name}.h5"


@contextlib.contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """Open a new H5 file for writing; OSError where the disk is full, which h5py tells in a RuntimeError."""
    try:
        with h5py.File(path, "w", **NO_CACHE) as file:
            yield file
    except RuntimeError as error:
        raise OSError(str(error)) from error


def write_sample(
    file: h5py.File, name: str, maps: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray]
) -> None:
    """Store one pair: `maps` (H, W), chroma (2, H, W), in uint8, uint16 or float32, and `features` (L, dim) by kind."""
    maps = {group: image.reshape(-1, *image.shape[-2:]) for group, image in maps.items()}
    for group, array in {**features, **maps}.items():
        packed = "gzip" if group == "chroma" else None  # it compresses well, and training does not read it
        # training reads crops: bands of rows, so that not all of an image is read and checked for one
        chunk = array.shape if group in features or packed else (1, min(BAND, array.shape[1]), array.shape[2])
        file.create_dataset(f"{group}/{name}", data=array, chunks=chunk, fletcher32=True, compression=packed)


def write_record(file: h5py.File, kind: str, record: GuideRecord) -> None:
    """Say which encoder the features of a file are of, and the texts of which folder."""
    words = dict(zip(FEATURES[kind].attributes, (record.name, record.revision)))
    words[f"{kind}_folder"] = record.options.get("folder")
    file.attrs.update({key: word for key, word in words.items() if word})


def read_record(file: h5py.File, kind: str) -> GuideRecord | None:
    """The encoder of the features of a file, perhaps with the folder of its texts; None if it does not say."""
    name, revision, folder = (attribute(file, key) for key in (*FEATURES[kind].attributes, f"{kind}_folder"))
    return GuideRecord(name, revision or None, {"folder": folder} if folder else {}) if name else None


def open_h5(path: str | Path) -> h5py.File:
    """Open an H5 file of pairs for reading; InputError if it is missing, damaged or holds no pairs."""
    if not Path(path).is_file():
        raise InputError(f"there is no {path}; make it with: python data_process.py --config ... {Path(path).stem}")
    try:
        file = h5py.File(path, "r", **NO_CACHE)
        groups = {group: file.get(group) for group in ("imageA", "imageB")}
        lacking = [name for name, group in groups.items() if not isinstance(group, h5py.Group) or not len(group)]
    except DAMAGE as error:
        raise InputError(f"{path} is not an H5 file, or it is damaged; make it again with data_process.py") from error
    if lacking:
        raise InputError(f"{path} holds no pairs ({', '.join(lacking)} is missing or empty)")
    return file


def attribute(file: h5py.File, key: str) -> str:
    """An attribute of an H5 file as text, empty if there is none; InputError if the file is damaged there."""
    try:
        return str(file.attrs.get(key, ""))
    except DAMAGE as error:
        raise InputError(f"{file.filename} is damaged ({error}); make it again with data_process.py") from error


def recorded_task(path: str | Path) -> str:
    """The task recorded in an H5 file, e.g. IVF; empty for a published file, which records none."""
    with open_h5(path) as file:
        return attribute(file, "task")


def check_shape(path: str | Path, data: Data, training: bool) -> None:
    """InputError if an H5 file has another resize than data.resize, none for testing; published files do not say."""
    wanted = str(np.array((training and data.resize) or []))
    with open_h5(path) as file:
        stored = attribute(file, "resize") or wanted
    if stored != wanted:
        here, there = (size if size != "[]" else "none" for size in (stored, wanted))
        raise InputError(
            f"{path} was made with data.resize {here} and {'the config has' if training else 'testing needs'} {there}; "
            f"make it again with data_process.py --config ... {Path(path).stem}, or change the config"
        )


@contextlib.contextmanager
def sample_errors_named(path: str, name: str) -> Iterator[None]:
    """Whatever goes wrong in reading a sample becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"sample '{name}' of {path} is missing or damaged ({error})") from error


class PairFile:
    """An H5 file, open for reading. Reading raises one of DAMAGE for what is missing, damaged or elsewhere."""

    def __init__(self, path: str):
        self.file = open_h5(path)
        self.groups = {kind: group for kind, group in self.file.items() if isinstance(group, h5py.Group)}
        self.opened: dict[tuple[str, str], h5py.Dataset] = {}  # HDF5 takes longer to find one than to read a crop of it

    def open(self, kind: str, name: str) -> h5py.Dataset:
        """What a group holds of a sample, to be read as a whole or in parts."""
        if (kind, name) in self.opened:
            return self.opened[kind, name]
        # five times faster than by [name]; readonly lets h5py keep what it knows of it
        stored = h5py.Dataset(h5py.h5d.open(self.groups[kind].id, name.encode()), readonly=True)
        chunks = stored.chunks  # what has chunks has its bytes in its own file
        elsewhere = not chunks and (stored.external or stored.is_virtual)
        if elsewhere or not self._beside(h5py.h5f.get_name(stored.id)):
            raise ValueError("its bytes are in a file of another folder")
        if max(stored.size, math.prod(chunks or ())) * stored.dtype.itemsize > MOST_BYTES:
            raise ValueError(f"it declares {stored.size} values in chunks of {chunks}")
        if len(self.opened) >= MOST_OPEN:
            del self.opened[next(iter(self.opened))]
        self.opened[kind, name] = stored
        return stored

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of a pair, from the header of A alone: five times faster than by `open`."""
        h, w = h5py.h5d.open(self.groups["imageA"].id, name.encode()).shape[-2:]
        return h, w

    def feature(self, kind: str, name: str, side: str = "") -> Tensor:
        """The feature (L, dim) float32 of a sample; with side "a" or "b" the rows of that source alone."""
        stored = self.open(kind, name)
        feature = torch.from_numpy(check_feature(kind, stored[()])).float()
        if not side:
            return feature
        count = stored.attrs.get(ROWS_OF_A)
        if count is None:
            raise InputError(
                f"{self.file.filename} does not say which part of the {kind} of '{name}' is A's, and {kind}.use={side} "
                "takes one part; make it again from the paragraphs: data_process.py with text.recompute=true"
            )
        part = feature[:count] if side == "a" else feature[count:]
        if not 0 < len(part) < len(feature):
            raise ValueError(f"of its {len(feature)} rows of {kind}, {count} are said to be of A")
        return part

    def _beside(self, file: bytes) -> bool:
        """True for this file and those in its folder, which it may link to."""
        mine = os.fsencode(self.file.filename)
        return file == mine or Path(os.fsdecode(file)).resolve().parent == Path(os.fsdecode(mine)).resolve().parent
