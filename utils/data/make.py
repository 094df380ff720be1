"""H5 files from image sets: pairs read, checked, perhaps aligned and resized, and stored with their features."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.data.align import Alignment, align
from utils.data.h5 import ROWS_OF_A, create_h5, h5_path, write_record, write_sample
from utils.data.images import as_unit, merge_chroma, read_image
from utils.data.ranges import Range, find_range, parse_range, pixels_of
from utils.data.sources import Source, read_names
from utils.errors import InputError, living_workers, shortened
from utils.files import exclusive_lock, whole_file
from utils.opencv import cv2
from utils.process import worker_count
from utils.provenance import GuideRecord
from utils.remarks import remark
from utils.targets import COMPUTED_MAPS

MANY_PAIRS = 32  # processes are not worth their start for fewer


class FeatureMaker(NamedTuple):
    """Makes the features of one kind for a set."""

    record: GuideRecord  # their encoder
    of: Callable[[str, np.ndarray, np.ndarray], np.ndarray]  # name of a pair, A and B (H, W) in [0, 1] -> (L, dim)
    rows_of_a: Mapping[str, int] = {}  # by name, where it is known: how many of the L are of A alone, those of B follow


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
        resize: (height, width) of training sets; None: as they are.
        maps: which of COMPUTED_MAPS training sets get.
        num_workers: processes that read the pairs of a set with MANY_PAIRS.
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
        if alignments:
            print(describe_alignments(alignments))
    return problems


def write_set(path: Path, pairs: "SourcePairs", makers: Makers, num_workers: int) -> dict[str, Alignment]:
    """Write one H5 file, and return how B was registered to A, by name; InputError with a line for each problem."""
    source, names, problems = pairs.source, pairs.names, pairs.problems
    opened = {kind: maker for kind, make in makers.items() if (maker := make(source, names, problems))}
    alignments: dict[str, Alignment] = {}
    with create_h5(path) as file:
        bar = tqdm(read_all(pairs, num_workers), source.name, len(names), unit="pair", disable=None)
        for name, pair in zip(names, bar):
            if isinstance(pair, InputError):
                problems += str(pair).splitlines()
                continue
            for said in pair.remarks:
                remark(*said)
            if not problems:
                features = {kind: maker.of(name, *map(as_unit, pair.images)) for kind, maker in opened.items()}
                write_sample(file, name, pair.maps, features)
                for kind, maker in opened.items():
                    if name in maker.rows_of_a:
                        file[kind][name].attrs[ROWS_OF_A] = maker.rows_of_a[name]
                if pair.alignment:
                    alignments[name] = pair.alignment
                    file["imageB"][name].attrs["align"] = pair.alignment.matrix
        if problems:
            raise InputError("\n".join([f"{source.name} was not made:", *(f"  {line}" for line in problems)]))
        file.attrs.update(dataset=source.dataset, task=source.task, resize=pairs.resize or [])
        for kind, maker in opened.items():
            write_record(file, kind, maker.record)
        file.attrs.update({f"range{group[-1]}": found for group, found in pairs.ranges.items() if found})
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
    """A pair as the H5 stores it: `maps` (H, W), chroma (2, H, W); and the whole images A and B, for features."""

    images: tuple[np.ndarray, np.ndarray]
    maps: dict[str, np.ndarray]
    alignment: Alignment | None
    remarks: list[tuple[Path, str]]  # on its files


class SourcePairs(Dataset):
    """The pairs of a set, read and checked, perhaps aligned and resized, as `make_sets` says.

    A pair that cannot be used (missing or ambiguous file, unreadable image, unequal sizes) is an InputError with a line
    for each problem, and what is wrong with the set is in `problems`, so that all of it can be listed.
    """

    def __init__(
        self, source: Source, resize: Sequence[int] | None = None, maps: Collection[str] = (), motion: str | None = None
    ):
        self.source, self.motion = source, motion
        self.problems: list[str] = []
        self.names = read_names(source.names, self.problems)
        self.sides = {"imageA": source.a, "imageB": source.b, **source.maps}
        self.files = {side: source.list_images(side) for side in self.sides.values()}
        self.ranges: dict[str, Range | None] = {}  # of all splits: equal counts are equal gray in training and testing
        for group, wanted, key in (("imageA", source.range_a, "range_a"), ("imageB", source.range_b, "range_b")):
            files = [path for paths in self.files[self.sides[group]].values() for path in paths]
            found = find_range(parse_range(wanted, key), pixels_of(files), len(files), f"{source.dataset}, {key}")
            self.ranges[group] = found
        self.resize = resize if source.training else None
        self.computed = sorted({*maps} - source.maps.keys()) if source.training else []
        if self.computed and source.task != "IVF":
            kind = self.computed[0]
            self.problems.append(f"the loss or train.crop_on takes '{kind}', and {source.task} has no infrared source")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> SourcePair | InputError:
        name = self.names[index]
        maps, chromas, problems, remarks = {}, [], [], []
        for group, side in self.sides.items():
            try:
                path = self.source.only_image(side, name, self.files[side])
                maps[group], chroma = read_image(path, self.ranges.get(group), lambda *said: remarks.append(said))
                chromas.append(chroma if side in self.source.color else None)
            except InputError as error:
                problems.append(str(error))
        if len({image.shape for image in maps.values()}) > 1:
            sizes = " and ".join(f"{h} x {w}" for h, w in (image.shape for image in maps.values()))
            sides = " and ".join(self.sides.values())
            problems.append(f"'{name}' has sources of unequal sizes: {sizes} pixels in {sides}")
        if problems:
            return InputError("\n".join(problems))
        alignment = None
        if self.motion:
            alignment = align(as_unit(maps["imageA"]), as_unit(maps["imageB"]), self.motion)
            maps["imageB"], chromas[1] = alignment.apply(maps["imageB"], chromas[1])
        images = maps["imageA"], maps["imageB"]
        chroma = merge_chroma(chromas)
        maps |= {} if chroma is None else {"chroma": chroma}
        maps |= {kind: COMPUTED_MAPS[kind](255 * as_unit(images[0])) for kind in self.computed}
        if self.resize:
            maps = {group: resize_landscape(image, *self.resize) for group, image in maps.items()}
        return SourcePair(images, maps, alignment, remarks)


def read_all(pairs: SourcePairs, num_workers: int) -> Iterator[SourcePair | InputError]:
    """The items of `pairs` in order, read by several processes if they are many; InputError if one is killed."""
    workers = worker_count(num_workers) if len(pairs) >= MANY_PAIRS else 0
    with living_workers():
        yield from DataLoader(pairs, num_workers=workers, collate_fn=itemgetter(0))


def resize_landscape(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """FILM's training resize, bilinear: (..., H, W) -> (..., height, width), a portrait image transposed."""
    if image.shape[-2] > image.shape[-1]:
        image = np.swapaxes(image, -2, -1)
    planes = [cv2.resize(plane, (width, height)) for plane in image.reshape(-1, *image.shape[-2:])]
    return np.stack(planes).reshape(*image.shape[:-2], height, width)
