"""Image pairs and the features that guide their fusion from H5 files, as a PyTorch dataset.

Layout of an H5 file, a superset of the published one: groups imageA and imageB (1, H, W), text (L, dim),
clip (2, E) and chroma (2, H, W), with one dataset a sample name. Ours stores images in their own depth (8
bit as a rule), the features that a network takes, and chroma where a source has colour; attributes record
where it all came from. A published file (floats in [0, 1], text (1, L, dim), no attributes) opens as well.
"""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import InputError
from utils.files import plain_name
from utils.images import MAX_PIXELS, NEUTRAL, as_unit
from utils.text import check_feature


def h5_path(folder: str | Path, name: str) -> Path:
    """Where the set <dataset>_<split> lies; InputError for a name that leaves the folder."""
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
def reading(path: str | Path, name: str) -> Iterator[None]:
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
        """A dataset as a view of the mapped file, where its bytes lie there as NumPy has them."""
        plain = not dataset.dtype.hasobject and dataset.id.get_type().get_size() == dataset.dtype.itemsize
        offset = dataset.id.get_offset()  # None: in chunks, compressed, or not written
        if not plain or offset is None or dataset.file.filename != self.file.filename:  # another file: a link
            return dataset
        return np.ndarray(dataset.shape, dataset.dtype, self.bytes, offset)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.found or "/".join(key) in self.file

    def feature(self, kind: str, name: str) -> Tensor:
        """A feature of a sample, text (L, dim) or clip (2, E), float32."""
        feature = check_feature(np.array(self[kind, name]))
        if kind == "clip" and len(feature) != 2:
            raise ValueError(f"it has {len(feature)} CLIP vectors and not those of A and B")
        return torch.from_numpy(feature).float()

    def holds(self, kind: str) -> bool:
        """True if there are features of a kind."""
        return isinstance(self.file.get(kind), h5py.Group)


FEATURES = ("text", "clip")


class PairDataset(Dataset):
    """Registered pairs with the features that a network takes, from one or more H5 files.

    A sample is a dict: name (str), image_a and image_b (1, H, W) float32 in [0, 1], text (L, dim) and clip
    (2, E) float32 as `inputs` asks for them, and with `chroma` also chroma (2, H, W) uint8, 128 where a
    pair has no colour. CLIP vectors are left out if not every file has them: they can be computed.

    Args:
        paths: H5 files.
        inputs: what a network takes beside the images, its `inputs`.
        crop: side in pixels of a random square; None keeps whole images.
        augment: random flips, and 90-degree rotations of squares. One draw serves the whole pair.
        seed: with the epoch and the index it decides the draw, whatever worker or rank does it.
        chroma: return chroma too.

    Attributes:
        only_text: a feature (L, dim) that every sample gets in place of its own; None: each has its own.
        dims: width of each feature that samples have, e.g. {"text": 768}.
        clip: name and revision of the CLIP that gave the vectors; None if samples have none.

    Raises:
        InputError: missing or damaged file, no text, features that do not go together, image smaller than the crop.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        inputs: Sequence[str] = ("text",),
        crop: int | None = None,
        augment: bool = False,
        seed: int = 0,
        chroma: bool = False,
    ):
        self.crop, self.augment, self.seed, self.chroma, self.epoch = crop, augment, seed, chroma, 0
        self.only_text: Tensor | None = None
        files = {str(path): PairFile(path) for path in paths}
        for path, pairs in files.items():
            for name in pairs.file["imageA"]:
                if not (isinstance(name, str) and plain_name(name)):  # HDF5 has bytes where it is not UTF-8
                    raise InputError(f"{path} names a sample {name!r}, which is no plain file name; make it again")
        self.samples = [(path, name) for path, pairs in files.items() for name in sorted(pairs.file["imageA"])]
        if "text" in inputs:
            for path, pairs in files.items():
                if not pairs.holds("text"):
                    raise InputError(f"{path} holds no text; make it with data_process.py and the network's config")
        held = [kind for kind in FEATURES if kind in inputs and all(pairs.holds(kind) for pairs in files.values())]
        self.dims: dict[str, int] = {}
        self.clip: dict[str, str] | None = None
        for path, pairs in files.items():
            first = next(iter(pairs.file["imageA"]))
            with reading(path, first):
                dims = {kind: pairs.feature(kind, first).shape[-1] for kind in held}
            clip = clip_of(pairs.file) if "clip" in held else None
            if clip and not clip["revision"]:
                raise InputError(
                    f"{path} does not say of which CLIP its vectors are; make it again with data_process.py"
                )
            if self.dims and (dims, clip and clip["revision"]) != (self.dims, self.clip and self.clip["revision"]):
                raise InputError(
                    f"{path} has features of other widths or another CLIP ({dims}, {clip}) than the sets before it "
                    f"({self.dims}, {self.clip}); make them with one config"
                )
            self.dims, self.clip = dims, clip
        self._files: dict[str, PairFile] = {}
        self._owner = None

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """New random draws; call it before a DataLoader starts its workers."""
        self.epoch = epoch

    def leave_out(self, names: Sequence[str]) -> None:
        """Take samples out; InputError for a name that is not there."""
        unknown = set(names) - {name for _, name in self.samples}
        if unknown:
            raise InputError(f"data.leave_out names '{min(unknown)}', which is in none of the training sets")
        self.samples = [sample for sample in self.samples if sample[1] not in names]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}, "_owner": None}  # open files stay with their process

    def _open(self, path: str) -> PairFile:
        """A file, opened once per process: HDF5 handles do not survive a fork."""
        if self._owner != os.getpid():
            self._files, self._owner = {}, os.getpid()
        if path not in self._files:
            self._files[path] = PairFile(path)
        return self._files[path]

    def text(self, index: int) -> Tensor:
        """The text feature of a sample alone, (L, dim)."""
        path, name = self.samples[index]
        with reading(path, name):
            return self._open(path).feature("text", name)

    def __getitem__(self, index: int) -> dict:
        path, name = self.samples[index]
        with reading(path, name):
            drawn = self.crop or self.augment
            rng = np.random.default_rng((self.seed, self.epoch, index)) if drawn else None
            return self._read(self._open(path), name, rng)

    def _read(self, pairs: PairFile, name: str, rng: np.random.Generator | None) -> dict:
        sources = [pairs["imageA", name], pairs["imageB", name]]
        for source in sources:
            if source.ndim != 3 or source.shape[0] != 1 or not source.size or source.dtype.kind not in "uif":
                raise ValueError(f"an image is {source.shape} {source.dtype} and not (1, H, W) of numbers")
        h, w = sources[0].shape[-2:]
        if sources[1].shape[-2:] != (h, w):
            raise ValueError(f"unequal sizes {(h, w)} and {sources[1].shape[-2:]}")
        top, left, height, width = 0, 0, h, w
        if self.crop:
            if min(h, w) < self.crop:
                raise InputError(f"'{name}' is {h} x {w}, smaller than train.crop ({self.crop}); lower it")
            top, left = rng.integers(h - self.crop + 1), rng.integers(w - self.crop + 1)
            height = width = self.crop
        window = np.s_[..., top : top + height, left : left + width]
        maps = [as_unit(source[window]) for source in sources]
        unsure = [m for m, source in zip(maps, sources) if source.dtype.kind != "u"]  # no range of its own
        if not all(m.min() > -1e-3 and m.max() < 1.001 for m in unsure):  # false for NaN, too; rounding may pass 1
            raise ValueError("an image holds NaN or floats outside [0, 1]")
        if self.augment:
            flip_y, flip_x = rng.integers(2, size=2)
            turns = rng.integers(4) if height == width else 0
            maps = [np.rot90(m[..., :: 1 - 2 * flip_y, :: 1 - 2 * flip_x], turns, (-2, -1)) for m in maps]
        sample = {
            "name": name,
            "image_a": torch.from_numpy(np.ascontiguousarray(maps[0])),
            "image_b": torch.from_numpy(np.ascontiguousarray(maps[1])),
        } | {kind: pairs.feature(kind, name) for kind in self.dims}
        if self.only_text is not None:
            sample["text"] = self.only_text
        if self.chroma:
            coloured = ("chroma", name) in pairs
            stored = pairs["chroma", name][window] if coloured else np.full((2, height, width), NEUTRAL, np.uint8)
            if stored.shape != (2, height, width) or stored.dtype != np.uint8:
                raise ValueError(f"the chroma is {stored.shape} {stored.dtype} and not (2, {height}, {width}) uint8")
            sample["chroma"] = torch.from_numpy(np.array(stored))
        return sample


def collate(samples: list[dict]) -> dict:
    """Samples -> a batch: images stacked (N, 1, H, W), texts padded to (N, L, dim) with text_mask (N, L).

    Raises:
        InputError: images of different sizes, texts of different widths.
    """
    sizes = {tuple(sample["image_a"].shape[-2:]) for sample in samples}
    if len(sizes) > 1:
        raise InputError(
            f"images of different sizes {sorted(sizes)} cannot share a batch; set train.crop, "
            "data.resize or train.batch_size=1"
        )
    for kind in FEATURES:
        if len({sample[kind].shape[1] for sample in samples if kind in sample}) > 1:
            raise InputError(f"the {kind} features of {[sample['name'] for sample in samples]} have different widths")
    columns = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch = {key: torch.stack(column) for key, column in columns.items() if key not in ("name", "text")}
    batch["name"] = columns["name"]
    if "text" in columns:
        batch["text"], batch["text_mask"] = pad_texts(columns["text"])
    return batch


def pad_texts(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts of different lengths (L_i, dim) -> padded (N, L, dim) and mask (N, L), True where a token is."""
    lengths = torch.tensor([len(text) for text in texts])
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def text_encoder_of(path: str | Path) -> str:
    """The text encoder recorded in an H5 file; empty for a published file, which records none."""
    with open_h5(path) as file:
        return attribute(file, "text_encoder")


def task_of(path: str | Path) -> str:
    """The task recorded in an H5 file, e.g. IVF; InputError for a published file, which records none."""
    with open_h5(path) as file:
        task = attribute(file, "task")
    if not re.fullmatch(r"\w+", task):  # it becomes part of a file's name
        raise InputError(f"{path} does not say of which task it is; give the weights, e.g. ckpt=models/IVF.pth")
    return task


def clip_of(file: h5py.File) -> dict[str, str] | None:
    """Name and revision of the CLIP recorded in an H5 file; None if it has no CLIP vectors."""
    return {key: attribute(file, f"clip_{key}") for key in ("name", "revision")} if "clip" in file else None


def default_text(dataset: PairDataset, look_at: int = 256) -> Tensor:
    """The text feature (L, dim) to use where a pair has none: the one nearest to the mean of a training set.

    A real feature of a real pair, so that a network sees what it was trained on. At most `look_at`
    samples, evenly spaced, are compared by their mean token.
    """
    indices = np.linspace(0, len(dataset) - 1, min(look_at, len(dataset))).astype(int)
    features = [dataset.text(index) for index in indices]
    means = torch.stack([feature.mean(dim=0) for feature in features])
    return features[(means - means.mean(dim=0)).norm(dim=1).argmin()].clone()
