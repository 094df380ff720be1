"""H5 files from image sets: pairs read, checked, perhaps aligned and resized, and stored with their features."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from net.provenance import GuideRecord
from utils.data.align import Alignment, align
from utils.data.features import attributes_of
from utils.data.h5 import create_h5, h5_path, write_sample
from utils.data.images import as_unit, merge_chroma, read_image
from utils.data.sources import Source, read_split
from utils.errors import InputError, shortened
from utils.files import exclusive_lock, whole_file
from utils.opencv import cv2
from utils.targets import COMPUTED_MAPS

PAIRS_A_WORKER = 16  # another process is not worth its start for fewer


class FeatureMaker(Protocol):
    """Makes the features of one kind for a set. `record` names its encoder."""

    record: GuideRecord

    def __call__(self, name: str, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray:
        """The feature (L, dim) of the pair `name`, images (H, W) float32 in [0, 1]."""


Makers = Mapping[str, Callable[[Source, list[str], list[str]], FeatureMaker | None]]  # of utils.guides.makers_of


def make_sets(
    sources: list[Source],
    makers: Makers,
    folder: str,
    resize: Sequence[int] | None = None,
    maps: Collection[str] = (),
    num_workers: int = 0,
    motion: str | None = None,
) -> list[str]:
    """Write the H5 files of some sets. Their bytes do not depend on the number of workers.

    Args:
        makers: by kind of the features to store, what opens their `FeatureMaker` for a set, or gives None for no
            features; called with the set, its pairs, and a list for sentences on everything that is wrong.
        folder: of the H5 files.
        resize: (height, width) of training sets; None: as they are.
        maps: which of COMPUTED_MAPS training sets get.
        num_workers: processes that read the pairs of a large set.
        motion: one of MOTIONS to register B to A by it, or None to take the pairs as they are.

    Returns:
        What is wrong with the sets that could not be made, a text of several lines for each; what was there before
        stays.
    """
    problems = []
    for source in sources:
        path = h5_path(folder, source.name)
        try:
            with exclusive_lock(path), whole_file(path) as temporary:
                pairs = SourcePairs(source, resize, maps, motion)
                alignments = write_set(temporary, pairs, makers, num_workers)
        except InputError as error:
            problems.append(str(error))
            continue
        print(f"{path}: {len(pairs)} pairs, {path.stat().st_size / 1e6:.1f} MB")
        if motion:
            print(describe_alignments(alignments))
    return problems


def write_set(path: Path, pairs: "SourcePairs", makers: Makers, num_workers: int) -> dict[str, Alignment | None]:
    """Write one H5 file; by name of the pair how B was registered to A.

    Raises:
        InputError: with every problem of the set on a line of its own.
        OSError: it cannot be written.
    """
    source, names, problems = pairs.source, pairs.names, pairs.problems
    opened = {kind: make(source, names, problems) for kind, make in makers.items()}
    opened = {kind: maker for kind, maker in opened.items() if maker}
    found = read_in_order(pairs, min(num_workers, len(names) // PAIRS_A_WORKER))
    alignments: dict[str, Alignment | None] = {}
    with create_h5(path) as file:
        for name, pair in zip(names, tqdm(found, total=len(names), desc=source.name, unit="pair")):
            if isinstance(pair, InputError):
                problems += str(pair).splitlines()
            elif not problems:
                units = [as_unit(image) for image in pair.images]
                write_sample(file, name, pair.maps, {kind: maker(name, *units) for kind, maker in opened.items()})
                alignments[name] = pair.alignment
                if pair.alignment:
                    file["imageB"][name].attrs["align"] = pair.alignment.matrix
        if problems:
            raise InputError("\n".join([f"{source.name} was not made:", *(f"  {line}" for line in problems)]))
        file.attrs.update(dataset=source.dataset, split=source.split, task=source.task)
        file.attrs.update(sources=f"{source.a},{source.b}", resize=pairs.resize or [])
        for kind, maker in opened.items():
            file.attrs.update(attributes_of(kind, maker.record))
        if pairs.motion:
            file.attrs["align"] = pairs.motion
    return alignments


def describe_alignments(alignments: Mapping[str, Alignment]) -> str:
    """One line on the pairs of a set, by name: how many were moved, how far, and which were not."""
    shifts = [found.shift for found in alignments.values() if found.improved]
    kept = [name for name, found in alignments.items() if not found.improved]
    moved = f"B was moved to A in {len(shifts)} of {len(alignments)} pairs"
    moved += f", by {np.median(shifts):.1f} pixels in the median" if shifts else ""
    return moved + (f"; kept as they are: {shortened(kept, 5)}" if kept else "")


class SourcePair(NamedTuple):
    """A pair as the H5 stores it, with the whole images A and B for makers of features."""

    images: tuple[np.ndarray, np.ndarray]
    maps: dict[str, np.ndarray]
    alignment: Alignment | None


class SourcePairs(Dataset):
    """The pairs of a set, read and checked, perhaps aligned and resized, as `make_sets` says.

    What is wrong with a pair is returned as an InputError, and what is wrong with the set is in `problems`, so that all
    of it can be listed.
    """

    def __init__(self, source: Source, resize: Sequence[int] | None, maps: Collection[str], motion: str | None):
        self.source, self.motion = source, motion
        self.problems: list[str] = []
        self.names = read_split(source, self.problems)
        self.files = {side: source.list_images(side) for side in (source.a, source.b, *source.maps.values())}
        self.resize = resize if source.training else None
        self.computed = sorted({*maps} - source.maps.keys()) if source.training else []
        if self.computed and source.task != "IVF":
            kind = self.computed[0]
            self.problems.append(f"the loss or train.crop_on takes '{kind}', and {source.task} has no infrared source")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> SourcePair | InputError:
        try:
            maps, alignment = read_pair(self.source, self.files, self.names[index], self.motion)
        except InputError as error:
            return error
        images = maps["imageA"], maps["imageB"]
        maps |= {kind: COMPUTED_MAPS[kind](255 * as_unit(images[0])) for kind in self.computed}
        if self.resize:
            maps = {group: resize_landscape(image, *self.resize) for group, image in maps.items()}
        return SourcePair(images, maps, alignment)


def read_in_order(pairs: SourcePairs, workers: int) -> Iterator[SourcePair | InputError]:
    """The items of `pairs`, read by so many processes; InputError if one of them is killed."""
    loader = DataLoader(pairs, batch_size=None, num_workers=workers, collate_fn=as_it_is)
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise InputError(
            "a worker process was killed, as happens where memory runs out; set data.num_workers lower, or to 0"
        ) from error


def as_it_is(item: Any) -> Any:
    """What the loader makes of an item: by itself it would make tensors of arrays."""
    return item


def read_pair(
    source: Source, files: dict, name: str, motion: str | None = None
) -> tuple[dict[str, np.ndarray], Alignment | None]:
    """A pair as an H5 groups it, and how B was registered to A, if it was to be.

    Args:
        files: by side what `Source.list_images` gives.
        motion: one of MOTIONS to register imageB and its colour to imageA, or None. Further maps are left as they are.

    Returns:
        imageA, imageB and further maps (H, W), and chroma (2, H, W) if the pair has colour; the alignment or None.

    Raises:
        InputError: a line per problem: missing or ambiguous file, unreadable image, unequal sizes.
    """
    problems, pair, chromas = [], {}, []
    for group, side in {"imageA": source.a, "imageB": source.b, **source.maps}.items():
        found = files[side].get(name, [])
        if len(found) != 1:
            what = f"several images ({', '.join(path.name for path in found)})" if found else "no image"
            problems.append(f"'{name}' has {what} in {source.folder('Image') / side}")
            continue
        try:
            pair[group], chroma = read_image(found[0])
        except InputError as error:
            problems.append(str(error))
            continue
        chromas.append(chroma if side in source.color else None)
    if len({image.shape for image in pair.values()}) > 1:
        sides = [source.a, source.b, *source.maps.values()]
        sizes = " and ".join(f"{h} x {w}" for h, w in (image.shape for image in pair.values()))
        problems.append(f"'{name}' has sources of unequal sizes: {sizes} pixels in {' and '.join(sides)}")
    if problems:
        raise InputError("\n".join(problems))
    alignment = align(as_unit(pair["imageA"]), as_unit(pair["imageB"]), motion) if motion else None
    if alignment:
        pair["imageB"], chromas[1] = alignment.apply(pair["imageB"], chromas[1])
    chroma = merge_chroma(chromas)
    return (pair if chroma is None else pair | {"chroma": chroma}), alignment


def resize_landscape(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The paper's training resize, bilinear: (..., H, W) -> (..., height, width), a portrait image transposed."""
    if image.shape[-2] > image.shape[-1]:
        image = np.swapaxes(image, -2, -1)
    planes = [cv2.resize(plane, (width, height)) for plane in image.reshape(-1, *image.shape[-2:])]
    return np.stack(planes).reshape(*image.shape[:-2], height, width)
