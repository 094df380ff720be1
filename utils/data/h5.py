"""H5 files of image pairs: where they are, how they are opened and checked.

Layout of an H5 file, a superset of the published one: groups imageA and imageB (1, H, W), text (L, dim),
clip (2, E), chroma (2, H, W) and further maps (1, H, W), with one dataset a sample name. Ours stores images in
their own depth (8 bit as a rule), the features that a network takes, and chroma where a source has colour;
attributes record where it all came from. Where B was registered to A (`data_process.py --align`), the file has the
attribute align, the motion, and each dataset of imageB the attribute align, (3, 3): the place (x, y, 1) of the
original B that a pixel of the whole pair was taken from, before any resizing or cutting; the identity for a pair
that was kept. A file without it holds the pairs as they were. A published file (floats in [0, 1], text (1, L, dim),
no attributes) opens as well.
"""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from utils.config import Data
from utils.data.images import MAX_PIXELS
from utils.errors import InputError
from utils.files import plain_name
from utils.guides import GUIDES


def h5_path(folder: str | Path, name: str) -> Path:
    """Where the set <dataset>_<split> is; InputError for a name that leaves the folder."""
    if not plain_name(name):
        raise InputError(f"'{name}' is no name of a set; sets are called <dataset>_<split>")
    return Path(folder) / f"{name}.h5"


def open_h5(path: str | Path) -> h5py.File:
    """Open an H5 file of pairs for reading; InputError if it is missing, damaged or holds no pairs."""
    if not Path(path).is_file():
        raise InputError(f"there is no {path}; make it with: python data_process.py --config ... {Path(path).stem}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not an H5 file, or it is damaged; make it again with data_process.py") from error
    try:
        missing = [group for group in ("imageA", "imageB") if not isinstance(file.get(group), h5py.Group)]
        if missing or not len(file["imageA"]):
            raise InputError(f"{path} holds no pairs ({', '.join(missing) or 'imageA'} is missing or empty)")
    except Exception as error:
        file.close()
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); make it again with data_process.py") from error
    return file


def attribute(file: h5py.File, key: str) -> str:
    """An attribute of an H5 file as text, empty if there is none; InputError if the file is damaged there."""
    try:
        value = str(file.attrs.get(key, ""))
        if not value.isprintable():
            raise ValueError(f"its {key} is {value!r}")
        return value
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{file.filename} is damaged ({error}); make it again with data_process.py") from error


@contextlib.contextmanager
def sample_errors_named(path: str | Path, name: str) -> Iterator[None]:
    """Whatever goes wrong in reading a sample becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(f"sample '{name}' of {path} is missing or damaged ({error})") from error


CHECKSUM = "crc32"  # attribute of a dataset


def crc32(array: np.ndarray) -> int:
    """Checksum of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array))


class PairFile:
    """The datasets of an H5 file by (group, name), each looked up once.

    HDF5 takes about 0.3 ms to find and read one, longer than its pixels take to copy. A dataset that is stored
    in one piece and as it is becomes a view of the file mapped into memory; the others are left to HDF5.

    Raises:
        OSError: on reading, if the file has become shorter: to touch what is gone would kill the process.
    """

    def __init__(self, path: str | Path):
        self.file = open_h5(path)
        self.bytes = np.memmap(path, mode="r")
        self.found: dict[tuple[str, str], np.ndarray | h5py.Dataset] = {}

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray | h5py.Dataset:
        if key not in self.found:
            group, name = key
            dataset = self.file[group][name]
            if dataset.external or dataset.is_virtual or not self._beside(dataset.file.filename):
                raise ValueError("its bytes are in a file of another folder")
            if dataset.size > 2 * MAX_PIXELS:
                raise ValueError(f"it declares {dataset.size} values")
            self.found[key] = self._view(dataset)
            if CHECKSUM in dataset.attrs and dataset.attrs[CHECKSUM] != crc32(self.found[key][()]):
                del self.found[key]
                raise ValueError(f"the bytes of {group} are not those that were written")
        if os.fstat(self.file.id.get_vfd_handle()).st_size < len(self.bytes):
            raise OSError("the file has been cut short since it was opened")
        return self.found[key]

    def _beside(self, filename: str) -> bool:
        """True for this file and those in its folder, which it may link to."""
        mine = self.file.filename
        return filename == mine or Path(filename).resolve().parent == Path(mine).resolve().parent

    def _view(self, dataset: h5py.Dataset) -> np.ndarray | h5py.Dataset:
        """A dataset as a view of the mapped file, where its bytes are in one piece and as NumPy has them."""
        plain = not dataset.dtype.hasobject and dataset.id.get_type().get_size() == dataset.dtype.itemsize
        offset = dataset.id.get_offset()  # None: in chunks, compressed, or not written
        if not plain or offset is None or dataset.file.filename != self.file.filename:  # another file: a link
            return dataset
        return np.ndarray(dataset.shape, dataset.dtype, self.bytes, offset)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.found or "/".join(key) in self.file

    def feature(self, kind: str, name: str) -> Tensor:
        """The feature of a sample for one of GUIDES, (tokens, width) float32."""
        return torch.from_numpy(GUIDES[kind].check(np.array(self[kind, name]))).float()

    def holds(self, kind: str) -> bool:
        """True if there are features of a kind."""
        return isinstance(self.file.get(kind), h5py.Group)


def recorded_task(path: str | Path) -> str:
    """The task recorded in an H5 file, e.g. IVF; empty for a published file, which records none."""
    with open_h5(path) as file:
        return attribute(file, "task")


def task_of(path: str | Path) -> str:
    """The task recorded in an H5 file; InputError if there is none."""
    task = recorded_task(path)
    if not re.fullmatch(r"\w+", task):  # it becomes part of a file's name
        raise InputError(f"{path} does not say of which task it is; give the weights, e.g. ckpt=models/IVF.pth")
    return task


def shape_attributes(data: Data, training: bool) -> dict[str, list[int]]:
    """How images of a set are resized or cut, as an H5 file records it; only training sets are. [] and [0]: not."""
    size = data.patch_size or 0
    wanted = {"resize": data.resize or [], "patch_size": [size], "stride": [(data.stride or size) if size else 0]}
    return wanted if training else {"resize": [], "patch_size": [0], "stride": [0]}


def check_shape(path: str | Path, data: Data, training: bool) -> None:
    """InputError if an H5 file was resized or cut in another way than the config says; published files do not say."""
    wanted_attributes = shape_attributes(data, training)
    with open_h5(path) as file:
        try:
            stored = {key: np.ravel(file.attrs[key]).tolist() for key in wanted_attributes if key in file.attrs}
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); make it again with data_process.py") from error
    for key, wanted in wanted_attributes.items():
        if stored.get(key, wanted) != wanted:
            here, there = (value if any(value) else "none" for value in (stored[key], wanted))
            who = "the config has" if training else "testing needs"
            raise InputError(
                f"{path} was made with data.{key} {here} and {who} {there}; "
                f"make it again with data_process.py --config ... {Path(path).stem}, or change the config"
            )
