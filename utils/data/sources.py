"""Image sets on disk: the table of datasets, the VLF layout, splits that are drawn, sets that are simulated.

<data.root>/Image/<task>/<dataset>/<folder>/<name>.<ext>    images of source A and source B, and further maps
<data.root>/Image/<task>/<dataset>/<split>.txt              names of a split, one a line
<data.root>/Text/<task>/<dataset>/<folder>/<name>.txt       a paragraph for every image
<data.root>/TextFeature/<task>/<dataset>/<name>.npy         text features of a pair
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.config import Config, read_yaml
from utils.data.images import EXTENSIONS, as_unit, colorize, list_images, read_image, to_8bit, write_image
from utils.data.simulate import SIMULATORS
from utils.errors import InputError, nearest, short_repr
from utils.files import find_file, plain_name, write_file
from utils.guides import GUIDES
from utils.guides.features import read_paragraph

GROUPS = ("imageA", "imageB", "chroma")  # of an H5 file, beside those of guides and further maps
RESERVED = ("name", "image_a", "image_b", *GROUPS)  # what a further map cannot be called


@dataclass
class Source:
    """One set on disk: a row of the table of datasets, and a split.

    Attributes:
        a, b: where the images of the sources are: a folder ("IR"), or files with * for the pair's name
            ("IR/*_ir", or "*_ir" for files beside the split file).
        color: those of a and b whose colour a result gets.
        maps: further gray images of each pair, {name: folder or files}, for losses that take them.
    """

    dataset: str
    split: str
    task: str
    a: str
    b: str
    color: list[str]
    root: Path
    maps: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.split}"

    @property
    def names(self) -> Path:
        """The split file."""
        return self.folder("Image") / f"{self.split}.txt"

    def folder(self, kind: str) -> Path:
        """Folder of this dataset under Image/, Text/ or TextFeature/."""
        return self.root / kind / self.task / self.dataset

    def list_images(self, side: str) -> dict[str, list[Path]]:
        """The images of one side (a, b or one of maps) by the names of their pairs."""
        pattern = self.folder("Image") / files_of(side)
        return list_images(pattern.parent, pattern.name)

    def image_file(self, side: str, name: str) -> Path:
        """Where a new image of one side goes."""
        return self.folder("Image") / f"{files_of(side)}.png".replace("*", name)

    def text_file(self, side: str, name: str) -> Path:
        """Where the paragraph of an image is: under Text/ as the image is under Image/."""
        return self.folder("Text") / f"{files_of(side)}.txt".replace("*", name)


def files_of(side: str) -> str:
    """A folder, or files with * for the name, as files with * for the name."""
    return side if "*" in side else f"{side}/*"


def find_sources(config: Config, words: list[str]) -> list[Source]:
    """The sets to make, by the names `words`: <dataset>_<split>, or <dataset> for all its splits."""
    table = read_yaml(config.data.datasets)
    data = config.data
    shaped = data.resize or data.patch_size
    for name in set(data.train) & {*data.val, *data.test} if shaped else ():
        raise InputError(f"{name} is resized or cut for training and cannot be tested on whole; use another split")
    sources = []
    for word in dict.fromkeys(words):
        dataset, split = (word, None) if word in table else (word.rpartition("_")[0], word.rpartition("_")[2])
        row = find_dataset(dataset or word, table, config)
        splits = [split] if split else sorted(path.stem for path in row.folder("Image").glob("*.txt"))
        if not splits:
            raise InputError(f"there is no <split>.txt in {row.folder('Image')}")
        sources += [replace(row, split=split) for split in splits]
    if not sources:
        raise InputError("the config names no set under data.train, data.val or data.test")
    return sources


def find_dataset(dataset: str, table: dict, config: Config) -> Source:
    """A row of the table of datasets as a set without a split; InputError if it is missing or makes no sense."""
    if dataset not in table:
        raise InputError(f"{config.data.datasets} has no dataset '{dataset}'; {nearest(dataset, table)}")
    row = table[dataset]
    words = row if isinstance(row, dict) else {}
    color, maps = words.get("color"), words.get("maps", {})
    taken = {*RESERVED, *GUIDES, *(key for guide in GUIDES.values() for key in guide.inputs)}
    if (
        not {"task", "a", "b", "color"} <= set(words) <= {"task", "a", "b", "color", "maps"}
        or not all(isinstance(words[key], str) for key in ("task", "a", "b"))
        or not (isinstance(color, list) and all(side in (words["a"], words["b"]) for side in color))
        or not (isinstance(maps, dict) and all(isinstance(side, str) for side in maps.values()))
        or not all(isinstance(name, str) and name.isidentifier() and name not in taken for name in maps)
        or any(side.count("*") > 1 for side in (words["a"], words["b"], *maps.values()))
        or words["a"] == words["b"]
    ):
        raise InputError(
            f"the row {dataset} of {config.data.datasets} must be like {{task: IVF, a: IR, b: VI, color: [VI]}}, with "
            "color a list of none, one or both of the folders, a folder or files like IR/*_ir for a and b, and perhaps "
            f"maps: {{mask: MASK}}; it is {short_repr(row)}"
        )
    return Source(dataset, "", root=find_file(config.data.root), **row)


def task_of_set(name: str, config: Config) -> str:
    """The task of the set <dataset>_<split>, by the table of datasets."""
    return find_dataset(name.rpartition("_")[0] or name, read_yaml(config.data.datasets), config).task


def read_split(source: Source, problems: list[str]) -> list[str]:
    """The names in <split>.txt without their extensions; those listed twice or leaving the folder are problems.

    Raises:
        InputError: no such file, or no name in it.
    """
    path = source.names
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source.name} was not made: cannot read the split file {path}") from error
    lines = [line for line in lines if not line.startswith("#")]
    listed = Counter(Path(line).stem if Path(line).suffix.lower() in EXTENSIONS else line for line in lines if line)
    if not listed:
        raise InputError(f"{source.name} was not made: the split file {path} is empty")
    plain = [name for name in listed if plain_name(name)]
    problems += [f"'{name}' is listed {count} times" for name, count in listed.items() if count > 1]
    problems += [f"{name!r} is not a plain file name" for name in listed if name not in plain]
    return plain


def draw_splits(config: Config, words: list[str]) -> list[str]:
    """Write the splits that data.draw asks for: names drawn at random by `seed`, none in two splits.

    A split that is there is kept, so that a list of names can be passed on and used again. Lines with # are notes.

    Args:
        words: the sets or datasets to make; datasets of which none is made are left alone.

    Raises:
        InputError: too few pairs, a split that was drawn otherwise, a dataset or count that makes no sense.
    """
    table, made_lines = read_yaml(config.data.datasets), []
    for dataset, counts in config.data.draw.items():
        if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
            raise InputError(
                f"data.draw.{dataset} must be like {{train200: 200, test20: 20}}, not {short_repr(counts)}"
            )
        odd = [split for split in counts if not re.fullmatch(r"\w[\w-]*", str(split))]
        if odd:
            raise InputError(f"data.draw.{dataset} names a split '{odd[0]}', which is no word")
        if not {dataset, *(f"{dataset}_{split}" for split in counts)} & set(words):
            continue
        row = find_dataset(dataset, table, config)
        found = [row.list_images(side) for side in (row.a, row.b)]
        names = sorted(found[0].keys() & found[1].keys())
        if sum(counts.values()) > len(names):
            raise InputError(f"data.draw asks for {sum(counts.values())} pairs of {dataset}, which has {len(names)}")
        splits = {split: replace(row, split=split) for split in counts}
        heads = {split: f"# {n} of {len(names)} pairs, drawn with seed {config.seed}" for split, n in counts.items()}
        kept = {}
        for split, source in splits.items():
            if source.names.exists():
                kept[split] = read_split(source, [])
                if source.names.read_text(encoding="utf-8-sig").splitlines()[0] != heads[split]:
                    raise InputError(
                        f"{source.names} is there and not '{heads[split][2:]}'; remove it, or name another split in "
                        "data.draw"
                    )
        taken = Counter(itertools.chain(*kept.values()))
        if taken and max(taken.values()) > 1:
            raise InputError(f"'{max(taken, key=taken.get)}' of {dataset} is in two of the splits {', '.join(kept)}")
        order = np.random.default_rng([config.seed, *dataset.encode()]).permutation(names).tolist()
        rest = iter([name for name in order if name not in taken])
        for split, count in counts.items():
            if split not in kept:
                drawn = sorted(itertools.islice(rest, count))
                write_file(splits[split].names, "\n".join([heads[split], *drawn, ""]))
                made_lines.append(f"{splits[split].names}: {heads[split][2:]}")
    return made_lines


def simulate_sets(config: Config, words: list[str]) -> list[str]:
    """Make the sets that data.simulate asks for, images and text beside the real ones; returns lines that say so.

    A set is made from all photographs of a split and takes that split's name, so what is simulated from
    training images is trained on only. A set whose split file is there is kept.

    Args:
        words: the sets or datasets to make; others are left alone.

    Raises:
        InputError: a row that makes no sense, a task without a simulator, a photograph or text that is missing.
    """
    table, made_lines = read_yaml(config.data.datasets), []
    for dataset, origin in config.data.simulate.items():
        named = isinstance(origin, dict) and set(origin) == {"of", "image"}
        if not named or not all(isinstance(word, str) for word in origin.values()):
            raise InputError(
                f"data.simulate.{dataset} must be like {{of: RoadScene, image: VI}}, not {short_repr(origin)}"
            )
        splits = {word.rpartition("_")[2] for word in words if word.rpartition("_")[0] == dataset}
        if not splits and dataset not in words:
            continue
        row, real = (find_dataset(name, table, config) for name in (dataset, origin["of"]))
        if row.task not in SIMULATORS:
            can = ", ".join(SIMULATORS)
            raise InputError(f"{row.task} cannot be simulated (data.simulate.{dataset}); {can} can")
        if dataset in words:
            splits |= {path.stem for path in real.folder("Image").glob("*.txt")}
        for split in sorted(splits):
            made, source = (replace(each, split=split) for each in (row, real))
            if not made.names.exists():
                count = simulate_set(made, source, origin["image"], config)
                made_lines.append(f"{made.names}: {count} pairs simulated from {source.name}, seed {config.seed}")
    return made_lines


def simulate_set(made: Source, real: Source, side: str, config: Config) -> int:
    """Images, texts and at last the split file of a simulated set; returns how many pairs."""
    problems: list[str] = []
    names, images = read_split(real, problems), real.list_images(side)
    make_pair, sentences = SIMULATORS[made.task]
    for name in tqdm(names, desc=made.name, unit="pair"):
        if name not in images:
            problems.append(f"'{name}' has no image in {real.folder('Image') / side}")
            continue
        gray, chroma = read_image(images[name][0])
        rng = np.random.default_rng([config.seed, *f"{made.dataset}/{name}".encode()])
        pair = make_pair(colorize(to_8bit(as_unit(gray), "clamp"), chroma), rng)
        has_text = config.text.use == "own" or real.text_file(side, name).is_file()  # else none is needed
        paragraph = read_paragraph(real, side, name) if has_text else ""
        for made_side, image, sentence in zip((made.a, made.b), pair, sentences):
            write_image(made.image_file(made_side, name), image)
            if has_text:
                write_file(made.text_file(made_side, name), f"{paragraph} {sentence}\n")
    if problems:
        raise InputError("\n".join([f"{made.name} was not simulated:", *(f"  {line}" for line in problems)]))
    write_file(made.names, "\n".join([*names, ""]))
    return len(names)
