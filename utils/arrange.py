"""Put a dataset as its authors publish it into the VLF layout: links to its images, and split files."""

import contextlib
import filecmp
import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.images import EXTENSIONS
from utils.data.sources import Source
from utils.errors import InputError, nearest, short_repr
from utils.files import exclusive_lock, os_error_as_input_error, plain_name, write_file
from utils.opencv import cv2

Pairs = dict[str, tuple[Path, Path]]  # the images of source A and of source B by the pair's name


def arrange(
    dataset: str,
    download: Path,
    root: Path,
    rows: dict[str, dict],
    originals: dict[str, dict],
    lists: Sequence[Path] = (),
) -> list[str]:
    """Link the images of a download to <root>/Image/<task>/<dataset>/<folder>/<name>.<ext>, and write its splits.

    Where links cannot be made, the images are copied. What is there already and is the same stays as it is.

    Args:
        dataset: a row of both tables.
        download: the folder of the download, or one that holds it.
        root: data.root of the config.
        rows: the table of configs/datasets.yaml.
        originals: the table of configs/originals.yaml; the format is explained there.
        lists: files <split>.txt with a pair's name a line, for splits of the user's choice in place of the row's.

    Returns:
        Lines to print: each split file and its number of pairs, and what the download does not have.

    Raises:
        InputError: with every problem on a line: an unknown dataset, a wrong row, no download, a pair without one of
            its images, a name that is listed and not there, something else in a place that is needed. Nothing is
            written then.
    """
    for table, known in (("originals", originals), ("datasets", rows)):
        if dataset not in known:
            raise InputError(f"the table of {table} has no dataset '{dataset}'; {nearest(dataset, known)}")
    problems: list[str] = []
    found, splits, said = find_pairs(dataset, originals[dataset], Path(download), problems)
    if lists:
        splits = {path.stem: read_names(path) for path in map(Path, lists)}
        listed = {name: split for split, names in splits.items() for name in names}
        problems += [f"'{name}' of {listed[name]} is not in {download}" for name in listed if name not in found]
        found = {name: pair for name, pair in found.items() if name in listed}

    source = Source(dataset, "", root=Path(root), **rows[dataset])
    base = source.folder("Image")
    links: dict[Path, Path] = {}
    for i, side in enumerate((source.a, source.b)):
        there = source.list_images(side)
        for name, pair in found.items():
            target = source.image_file(side, name).with_suffix(pair[i].suffix)
            others = [path for path in there.get(name, []) if path != target or not same(path, pair[i])]
            problems += [f"{path} is there and is not {pair[i]}; remove it or arrange elsewhere" for path in others]
            if target not in there.get(name, []):
                links[target] = pair[i]
    files = {base / f"{split}.txt": sorted(names) for split, names in splits.items()}
    for path, names in files.items():
        if path.exists() and sorted(read_names(path)) != names:
            problems.append(f"{path} is there and lists other names; rename or remove it")
    if problems:
        raise InputError("\n".join([f"{dataset} was not arranged:", *(f"  {line}" for line in problems)]))

    with exclusive_lock(base):
        for target, source in tqdm(links.items(), desc=dataset, unit="image"):
            link(source, target)
        for path, names in files.items():
            if not path.exists():
                write_file(path, "\n".join([*names, ""]))
    return [*(f"{path}: {len(names)} pairs" for path, names in files.items()), *said]


def find_pairs(
    dataset: str, row: dict, download: Path, problems: list[str]
) -> tuple[Pairs, dict[str, list[str]], list[str]]:
    """The pairs of a download, their names by split, and lines on the paths that fit nothing in it.

    Args:
        dataset: its name, for messages.
        row: of configs/originals.yaml.
        download: where to look; the paths of the row begin there, or in one folder up to two levels below.
        problems: gets a line for each pair that is not whole.

    Raises:
        InputError: nothing in the download fits the row, or several folders in it do, or the row is wrong.
    """
    groups = list(read_groups(dataset, row))
    entries = sorted(glob.glob("**", root_dir=download, recursive=True))
    files = [Path(entry).as_posix() for entry in entries if Path(entry).suffix.lower() in EXTENSIONS]
    # the folder that the paths begin in -> (number of the group, name of the pair) -> side -> images
    hits: dict[str, dict] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, (_, group) in enumerate(groups):
        for side, regexes in group["sides"].items():
            for file in files:
                match = next(filter(None, (regex.fullmatch(file) for regex in regexes)), None)
                if match and not group["skip"] & set(file.split("/")):
                    hits[match[1]][number, match.expand(group["name"])][side].append(download / file)
    if not hits:
        what = "has nothing like" if download.is_dir() else "is no folder with images like"
        raise InputError(f"{download} {what} {groups[0][1]['paths']}; give the folder of the unpacked {dataset}")
    depth = min(top.count("/") for top in hits)
    tops = [top for top in hits if top.count("/") == depth]
    if len(tops) > 1:
        raise InputError(f"{download} holds {dataset} in each of {', '.join(tops)}; give one of these folders")

    found: Pairs = {}
    splits: dict[str, list[str]] = defaultdict(list)
    for (number, name), images in tqdm(hits[tops[0]].items(), desc=f"{dataset}, finding pairs", unit="pair"):
        split, group = groups[number]
        try:
            pair = pick_exposures(name, **images) if "exposures" in images else pick_pair(name, images, group["paths"])
        except InputError as error:
            problems.append(str(error))
            continue
        if not plain_name(name):
            problems.append(f"{name!r} is not a plain file name")
        if name in found:
            problems.append(f"'{name}' names two pairs, {found[name][0]} and {pair[0]}")
        found[name] = pair
        splits[split].append(name)
    numbers = {number for number, _ in hits[tops[0]]}
    missing = [group["paths"] for number, (_, group) in enumerate(groups) if number not in numbers]
    return found, splits, [f"{download} has nothing like {paths}" for paths in missing]


def read_groups(dataset: str, row: dict) -> Iterator[tuple[str, dict]]:
    """The groups of a row of configs/originals.yaml, each with its split: {sides, name, skip, paths}.

    The sides have regular expressions; the name is a template for `expand` of their matches; the paths are for
    messages.

    Raises:
        InputError: the row is not as the head of that file says.
    """
    for split, groups in row.items() if row and isinstance(row, dict) else [("", row)]:
        for group in groups if groups and isinstance(groups, list) else [groups]:
            try:
                lists = {key: [words] if isinstance(words, str) else list(words) for key, words in group.items()}
                (name,), skip = lists.pop("name", ["<name>"]), set(lists.pop("skip", []))
                sides = {side: [as_regex(path) for path in lists[side]] for side in sorted(lists)}
                words = set(re.findall(r"<(\w+)>", name))
                if list(sides) not in (["a", "b"], ["exposures"]) or not all(
                    words <= set(regex.groupindex) for regexes in sides.values() for regex in regexes
                ):
                    raise ValueError
            except (AttributeError, TypeError, ValueError, re.error) as error:
                raise InputError(
                    f"the row {dataset} of configs/originals.yaml must be as the head of that file says, and has "
                    f"{short_repr(group)}"
                ) from error
            paths = " or ".join(path for side in sides for path in lists[side])
            yield str(split), {"sides": sides, "name": name.replace("<", r"\g<"), "skip": skip, "paths": paths}


def as_regex(path: str) -> re.Pattern:
    """A path of configs/originals.yaml; the first group is the folder it begins in, up to two levels down."""
    parts = re.split(r"(<\w+>|\*)", path)
    wild = {"*": "[^/]*"} | {part: f"(?P{part}[^/]+)" for part in parts if re.fullmatch(r"<\w+>", part)}
    inside = "".join(wild.get(part, re.escape(part)) for part in parts)
    return re.compile(f"((?:[^/]+/){{0,2}}){inside}", re.IGNORECASE)


def pick_pair(name: str, images: dict[str, list[Path]], paths: str) -> tuple[Path, Path]:
    """The images of both sources; InputError if one is missing or there are several."""
    for side in "ab":
        if len(images[side]) != 1:
            what = f"several images ({', '.join(map(str, images[side]))})" if images[side] else "no image"
            raise InputError(f"'{name}' has {what} of source {side.upper()}, which are like {paths}")
    return images["a"][0], images["b"][0]


def pick_exposures(name: str, exposures: list[Path]) -> tuple[Path, Path]:
    """The brightest and the darkest image; InputError if there are no two, or one cannot be read."""
    means = {}
    for path in exposures:
        try:  # an eighth of the size is enough for a mean, and quick to read from a JPEG
            gray = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except (OSError, cv2.error):
            gray = None
        if gray is None:
            raise InputError(f"{path} is not an image that can be read")
        if gray.min() < gray.max():  # an image of one value shows nothing of the scene
            means[path] = gray.mean()
    order = sorted(means, key=means.get)
    if not order or means[order[0]] == means[order[-1]]:
        raise InputError(f"'{name}' has no two images of different exposure in {exposures[0].parent}")
    return order[-1], order[0]


def read_names(path: Path) -> list[str]:
    """The names in a split file, without their extensions; lines with # are notes.

    Raises:
        InputError: it cannot be read, or has no name in it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}, a list of names") from error
    names = [Path(line).stem if Path(line).suffix.lower() in EXTENSIONS else line for line in lines]
    names = list(dict.fromkeys(name for name in names if name and not name.startswith("#")))
    if not names:
        raise InputError(f"{path} lists no names")
    return names


def same(path: Path, source: Path) -> bool:
    """True if `path` is a link to `source` or a copy of it."""
    return path.is_file() and (path.samefile(source) or filecmp.cmp(path, source, shallow=False))


def link(source: Path, target: Path) -> None:
    """A symbolic link, or a hard link, or a copy, whichever is possible first; InputError if none is."""
    source = source.resolve()
    with os_error_as_input_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for make in (os.symlink, os.link):
            with contextlib.suppress(OSError, NotImplementedError):
                return make(source, target)
        write_file(target, source.read_bytes())
