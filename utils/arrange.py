"""`data_process.py arrange`: a dataset as its authors publish it, into the VLF layout: links to images, and splits."""

import contextlib
import filecmp
import glob
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.check import checked
from utils.config import Config, read_yaml
from utils.data.images import EXTENSIONS
from utils.data.sources import Source, find_dataset, read_split
from utils.errors import InputError, nearest
from utils.files import exclusive_lock, os_error_as_input_error, write_file
from utils.opencv import cv2

ORIGINALS = "configs/originals.yaml"  # where each download has its images
WORD = re.compile(r"<\w+>")  # in a path of configs/originals.yaml, the part that tells the pairs apart
Pair = tuple[Path, Path]  # the images of source A and of source B


def main(config: Config, words: list[str]) -> None:
    """Put a dataset as its authors publish it into the VLF layout.

    Args:
        words: the dataset, the folder of the download, and perhaps files <split>.txt that list names.

    Raises:
        InputError: with every problem on a line; nothing is written then.
    """
    if len(words) < 2:
        raise InputError("arrange takes a dataset and the folder of its download, e.g. arrange MSRS downloads/MSRS")
    dataset, download, *lists = words
    source, originals = find_dataset(dataset, read_yaml(config.data.datasets), config), read_yaml(ORIGINALS)
    if dataset not in originals:
        raise InputError(f"{ORIGINALS} has no dataset '{dataset}'; {nearest(dataset, originals)}")
    for line in arrange(source, originals[dataset], Path(download), [Path(name) for name in lists]):
        print(line)


def arrange(source: Source, row: dict, download: Path, lists: Sequence[Path] = ()) -> list[str]:
    """Link the images of a download to where a dataset has them, and write its splits.

    Where links cannot be made, the images are copied. Images and splits that are there already and the same stay.

    Args:
        source: the dataset, of any split.
        row: that of the dataset in configs/originals.yaml; its format is explained there.
        download: the folder of the download, or one that holds it.
        lists: files <split>.txt with a pair's name a line, for splits of the user's choice in place of the row's.

    Returns:
        Lines to print: each split file and its number of pairs, and the paths of the row that fit nothing.

    Raises:
        InputError: with every problem on a line: a wrong row, no download, a pair without one of its images, a name
            that is listed and not there, another file in a place that is needed. Nothing is written then.
    """
    problems: list[str] = []
    pairs, splits, said = find_pairs(source.dataset, row, download, problems)
    if lists:
        splits = {path.stem: read_list(path, source, problems) for path in lists}
        listed = {name: split for split, names in splits.items() for name in names}
        problems += [f"'{name}' of {listed[name]} is not in {download}" for name in listed if name not in pairs]
        pairs = {name: pair for name, pair in pairs.items() if name in listed}

    links: dict[Path, Path] = {}
    for i, side in enumerate((source.a, source.b)):
        there = source.list_images(side)
        for name, pair in pairs.items():
            target = source.image_file(side, name).with_suffix(pair[i].suffix)
            others = [path for path in there.get(name, []) if path != target or not is_same(path, pair[i])]
            problems += [f"{path} is there and is not {pair[i]}; remove it or arrange elsewhere" for path in others]
            if target not in there.get(name, []):
                links[target] = pair[i]
    files = {replace(source, split=split).names: sorted(names) for split, names in splits.items()}
    for path, names in files.items():
        if path.exists() and sorted(read_list(path, source, problems)) != names:
            problems.append(f"{path} is there and lists other names; rename or remove it")
    if problems:
        raise InputError("\n".join([f"{source.dataset} was not arranged:", *(f"  {line}" for line in problems)]))

    with exclusive_lock(source.folder("Image")):
        for target, image in tqdm(links.items(), desc=source.dataset, unit="image"):
            link(image, target)
        for path, names in files.items():
            if not path.exists():
                write_file(path, "\n".join([*names, ""]))
    return [*(f"{path}: {len(names)} pairs" for path, names in files.items()), *said]


def read_list(path: Path, source: Source, problems: list[str]) -> list[str]:
    """The names in a file <split>.txt, which may lie anywhere, as `read_split` reads them."""
    return read_split(replace(source, split=str(path.resolve().with_suffix(""))), problems)


def find_pairs(
    dataset: str, row: dict, download: Path, problems: list[str]
) -> tuple[dict[str, Pair], dict[str, list[str]], list[str]]:
    """The pairs of a download by their names, the names by split, and lines on the paths that fit nothing in it.

    Args:
        problems: gets a line for each pair that is not whole.

    Raises:
        InputError: nothing in the download fits the row, or several folders in it do, or the row is wrong.
    """
    groups = read_groups(dataset, row)
    entries = sorted(glob.glob("**", root_dir=download, recursive=True))
    files = [Path(entry).as_posix() for entry in entries if Path(entry).suffix.lower() in EXTENSIONS]
    found = [group.find(files) for group in groups]
    tops = sorted({top for by_top in found for top in by_top}, key=lambda top: top.count("/"))
    if not tops:
        what = "has nothing like" if download.is_dir() else "is no folder with images like"
        raise InputError(f"{download} {what} {groups[0].paths[0]}; give the folder of the unpacked {dataset}")
    same_depth = sorted(top for top in tops if top.count("/") == tops[0].count("/"))
    if len(same_depth) > 1:
        raise InputError(f"{download} holds {dataset} in each of {', '.join(same_depth)}; give one of these folders")

    pairs: dict[str, Pair] = {}
    splits: dict[str, list[str]] = defaultdict(list)
    for group, by_top in zip(groups, found):
        for name, images in tqdm(by_top[tops[0]].items(), desc=f"{dataset}, {group.split}", unit="pair"):
            try:
                pair = group.pick(name, {side: [download / file for file in images[side]] for side in group.sides})
            except InputError as error:
                problems.append(str(error))
                continue
            if name in pairs:
                problems.append(f"'{name}' names two pairs, {pairs[name][0]} and {pair[0]}")
            pairs[name] = pair
            splits[group.split].append(name)
    lacking = [" or ".join(group.paths) for group, by_top in zip(groups, found) if not by_top[tops[0]]]
    return pairs, splits, [f"{download} has nothing like {paths}" for paths in lacking]


@dataclass
class Group:
    """A group of a row of configs/originals.yaml: images of a download that make pairs of one split."""

    a: list[str] | str = ""  # each a path, or several
    b: list[str] | str = ""
    exposures: list[str] | str = ""  # or these in place of a and b
    name: str = "<name>"  # how a pair is called
    skip: list[str] | str = ()  # folders to leave out
    split: str = ""

    def __post_init__(self) -> None:
        sides = {"exposures": self.exposures} if self.exposures else {"a": self.a, "b": self.b}
        self.sides = {side: as_list(paths) for side, paths in sides.items()}
        self.paths = list(itertools.chain(*self.sides.values()))

    def find(self, files: list[str]) -> dict[str, dict[str, dict[str, list[str]]]]:
        """The images among some files: by the folder that their paths begin in, the name of the pair, and the side."""
        found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        files = [file for file in files if not {*as_list(self.skip)} & {*file.split("/")}]
        for side, paths in self.sides.items():
            regexes = [as_regex(path) for path in paths]
            for file in files:
                match = next(filter(None, (regex.fullmatch(file) for regex in regexes)), None)
                if match:
                    found[match[1]][match.expand(self.name.replace("<", r"\g<"))][side].append(file)
        return found

    def pick(self, name: str, images: dict[str, list[Path]]) -> Pair:
        """The images of both sources; InputError if there is not one of each."""
        if self.exposures:
            return pick_exposures(name, images["exposures"])
        for side in "ab":
            if len(images[side]) != 1:
                what = f"several images ({', '.join(map(str, images[side]))})" if images[side] else "no image"
                raise InputError(
                    f"'{name}' has {what} of source {side.upper()}, which are like {' or '.join(self.paths)}"
                )
        return images["a"][0], images["b"][0]


def read_groups(dataset: str, row: dict) -> list[Group]:
    """The groups of a row; InputError if it is not as the head of configs/originals.yaml says."""
    groups = []
    for split, entries in checked(dict[str, list[Group] | Group], row, ORIGINALS, dataset).items():
        groups += [replace(group, split=split) for group in as_list(entries)]
    for group in groups:
        for path in group.paths:
            words = WORD.findall(path)
            if len(words) > len({*words}) or not {*WORD.findall(group.name)} <= {*words}:
                raise InputError(f"{dataset} in {ORIGINALS} must have {group.name} once in each path, not '{path}'")
    if not groups:
        raise InputError(f"{dataset} in {ORIGINALS} has no paths")
    return groups


def as_list(one_or_several: Any) -> list:
    """A list, also of what YAML gives alone."""
    return [one_or_several] if isinstance(one_or_several, (str, Group)) else list(one_or_several)


def as_regex(path: str) -> re.Pattern:
    """A path of configs/originals.yaml; the first group is the folder it begins in, up to two levels down."""
    parts = re.split(r"(<\w+>|\*)", path)
    wild = {"*": "[^/]*"} | {word: f"(?P{word}[^/]+)" for word in WORD.findall(path)}
    inside = "".join(wild.get(part, re.escape(part)) for part in parts)
    return re.compile(f"((?:[^/]+/){{0,2}}){inside}", re.IGNORECASE)


def pick_exposures(name: str, exposures: list[Path]) -> Pair:
    """The brightest and the darkest image; InputError if they are equally bright, or one cannot be read."""
    means = {}
    for path in exposures:
        try:  # an eighth of the size is enough for a mean, and quick to read from a JPEG
            means[path] = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8).mean()
        except (OSError, cv2.error, AttributeError) as error:  # AttributeError: OpenCV returns None for no image
            raise InputError(f"{path} is not an image that can be read") from error
    brightest, darkest = max(means, key=means.get), min(means, key=means.get)
    if means[brightest] == means[darkest]:
        raise InputError(f"'{name}' has no two images of different exposure in {exposures[0].parent}")
    return brightest, darkest


def is_same(path: Path, image: Path) -> bool:
    """True if `path` is a link to `image` or a copy of it."""
    return path.is_file() and (path.samefile(image) or filecmp.cmp(path, image, shallow=False))


def link(image: Path, target: Path) -> None:
    """A symbolic link, or a hard link, or a copy, whichever is possible first; InputError if none is."""
    image = image.resolve()
    with os_error_as_input_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for make in (os.symlink, os.link):
            with contextlib.suppress(OSError, NotImplementedError):
                return make(image, target)
        write_file(target, image.read_bytes())
