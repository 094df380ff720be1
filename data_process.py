"""Make the H5 files that train.py and test.py read, from images and text in the VLF layout.

    python data_process.py --config configs/film_ivf.yaml                    every set the config names
    python data_process.py --config configs/film_ivf.yaml RoadScene_test     one set, <dataset>_<split>
    python data_process.py --config configs/film_ivf.yaml Lytro data.root=/my/VLFDataset

A set is written to <data.h5>/<dataset>_<split>.h5 (layout: utils/data.py). Training sets are resized
or cut into patches if the config says so, all others keep whole images. Everything wrong with a set is
listed at once, and nothing is written for it.
"""

import hashlib
import io
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from tqdm import tqdm

from utils.config import Config, parse_args, pick_device, read_yaml
from utils.data import h5_path
from utils.errors import InputError, nearest, run
from utils.files import cannot_write, write_file
from utils.images import EXTENSIONS, list_images, merge_chroma, read_image
from utils.text import TextEncoder, check_feature, encoder_name

RESERVE = 1 << 20  # bytes of room for HDF5's own structures


@dataclass
class Source:
    """One set on disk: a row of the table of datasets, and a split."""

    dataset: str
    split: str
    task: str
    a: str
    b: str
    color: list[str]
    root: Path

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.split}"

    def folder(self, kind: str) -> Path:
        """Folder of this dataset under Image/, Text/ or TextFeature/."""
        return self.root / kind / self.task / self.dataset


def main() -> None:
    config, args = parse_args(__doc__, words="sets to make, <dataset>_<split> or <dataset>; default: the config's")
    problems = []
    for source in find_sources(config, args.words):
        whole = source.name in (*config.data.val, *config.data.test)
        training = source.name in config.data.train or (source.split == "train" and not whole)
        try:
            print(process(source, config, training))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def find_sources(config: Config, words: list[str]) -> list[Source]:
    """The sets to make: those named, or all that the config trains, validates or tests on."""
    table = read_yaml(config.data.datasets)
    data = config.data
    shaped = data.resize or data.patch_size
    for name in set(data.train) & {*data.val, *data.test} if shaped else ():
        raise InputError(f"{name} is resized or cut for training and cannot be tested on whole; use another split")
    sources = []
    for word in dict.fromkeys(words or [*data.train, *data.val, *data.test]):
        dataset, split = (word, None) if word in table else (word.rpartition("_")[0], word.rpartition("_")[2])
        if dataset not in table:
            raise InputError(f"{data.datasets} has no dataset for the set '{word}'; {nearest(dataset or word, table)}")
        row = Source(dataset, "", root=Path(data.root), **check_row(dataset, table[dataset], data.datasets))
        splits = [split] if split else sorted(path.stem for path in row.folder("Image").glob("*.txt"))
        if not splits:
            raise InputError(f"there is no <split>.txt in {row.folder('Image')}")
        sources += [Source(**vars(row) | {"split": split}) for split in splits]
    if not sources:
        raise InputError("the config names no set under data.train, data.val or data.test")
    return sources


def check_row(dataset: str, row: Any, path: str) -> dict:
    """A row of the table of datasets; InputError if it is not {task, a, b: words, color: list of folders}."""
    words = row if isinstance(row, dict) else {}
    color = words.get("color")
    if (
        set(words) != {"task", "a", "b", "color"}
        or not all(isinstance(words[key], str) for key in ("task", "a", "b"))
        or not (isinstance(color, list) and all(folder in (words["a"], words["b"]) for folder in color))
    ):
        raise InputError(
            f"the row {dataset} of {path} must be like {{task: IVF, a: IR, b: VI, color: [VI]}}, with color "
            f"a list of none, one or both of the folders; it is {row}"
        )
    return row


def process(source: Source, config: Config, training: bool) -> str:
    """Make one H5 file and say what was made.

    Raises:
        InputError: with every problem of the set on a line of its own; no file is left behind.
    """
    problems: list[str] = []
    names = read_split(source, problems)
    files = {folder: list_images(source.folder("Image") / folder) for folder in (source.a, source.b)}
    features = read_features(source, names, config, problems)
    path = h5_path(config.data.h5, source.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for name in tqdm(names, desc=source.name, unit="pair"):
                try:
                    images, chroma = read_pair(source, files, name)
                    pieces = shape_pair(name, [*images, *chroma], config, training)
                except InputError as error:
                    problems += str(error).splitlines()
                    continue
                if not problems:
                    write_sample(file, pieces, features[name])
            if problems:
                raise InputError("\n".join([f"{source.name} was not made:", *(f"  {line}" for line in problems)]))
            file.attrs.update(
                dataset=source.dataset,
                split=source.split,
                task=source.task,
                sources=f"{source.a},{source.b}",
                text_encoder=encoder_name(config.text.encoder, config.text.path),
                text_dim=next(iter(features.values())).shape[-1],
                resize=config.data.resize or [] if training else [],
                patch_size=config.data.patch_size or 0 if training else 0,
            )
            count = len(file["imageA"])
            file.flush()
            size = file.id.get_filesize()
        os.truncate(temporary, size)  # less what reserve() left over
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    cut = f" in {count} pieces" if count != len(names) else ""
    return f"{path}: {len(names)} pairs{cut}, {path.stat().st_size / 1e6:.1f} MB"


def read_split(source: Source, problems: list[str]) -> list[str]:
    """The names in <split>.txt without their extensions; those listed twice or leaving the folder are problems.

    Raises:
        InputError: no such file, or no name in it.
    """
    path = source.folder("Image") / f"{source.split}.txt"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source.name} was not made: cannot read the split file {path}") from error
    listed = Counter(Path(line).stem if Path(line).suffix.lower() in EXTENSIONS else line for line in lines if line)
    if not listed:
        raise InputError(f"{source.name} was not made: the split file {path} is empty")
    plain = [name for name in listed if "/" not in name and "\0" not in name and name != ".."]
    problems += [f"'{name}' is listed {count} times" for name, count in listed.items() if count > 1]
    problems += [f"'{name}' is not a plain file name" for name in listed if name not in plain]
    return plain


def read_pair(source: Source, files: dict, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both gray images (H, W), and a list of their chroma (2, H, W), empty without colour.

    Raises:
        InputError: a line per problem: missing or ambiguous file, unreadable image, unequal sizes.
    """
    problems, grays, chromas = [], [], []
    for folder in (source.a, source.b):
        found = files[folder].get(name, [])
        if len(found) != 1:
            what = f"several images ({', '.join(path.name for path in found)})" if found else "no image"
            problems.append(f"'{name}' has {what} in {source.folder('Image') / folder}")
            continue
        try:
            gray, chroma = read_image(found[0])
        except InputError as error:
            problems.append(str(error))
            continue
        grays.append(gray)
        chromas.append(chroma if folder in source.color else None)
    if len(grays) == 2 and grays[0].shape != grays[1].shape:
        sizes = " and ".join(f"{h} x {w}" for h, w in (gray.shape for gray in grays))
        problems.append(f"'{name}' has sources of unequal sizes: {sizes} pixels in {source.a} and {source.b}")
    if problems:
        raise InputError("\n".join(problems))
    chroma = merge_chroma(chromas)
    return grays, [] if chroma is None else [chroma]


def shape_pair(name: str, maps: list[np.ndarray], config: Config, training: bool) -> dict[str, list[np.ndarray]]:
    """The pieces of a pair to store: {sample name: maps}; whole, resized or cut into patches.

    Args:
        maps: image A, image B (H, W) and perhaps chroma (2, H, W).
    """
    data = config.data
    if training and data.resize:
        maps = [resize_landscape(m, *data.resize) for m in maps]
    if not (training and data.patch_size):
        return {name: maps}
    size, stride = data.patch_size, data.stride or data.patch_size
    h, w = maps[0].shape
    if min(h, w) < size:
        raise InputError(f"'{name}' is {h} x {w} pixels, smaller than data.patch_size ({size})")
    # the last patch of a row or column ends at the border, so that no pixel is lost
    tops, lefts = (sorted({*range(0, side - size + 1, stride), side - size}) for side in (h, w))
    return {
        f"{name}_y{top}_x{left}": [m[..., top : top + size, left : left + size] for m in maps]
        for top in tops
        for left in lefts
    }


def resize_landscape(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The paper's training resize, bilinear: (..., H, W) -> (..., height, width), a portrait image transposed."""
    if image.shape[-2] > image.shape[-1]:
        image = np.swapaxes(image, -2, -1)
    planes = [cv2.resize(plane, (width, height)) for plane in image.reshape(-1, *image.shape[-2:])]
    return np.stack(planes).reshape(*image.shape[:-2], height, width)


def read_features(source: Source, names: list[str], config: Config, problems: list[str]) -> dict[str, np.ndarray]:
    """Text features (L, dim) by name: from TextFeature/, else Text/ encoded and cached in the H5 folder."""
    features: dict[str, np.ndarray] = {}
    paragraphs: dict[str, tuple[str, str]] = {}  # still to encode
    caches: dict[str, Path] = {}
    encoder = encoder_name(config.text.encoder, config.text.path)
    folder = re.sub("[/:]", "-", encoder)
    if config.text.path and Path(config.text.path).is_dir():  # two local encoders may have folders of one name
        folder += "-" + hashlib.sha256(str(Path(config.text.path).resolve()).encode()).hexdigest()[:8]
    cache = Path(config.data.h5) / "TextFeature" / folder / source.dataset
    for name in names:
        given = source.folder("TextFeature") / f"{name}.npy"
        if config.text.recompute or not given.is_file():
            try:
                pair = tuple(read_paragraph(source, folder, name) for folder in (source.a, source.b))
            except InputError as error:
                problems.append(str(error))
                continue
            digest = hashlib.sha256("\0".join(pair).encode()).hexdigest()[:16]  # another text, another file
            given = caches[name] = cache / f"{name}.{digest}.npy"
            if not given.is_file():
                paragraphs[name] = pair
                continue
        try:
            with open(given, "rb") as stored:
                features[name] = check_feature(np.lib.format.read_array(stored, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            problems.append(f"the text feature {given} cannot be used ({error})")
    if paragraphs and not problems:
        try:
            model = TextEncoder(config.text.encoder, config.text.path, pick_device(config.device))
            encoded = model.encode_pairs(list(paragraphs.values()), config.text.batch_size)
        except InputError as error:
            problems.append(str(error))
            return features
        for name, feature in zip(paragraphs, encoded):
            features[name] = feature
            buffer = io.BytesIO()
            np.save(buffer, feature)
            write_file(caches[name], buffer.getvalue())
    widths = [feature.shape[1] for feature in features.values()]
    usual = max(set(widths), key=widths.count, default=0)
    for name, feature in features.items():
        if feature.shape[1] != usual:
            problems.append(f"the text feature of '{name}' is {feature.shape[1]} wide, the rest {usual}")
    return features


def read_paragraph(source: Source, folder: str, name: str) -> str:
    """The paragraph of one source image; InputError if there is none."""
    path = source.folder("Text") / folder / f"{name}.txt"
    try:
        paragraph = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{name}' has no text: neither a feature in TextFeature/ nor {path}") from error
    if not paragraph:
        raise InputError(f"'{name}' has an empty text {path}")
    return paragraph


def reserve(file: h5py.File, size: int) -> None:
    """Take room on the disk for `size` bytes more, and for HDF5's own: OSError now, while the file can be closed.

    HDF5 itself notices a full disk too late to end well.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.id.get_vfd_handle(), file.id.get_filesize(), size + RESERVE)


def write_sample(file: h5py.File, pieces: dict[str, list[np.ndarray]], feature: np.ndarray) -> None:
    """Store the pieces of one pair; all of them link to one copy of its text feature."""
    reserve(file, feature.nbytes + sum(image.nbytes for maps in pieces.values() for image in maps))
    text = None
    for piece, maps in pieces.items():
        for group, image in zip(("imageA", "imageB", "chroma"), maps):
            image = image.reshape(-1, *image.shape[-2:])
            # chroma is only read for testing and compresses well; the images are read fast, in one piece as they are
            file.create_dataset(f"{group}/{piece}", data=image, compression="gzip" if group == "chroma" else None)
        if text is None:
            text = file.create_dataset(f"text/{piece}", data=feature)
        else:
            file[f"text/{piece}"] = text  # a hard link


if __name__ == "__main__":
    run(main)
