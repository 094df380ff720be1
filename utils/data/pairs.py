"""Image pairs and the features that guide their fusion, from H5 files to batches."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.h5 import PairFile, clip_of, reading
from utils.data.images import NEUTRAL, as_unit
from utils.errors import InputError
from utils.files import plain_name

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


def default_text(dataset: PairDataset, look_at: int = 256) -> Tensor:
    """The text feature (L, dim) to use where a pair has none: the one nearest to the mean of a training set.

    A real feature of a real pair, so that a network sees what it was trained on. At most `look_at`
    samples, evenly spaced, are compared by their mean token.
    """
    indices = np.linspace(0, len(dataset) - 1, min(look_at, len(dataset))).astype(int)
    features = [dataset.text(index) for index in indices]
    means = torch.stack([feature.mean(dim=0) for feature in features])
    return features[(means - means.mean(dim=0)).norm(dim=1).argmin()].clone()
