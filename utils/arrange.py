"""`data_process.py arrange`: a dataset as its authors publish it, into the VLF layout: links to images, and splits."""

import filecmp
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.check import checked
from utils.config import Config, read_yaml
from utils.data.images import EXTENSIONS
from utils.data.sources import Source, find_dataset, read_names
from utils.errors import InputError, nearest
from utils.files import exclusive_lock, os_error_as_input_error, write_file
from utils.opencv import cv2

ORIGINALS = "configs/originals.yaml"  # where each download has its images
WORD = re.compile(r"<\w+>")  # in a path of configs/originals.yaml, the part that tells the pairs apart
Pair = tuple[Path, Path]  # the images of source A and of source B


def main(config: Config, words: list[str]) -> None:
    """`arrange` by words: a dataset, the folder of its download, and perhaps files <split>.txt that list names."""
    if len(words) < 2:
        raise InputError("arrange takes a dataset and the folder of its download, e.g. arrange MSRS downloads/MSRS")
    dataset, download, *lists = words
    source, originals = find_dataset(dataset, read_yaml(config.data.datasets), config), read_yaml(ORIGINALS)
    if dataset not in originals:
        raise InputError(f"{ORIGINALS} has no dataset '{dataset}'; {nearest(dataset, originals)}")
    arrange(source, originals[dataset], Path(download), [Path(name) for name in lists])


def arrange(source: Source, row: dict, download: Path, lists: Sequence[Path] = ()) -> None:
    """Link the images of a download to where a dataset has them, or copy them, and write its splits.

    Images and splits that are there already and the same stay.

    Args:
        source: the dataset, of any split.
        row: that of the dataset in configs/originals.yaml; its format is explained there.
        download: the folder of the download, or the one above it.
        lists: files <split>.txt with a pair's name a line, for splits of the user's choice in place of the row's.

    Raises:
        InputError: with every problem on a line: a wrong row, no download, a pair without one of its images, a name
            that is listed and not there, another file in a place that is needed. Nothing is written then.
    """
    problems: list[str] = []
    pairs, splits = find_pairs(source.dataset, row, download, problems)
    if lists:
        splits = {path.stem: read_names(path, problems) for path in lists}
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
    files = {source.folder("Image") / f"{split}.txt": sorted(names) for split, names in splits.items()}
    for path, names in files.items():
        if path.exists() and sorted(read_names(path, problems)) != names:
            problems.append(f"{path} is there and lists other names; rename or remove it")
    if problems:
        raise InputError("\n".join([f"{source.dataset} was not arranged:", *(f"  {line}" for line in problems)]))

    with exclusive_lock(source.folder("Image")):
        for target, image in tqdm(links.items(), desc=source.dataset, unit="image", disable=None):
            link(image, target)
        for path, names in files.items():
            if not path.exists():
                write_file(path, "\n".join([*names, ""]))
            print(f"{path}: {len(names)} pairs")


def find_pairs(
    dataset: str, row: dict, download: Path, problems: list[str]
) -> tuple[dict[str, Pair], dict[str, list[str]]]:
    """The pairs of a download by their names, and the names by split; prints the paths of the row that fit nothing.

    `problems` gets a line for each pair that is not whole.

    Raises:
        InputError: nothing in the download fits the row, or several folders in it do, or the row is wrong.
    """
    groups = read_groups(dataset, row)
    folders = [download, *sorted(path for path in download.glob("*") if path.is_dir())]
    found = {folder: [group.find(folder) for _, group in groups] for folder in folders}
    fitting = [folder for folder in folders if any(found[folder])]
    if not fitting:
        what = "has nothing like" if download.is_dir() else "is no folder with images like"
        raise InputError(f"{download} {what} {groups[0][1].paths[0]}; give the folder of the unpacked {dataset}")
    if fitting[0] != download and len(fitting) > 1:
        several = ", ".join(folder.name for folder in fitting)
        raise InputError(f"{download} holds {dataset} in each of {several}; give one of these folders")

    pairs: dict[str, Pair] = {}
    splits: dict[str, list[str]] = {}
    for (split, group), images in zip(groups, found[fitting[0]]):
        if not images:
            print(f"{download} has nothing like {' or '.join(group.paths)}")
        for name in tqdm(images, desc=f"{dataset}, {split}", unit="pair", disable=None):
            try:
                pair = group.pick(name, images[name])
            except InputError as error:
                problems.append(str(error))
                continue
            if name in pairs:
                problems.append(f"'{name}' names two pairs, {pairs[name][0]} and {pair[0]}")
            pairs[name] = pair
            splits.setdefault(split, []).append(name)
    return pairs, splits


@dataclass
class Group:
    """A group of a row of configs/originals.yaml: images of a download that make pairs of one split."""

    a: list[str] | str = ""  # each a path, or several
    b: list[str] | str = ""
    exposures: list[str] | str = ""  # or these in place of a and b
    name: str = "<name>"  # how a pair is called
    skip: list[str] = ()  # folders to leave out

    def __post_init__(self) -> None:
        sides = {"exposures": self.exposures} if self.exposures else {"a": self.a, "b": self.b}
        self.sides = {side: [paths] if isinstance(paths, str) else paths for side, paths in sides.items()}
        self.paths = [path for paths in self.sides.values() for path in paths]

    def find(self, folder: Path) -> dict[str, dict[str, set[Path]]]:
        """The images in a folder: by the name of the pair, for each of `sides`."""
        found: dict[str, dict[str, set[Path]]] = {}
        files = [Path(entry) for entry in sorted(glob.glob("**", root_dir=folder, recursive=True))]
        files = [file for file in files if file.suffix.lower() in EXTENSIONS and not {*self.skip} & {*file.parts}]
        for side, path in ((side, path) for side, paths in self.sides.items() for path in paths):
            pattern = WORD.sub(lambda word: f"(?P{word[0]}[^/]+)", re.escape(path).replace(r"\*", "[^/]*"))
            for file in files:
                if match := re.fullmatch(pattern, file.as_posix(), re.IGNORECASE):
                    name = match.expand(self.name.replace("<", r"\g<"))
                    found.setdefault(name, {each: set() for each in self.sides})[side].add(folder / file)
        return found

    def pick(self, name: str, images: dict[str, set[Path]]) -> Pair:
        """The images of both sources; InputError if there is not one of each, or none is brighter than the others."""
        for side, found in images.items() if not self.exposures else ():
            if len(found) != 1:
                what = f"several images ({', '.join(map(str, sorted(found)))})" if found else "no image"
                raise InputError(
                    f"'{name}' has {what} of source {side.upper()}, which are like {' or '.join(self.paths)}"
                )
        if not self.exposures:
            return images["a"].pop(), images["b"].pop()
        means = {path: mean_gray(path) for path in sorted(images["exposures"])}
        brightest, darkest = max(means, key=means.get), min(means, key=means.get)
        if means[brightest] == means[darkest]:
            raise InputError(f"'{name}' has no two images of different exposure in {brightest.parent}")
        return brightest, darkest


def mean_gray(path: Path) -> float:
    """Of an eighth of the size, which is quick to read from a JPEG; InputError if it cannot be read."""
    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8).mean()
    except (OSError, cv2.error, AttributeError) as error:  # AttributeError: OpenCV returns None for no image
        raise InputError(f"{path} is not an image that can be read") from error


def read_groups(dataset: str, row: dict) -> list[tuple[str, Group]]:
    """The splits of a row and their groups; InputError if it is not as the head of configs/originals.yaml says."""
    groups = []
    for split, entries in checked(dict[str, list[Group] | Group], row, ORIGINALS, dataset).items():
        groups += [(split, group) for group in (entries if isinstance(entries, list) else [entries])]
    for _, group in groups:
        for path in group.paths:
            if any(path.count(word) != 1 for word in WORD.findall(group.name)):
                raise InputError(f"{dataset} in {ORIGINALS} must have {group.name} once in each path, not '{path}'")
    return groups


def is_same(path: Path, image: Path) -> bool:
    """True if `path` is a link to `image` or a copy of it."""
    return path.is_file() and (path.samefile(image) or filecmp.cmp(path, image, shallow=False))


def link(image: Path, target: Path) -> None:
    """A symbolic link, or a copy where there are none; InputError if neither can be made."""
    with os_error_as_input_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to(image.resolve())
        except (OSError, NotImplementedError):
            write_file(target, image.read_bytes())
