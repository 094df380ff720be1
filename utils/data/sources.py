"""Image sets on disk: the table of datasets, and the VLF layout.

<data.root>/Image/<task>/<dataset>/<folder>/<name>.<ext>    images of source A and source B, and further maps
<data.root>/Image/<task>/<dataset>/<split>.txt              names of a split, one a line
<data.root>/Text/<task>/<dataset>/<folder>/<name>.txt       a paragraph for every image
<data.root>/TextFeature/<task>/<dataset>/<name>.npy         text features of a pair

text.folder names others than Text and TextFeature: <text.folder> and <text.folder>Feature.
"""

from collections import Counter
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

from utils.check import checked
from utils.config import Config, read_yaml
from utils.data.decoded import ending_of, stem_of
from utils.data.features import FEATURES
from utils.data.images import EXTENSIONS, list_images
from utils.data.ranges import parse_range
from utils.errors import InputError, nearest
from utils.files import find_file, plain_name, read_text

RESERVED = {"name", "image_a", "image_b", "imageA", "imageB", "chroma"}  # what a further map cannot be called


@dataclass
class Row:
    """A row of the table of datasets.

    A side is a folder ("IR"), or files with * for the pair's name ("IR/*_ir", or "*_ir" beside the split file).
    """

    task: str
    a: str
    b: str
    color: list[str]  # those of a and b whose colour a result gets
    maps: dict[str, str] = field(default_factory=dict)  # further gray images of each pair, for losses: {name: side}
    range_a: str = "type"  # from counts or degrees to gray, see utils/data/ranges.py: one range for all images of a
    range_b: str = "type"
    truth: str | None = None  # the side of what a result should be, where somebody knows: tables compare with it


@dataclass
class Source(Row):
    """One set on disk: a row of the table of datasets, and a split. If `training`, it is resized as the config says."""

    _: KW_ONLY
    dataset: str
    split: str
    root: Path
    training: bool = False
    texts: str = "Text"  # the folder of the paragraphs

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.split}"

    @property
    def names(self) -> Path:
        """The split file."""
        return self.folder("Image") / f"{self.split}.txt"

    def folder(self, kind: str) -> Path:
        """Folder of this dataset under Image/, or under those of paragraphs and their features."""
        return self.root / kind / self.task / self.dataset

    def list_images(self, side: str) -> dict[str, list[Path]]:
        """The images of one side (a, b or one of maps) by the names of their pairs."""
        pattern = self.folder("Image") / files_of(side)
        return list_images(pattern.parent, pattern.name)

    def only_image(self, side: str, name: str, files: dict[str, list[Path]]) -> Path:
        """The image of a pair among `files` of `list_images`; InputError if there is none, or there are several."""
        found = files.get(name, [])
        if len(found) == 1:
            return found[0]
        what = f"several images ({', '.join(path.name for path in found)})" if found else "no image"
        raise InputError(f"'{name}' has {what} in {self.folder('Image') / side}")

    def image_file(self, side: str, name: str) -> Path:
        """Where a new image of one side goes."""
        return self.folder("Image") / f"{files_of(side)}.png".replace("*", name)

    def text_file(self, side: str, name: str) -> Path:
        """Where the paragraph of an image is: under Text/ as the image is under Image/."""
        return self.folder(self.texts) / f"{files_of(side)}.txt".replace("*", name)

    def read_text(self, side: str, name: str) -> str:
        """The paragraph of an image; InputError if there is none."""
        path = self.text_file(side, name)
        if not path.is_file():
            raise InputError(
                f"'{name}' has no text: neither a feature in {self.texts}Feature/ nor {path}; write one, let "
                "`data_process.py describe` write it, or set text.use=default"
            )
        paragraph = read_text(path, "the text").strip()
        if not paragraph:
            raise InputError(f"'{name}' has an empty text {path}")
        return paragraph

    def feature_file(self, name: str) -> Path:
        """Where the text feature of a pair is; a note beside it, .json, says what made it."""
        return self.folder(f"{self.texts}Feature") / f"{name}.npy"


def files_of(side: str) -> str:
    """A folder, or files with * for the name, as files with * for the name."""
    return side if "*" in side else f"{side}/*"


def find_sources(config: Config, words: list[str]) -> list[Source]:
    """The sets to make, by the names `words`: <dataset>_<split>, or <dataset> for all its splits."""
    table, whole = read_yaml(config.data.datasets), {*config.data.val, *config.data.test}
    for name in whole.intersection(config.data.train) if config.data.resize else ():
        raise InputError(f"{name} is resized for training and cannot be tested on whole; use another split")
    sources = []
    for word in dict.fromkeys(words):
        dataset, _, split = (word, "", "") if word in table else word.rpartition("_")
        row = find_dataset(dataset or word, table, config)
        splits = [split] if split else sorted(path.stem for path in row.folder("Image").glob("*.txt"))
        if not splits:
            raise InputError(f"there is no <split>.txt in {row.folder('Image')}")
        sources += [replace(row, split=split) for split in splits]
    for source in sources:
        source.training = source.name in config.data.train or (source.split == "train" and source.name not in whole)
    if not sources:
        raise InputError("the config names no set under data.train, data.val or data.test")
    return sources


def find_set(config: Config, key: str, name: str) -> Source:
    """The set that a key of the config names; InputError where that is a dataset, or has no such split."""
    sources = find_sources(config, [name])
    known = [source.name for source in sources]
    if known != [name]:
        raise InputError(f"{key} names the dataset {name}; name a set of it: {', '.join(known)}")
    source = sources[0]
    splits = sorted(path.stem for path in source.names.parent.glob("*.txt"))
    if splits and source.split not in splits:
        raise InputError(f"{key} names {name}, and {source.dataset} has no split '{source.split}': {', '.join(splits)}")
    return source


def find_dataset(dataset: str, table: dict, config: Config) -> Source:
    """A row of the table of datasets as a set without a split; InputError if it is missing or makes no sense."""
    if dataset not in table:
        raise InputError(f"{config.data.datasets} has no dataset '{dataset}'; {nearest(dataset, table)}")
    where = f"the row {dataset} of {config.data.datasets}"
    row = checked(Row, table[dataset], where)
    row.maps |= {"truth": row.truth} if row.truth else {}
    sides = [row.a, row.b, *row.maps.values()]
    if row.a == row.b or any(side.count("*") > 1 for side in sides):
        raise InputError(f"{where} must name different folders, or files with one * for the name: {', '.join(sides)}")
    if not {*row.color} <= {row.a, row.b}:
        raise InputError(f"color in {where} must list none, one or both of {row.a} and {row.b}, not {row.color}")
    for key in ("range_a", "range_b"):
        parse_range(getattr(row, key), f"{key} in {where}")
    taken = RESERVED.union(FEATURES, *(feature.inputs for feature in FEATURES.values()))
    for name in row.maps:
        if not name.isidentifier() or name in taken:
            raise InputError(f"maps in {where} cannot name a map '{name}'; take another word")
    texts = config.text.folder or "Text"
    return Source(**vars(row), dataset=dataset, split="", root=find_file(config.data.root), texts=texts)


def read_names(path: Path, problems: list[str]) -> list[str]:
    """The names in a split file without their extensions; those listed twice or leaving the folder are `problems`.

    InputError if there is no such file, or no name in it.
    """
    lines = [line.strip() for line in read_text(path, "the split file").splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    listed = Counter(stem_of(line) if ending_of(line) in EXTENSIONS else line for line in lines if line)
    if not listed:
        raise InputError(f"the split file {path} is empty")
    plain = [name for name in listed if plain_name(name)]
    problems += [f"'{name}' is listed {count} times" for name, count in listed.items() if count > 1]
    problems += [f"{name!r} is not a plain file name" for name in listed if name not in plain]
    return plain
