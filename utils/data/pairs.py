"""Image pairs and the features that guide their fusion, from H5 files to batches."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from utils.data.features import FEATURES, collate_features, features_of
from utils.data.h5 import PairFile, read_record, sample_errors_named
from utils.data.images import NEUTRAL, as_unit
from utils.errors import InputError, enough_memory
from utils.files import plain_name
from utils.provenance import GuideRecord
from utils.targets import COMPUTED_MAPS

LESS_SHARED = "set num_workers=0 under train or test, or give more shared memory, e.g. docker run --shm-size=8g"

# see PairDataset
Transform = Callable[[dict[str, np.ndarray], np.random.Generator], tuple[dict[str, np.ndarray], dict[str, Tensor]]]


@dataclass
class StoredFeature:
    """What the files of a set hold of one kind of feature."""

    lacking: str | None = None  # the first file that does not hold it; then no sample has it
    width: int | None = None  # in the files that hold it
    records: dict[str, GuideRecord | None] = field(default_factory=dict)  # by file: its encoder, if it says
    instead: Tensor | None = None  # what every sample gets in place of its own, (L, dim)
    side: str = ""  # "a" or "b": every sample gets the rows of that source alone


class PairDataset(Dataset):
    """Registered pairs with the features that a network takes, from one or more H5 files.

    A sample is a dict: name (str), image_a and image_b (1, H, W) float32 in [0, 1], the features of `inputs` that all
    files hold, e.g. text (L, dim) and clip (2, E) float32, the further `maps` (1, H, W) float32 in [0, 1], and with
    `chroma` also chroma (2, H, W) uint8, 128 where a pair has no colour.

    Args:
        inputs: what a network takes beside the images, its `inputs`.
        crop: side in pixels of a random square; None keeps whole images.
        pad: "reflect" continues a pair that is smaller than the crop to the right and below, as mirrors would; None
            refuses it.
        augment: random flips, and 90-degree rotations of squares. One draw serves the whole pair.
        seed: with the epoch and the index it decides the draw, whatever worker or rank does it.
        maps: by their names in the table of datasets.
        leave_out: names of samples to leave out.
        crop_on: a further map, returned as `maps` are; half of the crops are placed so that they hold a pixel where it
            is over 0.5, if there is one.
        transform: called with the cropped image_a, image_b and maps (1, H, W), and a random generator; it returns such
            maps, to be flipped together, and further entries of the sample.

    Attributes:
        path: the first file.
        features: by kind of `inputs` its `StoredFeature`.
        samples: (path, name) of each.
        padded: how many of them are padded.

    Raises:
        InputError: missing or damaged file, features that do not go together, `leave_out` names what is not there, a
            pair is smaller than the crop.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        inputs: Sequence[str] = ("text", "text_mask"),
        crop: int | None = None,
        pad: str | None = None,
        augment: bool = False,
        seed: int = 0,
        chroma: bool = False,
        maps: Sequence[str] = (),
        leave_out: Sequence[str] = (),
        crop_on: str | None = None,
        transform: Transform | None = None,
    ):
        if crop_on and not crop:
            raise InputError(f"train.crop_on={crop_on} places crops, and train.crop is not set")
        self.crop, self.augment, self.seed, self.chroma = crop, augment, seed, chroma
        self.path, self.crop_on, self.transform = str(paths[0]), crop_on, transform
        self.maps = sorted({*maps, crop_on} - {None})
        self.features = {feature.name: StoredFeature() for feature in features_of(inputs)}
        self.samples: list[tuple[str, str]] = []
        self._files: dict[tuple[str, int], PairFile] = {}
        for path in map(str, paths):
            self._add(path)
        unknown = {*leave_out} - {name for _, name in self.samples}
        if unknown:
            raise InputError(f"data.leave_out names '{min(unknown)}', which is in none of the training sets")
        self.samples = [sample for sample in self.samples if sample[1] not in leave_out]
        small = [i for i, _ in enumerate(self.samples if crop else ()) if min(self._size(i)) < crop]
        if small and not pad:
            name, (h, w) = self.samples[small[0]][1], self._size(small[0])
            raise InputError(
                f"{len(small)} of {len(self)} pairs are smaller than train.crop ({crop}), e.g. '{name}', {h} x {w}; "
                "set train.pad=reflect, or lower train.crop"
            )
        self.padded = len(small)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def _add(self, path: str) -> None:
        """Take up the samples of a file, and check that they go with those before."""
        pairs = self._open(path)
        names = sorted(pairs.groups["imageA"], key=str)
        for name in names:
            if not (isinstance(name, str) and plain_name(name)):  # HDF5 has bytes where it is not UTF-8
                raise InputError(f"{path} names a sample {name!r}, which is no plain file name; make it again")
        for kind in self.maps:
            if kind not in pairs.groups:
                row = "" if kind in COMPUTED_MAPS else "name its folder under maps in the table of datasets, and "
                raise InputError(
                    f"{path} holds no '{kind}', which the loss or train.crop_on takes; {row}make the H5 again with "
                    f'this config: python data_process.py --config ... "data.train=[{Path(path).stem}]"'
                )
        for kind, stored in self.features.items():
            if kind not in pairs.groups:
                stored.lacking = stored.lacking or path
                continue
            stored.records[path] = read_record(pairs.file, kind)
            with sample_errors_named(path, names[0]):
                width = pairs.feature(kind, names[0]).shape[1]
            if width != (stored.width or width):
                raise InputError(
                    f"{path} has {kind} {width} wide, and the sets before it {stored.width}; make them with one config"
                )
            stored.width = width
        self.samples += [(path, name) for name in names]

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """New random draws; call it between two passes of a DataLoader."""
        self._epoch.fill_(epoch)

    def whole(self) -> "PairDataset":
        """The same pairs as they are stored: no crops, no flips, no transform."""
        plain = copy.copy(self)
        plain.crop = plain.crop_on = plain.augment = plain.transform = None
        return plain

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # open files stay with their process

    def _open(self, path: str) -> PairFile:
        """A file, opened once per process: HDF5 handles do not survive a fork."""
        key = path, os.getpid()
        if key not in self._files:
            self._files[key] = PairFile(path)
        return self._files[key]

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of a sample."""
        path, name = self.samples[index]
        with sample_errors_named(path, name):
            return self._open(path).size(name)

    def feature(self, kind: str, index: int) -> Tensor:
        """The stored feature of a sample alone, e.g. its text (L, dim)."""
        path, name = self.samples[index]
        with sample_errors_named(path, name):
            return self._open(path).feature(kind, name, self.features[kind].side)

    def __getitem__(self, index: int) -> dict:
        path, name = self.samples[index]
        with sample_errors_named(path, name):
            return self._read(self._open(path), name, index)

    def _read(self, pairs: PairFile, name: str, index: int) -> dict:
        stored = {"image_a": pairs.open("imageA", name), "image_b": pairs.open("imageB", name)}
        stored |= {kind: pairs.open(kind, name) for kind in self.maps}
        size = check_images(stored)
        drawn = self.crop or self.augment or self.transform
        rng = np.random.default_rng((self.seed, int(self._epoch), index)) if drawn else None
        window = self._draw_window(stored, rng) if self.crop else np.s_[...]
        maps = {kind: reflected(as_unit(array[window]), self.crop or 0) for kind, array in stored.items()}
        unsure = [maps[kind] for kind, array in stored.items() if array.dtype.kind != "u"]  # no range of its own
        if not all(m.min() > -1e-3 and m.max() < 1.001 for m in unsure):  # false for NaN, too; rounding may pass 1
            raise ValueError("an image holds NaN or floats outside [0, 1]")
        maps, further = self.transform(maps, rng) if self.transform else (maps, {})
        if self.augment:
            maps = flip(maps, rng)
        sample = {"name": name} | {kind: torch.from_numpy(np.ascontiguousarray(m)) for kind, m in maps.items()}
        for kind, feature in self.features.items():
            if feature.instead is not None:
                sample[kind] = feature.instead
            elif not feature.lacking:
                sample[kind] = pairs.feature(kind, name, feature.side)
        if self.chroma:
            colored = name in pairs.groups.get("chroma", ())
            chroma = pairs.open("chroma", name)[()] if colored else np.full((2, *size), NEUTRAL, np.uint8)
            if chroma.shape != (2, *size) or chroma.dtype != np.uint8:
                raise ValueError(f"the chroma is {chroma.shape} {chroma.dtype} and not {(2, *size)} uint8")
            sample["chroma"] = torch.from_numpy(chroma)
        return sample | further

    def _draw_window(self, stored: dict[str, h5py.Dataset], rng: np.random.Generator) -> tuple:
        """Where a crop is, as an index; of a smaller side all of it."""
        h, w = stored["image_a"].shape[-2:]
        most = max(h - self.crop, 0), max(w - self.crop, 0)
        top, left = rng.integers(most[0] + 1), rng.integers(most[1] + 1)
        if self.crop_on and rng.integers(2):
            places = np.flatnonzero(is_over_half(stored[self.crop_on][()]))
            if len(places):
                y, x = divmod(int(rng.choice(places)), w)
                top, left = np.clip((y, x) - rng.integers(self.crop, size=2), 0, most)
        return np.s_[..., top : top + self.crop, left : left + self.crop]


def reflected(image: np.ndarray, side: int) -> np.ndarray:
    """A map (1, H, W), continued to the right and below as mirrors would where it has less than `side` pixels."""
    missing = [(0, max(side - length, 0)) for length in image.shape[-2:]]
    return np.pad(image, [(0, 0), *missing], "reflect") if np.any(missing) else image


def is_over_half(image: np.ndarray) -> np.ndarray:
    """as_unit(image) > 0.5, in the image's own numbers: a whole map of floats would take longer than the crop."""
    return image > (np.iinfo(image.dtype).max // 2 if image.dtype.kind in "ui" else 0.5)


def check_images(stored: dict[str, h5py.Dataset]) -> tuple[int, int]:
    """Height and width of the images of a sample; ValueError if they are no images, or of several sizes."""
    for image in stored.values():
        if image.ndim != 3 or image.shape[0] != 1 or not image.size or image.dtype.kind not in "uif":
            raise ValueError(f"an image is {image.shape} {image.dtype} and not (1, H, W) of numbers")
    sizes = {image.shape[-2:] for image in stored.values()}
    if len(sizes) > 1:
        raise ValueError(f"its images have unequal sizes {sorted(sizes)}")
    return sizes.pop()


def flip(maps: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Maps (..., H, W) flipped at random, and squares rotated by a multiple of 90 degrees, all of them alike."""
    height, width = maps["image_a"].shape[-2:]
    flip_y, flip_x = rng.integers(2, size=2)
    turns = rng.integers(4) if height == width else 0
    flipped = np.s_[..., :: 1 - 2 * flip_y, :: 1 - 2 * flip_x]
    return {kind: np.rot90(m[flipped], turns, (-2, -1)) for kind, m in maps.items()}


def collate(samples: list[dict]) -> dict:
    """Samples -> a batch: names, maps (N, 1, H, W), features of `collate_features`; InputError for unequal sizes."""
    sizes = {tuple(sample["image_a"].shape[-2:]) for sample in samples}
    if len(sizes) > 1:
        raise InputError(
            f"images of different sizes {sorted(sizes)} cannot share a batch; set train.crop, "
            "data.resize or train.batch_size=1"
        )
    batch = {}
    for key in samples[0]:
        column = [sample[key] for sample in samples]
        if key in FEATURES:
            batch |= collate_features(key, column)
        else:
            batch[key] = column if key == "name" else torch.stack(column)
    if get_worker_info():  # by itself PyTorch does it later, in a thread whose errors nobody hears
        with enough_memory("hand batches from process to process", LESS_SHARED):
            for value in batch.values():
                value.share_memory_() if torch.is_tensor(value) else None
    return batch
