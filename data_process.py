"""Make the H5 files that train.py and test.py read, from images and text in the VLF layout.

The files hold what the config's network takes: text features, CLIP vectors, or images alone.

    python data_process.py --config configs/film_ivf.yaml                    every set the config names
    python data_process.py --config configs/film_ivf.yaml RoadScene_test     one set, <dataset>_<split>
    python data_process.py --config configs/film_ivf.yaml Lytro data.root=/my/VLFDataset
    python data_process.py describe --config configs/text.yaml               write a paragraph on every image
    python data_process.py encode --config configs/text.yaml                 paragraphs to text features

A set is written to <data.h5>/<dataset>_<split>.h5 (layout: utils/data/h5.py). Training sets are resized
or cut into patches if the config says so, all others keep whole images. Everything wrong with a set is
listed at once, and nothing is written for it. data.draw draws splits and data.simulate simulates sets of
multi-focus and multi-exposure pairs first, where they are not there yet.
"""

import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from tqdm import tqdm

from net import build_model
from utils.config import Config, parse_args, pick_device, read_yaml
from utils.data.h5 import CHECKSUM, crc32, h5_path
from utils.data.images import EXTENSIONS, as_unit, colorize, list_images, merge_chroma, read_image, write_image
from utils.data.simulate import SIMULATORS
from utils.errors import InputError, nearest, run, shown
from utils.files import alone, plain_name, to_json, write_file, writing
from utils.guides.clip import DEFAULT_CLIP, ClipEncoder, describe_clip
from utils.guides.describe import Item, describe
from utils.guides.text import TextEncoder, check_feature, encoder_name

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

    @property
    def names(self) -> Path:
        """The split file."""
        return self.folder("Image") / f"{self.split}.txt"

    def folder(self, kind: str) -> Path:
        """Folder of this dataset under Image/, Text/ or TextFeature/."""
        return self.root / kind / self.task / self.dataset


def main() -> None:
    config, args = parse_args(
        __doc__, words="describe or encode, and the sets, <dataset>_<split> or <dataset>; default: the config's"
    )
    command = args.words.pop(0) if args.words[:1] in (["describe"], ["encode"]) else ""
    words = args.words or [*config.data.train, *config.data.val, *config.data.test]
    for line in [*draw_splits(config, words), *simulate_sets(config, words)]:
        print(line)
    sources = find_sources(config, words)
    problems = {"describe": describe_sets, "encode": encode_sets, "": make_sets}[command](sources, config)
    if problems:
        raise InputError("\n".join(problems))


def make_sets(sources: list[Source], config: Config) -> list[str]:
    """Write the H5 files; what is wrong with those that could not be made."""
    problems = []
    inputs = build_model(**config.net).inputs
    clip = ClipEncoder(config.clip or DEFAULT_CLIP, pick_device(config.device)) if "clip" in inputs else None
    if clip:
        print(f"vectors by {describe_clip(clip.identity)}")
    for source in sources:
        whole = source.name in (*config.data.val, *config.data.test)
        training = source.name in config.data.train or (source.split == "train" and not whole)
        try:
            with alone(h5_path(config.data.h5, source.name)):
                print(process(source, config, training, "text" in inputs, clip))
        except InputError as error:
            problems.append(str(error))
    return problems


def describe_sets(sources: list[Source], config: Config) -> list[str]:
    """Write Text/ for all images of the sets; what is wrong with those that could not be described."""
    problems: list[str] = []
    items = []
    for source in sources:
        files = {folder: list_images(source.folder("Image") / folder) for folder in (source.a, source.b)}
        for name in read_split(source, problems):
            try:
                read_pair(source, files, name)
            except InputError as error:
                problems += str(error).splitlines()
                continue
            for folder, images in files.items():
                text = source.folder("Text") / folder / f"{name}.txt"
                items.append(Item(images[name][0], text, str(config.describe.modality.get(folder) or folder)))
    return problems + describe(items, config.describe, pick_device(config.device))


def encode_sets(sources: list[Source], config: Config) -> list[str]:
    """Write TextFeature/ from Text/; what is wrong with the pairs that have no feature now."""
    problems: list[str] = []
    for source in sources:
        names = read_split(source, problems)
        features, made_of = read_features(source, names, config, problems, go_on=True)
        count = 0
        for name, digest in made_of.items():
            path = source.folder("TextFeature") / f"{name}.npy"
            # a feature without a record was given, and stays
            if name in features and (not path.is_file() or recorded(path) not in ("", digest)):
                path.unlink(missing_ok=True)  # first, so that no feature ever stands beside the record of another
                write_file(path.with_suffix(".json"), to_json({"made_of": digest}))
                write_array(path, features[name])
                count += 1
        print(f"{source.folder('TextFeature')}: {count} features written, {len(features) - count} were up to date")
    return problems


def draw_splits(config: Config, words: list[str]) -> list[str]:
    """Write the splits that data.draw asks for and say so: names drawn at random by `seed`, none in two splits.

    A split that is there is kept, so that a list of names can be passed on and used again. Lines with # are notes.

    Args:
        words: the sets or datasets to make; datasets of which none is made are left alone.

    Raises:
        InputError: too few pairs, a split that was drawn otherwise, a dataset or count that makes no sense.
    """
    table, said = read_yaml(config.data.datasets), []
    for dataset, counts in config.data.draw.items():
        if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
            raise InputError(f"data.draw.{dataset} must be like {{train200: 200, test20: 20}}, not {shown(counts)}")
        odd = [split for split in counts if not re.fullmatch(r"\w[\w-]*", str(split))]
        if odd:
            raise InputError(f"data.draw.{dataset} names a split '{odd[0]}', which is no word")
        if not {dataset, *(f"{dataset}_{split}" for split in counts)} & set(words):
            continue
        row = find_dataset(dataset, table, config)
        found = [list_images(row.folder("Image") / folder) for folder in (row.a, row.b)]
        names = sorted(found[0].keys() & found[1].keys())
        if sum(counts.values()) > len(names):
            raise InputError(f"data.draw asks for {sum(counts.values())} pairs of {dataset}, which has {len(names)}")
        splits = {split: Source(**vars(row) | {"split": split}) for split in counts}
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
                said.append(f"{splits[split].names}: {heads[split][2:]}")
    return said


def simulate_sets(config: Config, words: list[str]) -> list[str]:
    """Make the sets that data.simulate asks for, images and text beside the real ones, and say so.

    A set is made from all photographs of a split and takes that split's name, so what is simulated from
    training images is trained on only. A set whose split file is there is kept.

    Args:
        words: the sets or datasets to make; others are left alone.

    Raises:
        InputError: a row that makes no sense, a task without a simulator, a photograph or text that is missing.
    """
    table, said = read_yaml(config.data.datasets), []
    for dataset, origin in config.data.simulate.items():
        named = isinstance(origin, dict) and set(origin) == {"of", "image"}
        if not named or not all(isinstance(word, str) for word in origin.values()):
            raise InputError(f"data.simulate.{dataset} must be like {{of: RoadScene, image: VI}}, not {shown(origin)}")
        row, real = (find_dataset(name, table, config) for name in (dataset, origin["of"]))
        if row.task not in SIMULATORS:
            can = ", ".join(SIMULATORS)
            raise InputError(f"{row.task} cannot be simulated (data.simulate.{dataset}); {can} can")
        splits = {word.rpartition("_")[2] for word in words if word.rpartition("_")[0] == dataset}
        if dataset in words:
            splits |= {path.stem for path in real.folder("Image").glob("*.txt")}
        for split in sorted(splits):
            made, source = (Source(**vars(each) | {"split": split}) for each in (row, real))
            if not made.names.exists():
                count = simulate_set(made, source, origin["image"], config.seed)
                said.append(f"{made.names}: {count} pairs simulated from {source.name}, seed {config.seed}")
    return said


def simulate_set(made: Source, real: Source, folder: str, seed: int) -> int:
    """Images, texts and at last the split file of a simulated set; returns how many pairs."""
    problems: list[str] = []
    names, images = read_split(real, problems), list_images(real.folder("Image") / folder)
    make_pair, said = SIMULATORS[made.task]
    for name in tqdm(names, desc=made.name, unit="pair"):
        if name not in images:
            problems.append(f"'{name}' has no image in {real.folder('Image') / folder}")
            continue
        gray, chroma = read_image(images[name][0])
        rng = np.random.default_rng([seed, *f"{made.dataset}/{name}".encode()])
        pair = make_pair(colorize((as_unit(gray) * 255).round().astype(np.uint8), chroma), rng)
        paragraph = read_paragraph(real, folder, name)
        for side, image, sentence in zip((made.a, made.b), pair, said):
            write_image(made.folder("Image") / side / f"{name}.png", image)
            write_file(made.folder("Text") / side / f"{name}.txt", f"{paragraph} {sentence}\n")
    if problems:
        raise InputError("\n".join([f"{made.name} was not simulated:", *(f"  {line}" for line in problems)]))
    write_file(made.names, "\n".join([*names, ""]))
    return len(names)


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
        sources += [Source(**vars(row) | {"split": split}) for split in splits]
    if not sources:
        raise InputError("the config names no set under data.train, data.val or data.test")
    return sources


def find_dataset(dataset: str, table: dict, config: Config) -> Source:
    """A row of the table of datasets; InputError if it is missing or not {task, a, b: words, color: folders}."""
    if dataset not in table:
        raise InputError(f"{config.data.datasets} has no dataset '{dataset}'; {nearest(dataset, table)}")
    row = table[dataset]
    words = row if isinstance(row, dict) else {}
    color = words.get("color")
    if (
        set(words) != {"task", "a", "b", "color"}
        or not all(isinstance(words[key], str) for key in ("task", "a", "b"))
        or not (isinstance(color, list) and all(folder in (words["a"], words["b"]) for folder in color))
    ):
        raise InputError(
            f"the row {dataset} of {config.data.datasets} must be like {{task: IVF, a: IR, b: VI, color: [VI]}}, with "
            f"color a list of none, one or both of the folders; it is {shown(row)}"
        )
    return Source(dataset, "", root=Path(config.data.root), **row)


def process(source: Source, config: Config, training: bool, text: bool, clip: ClipEncoder | None) -> str:
    """Make one H5 file, with text features and CLIP vectors as asked for, and say what was made.

    Raises:
        InputError: with every problem of the set on a line of its own; no file is left behind.
    """
    problems: list[str] = []
    names = read_split(source, problems)
    files = {folder: list_images(source.folder("Image") / folder) for folder in (source.a, source.b)}
    texts = read_features(source, names, config, problems)[0] if text else {}
    path = h5_path(config.data.h5, source.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path), h5py.File(temporary, "w") as file:
            for name in tqdm(names, desc=source.name, unit="pair"):
                try:
                    images, chroma = read_pair(source, files, name)
                    pieces = shape_pair(name, [*images, *chroma], config, training)
                except InputError as error:
                    problems += str(error).splitlines()
                    continue
                if not problems:
                    features = {"text": texts[name]} if text else {}
                    if clip:  # of the whole image, whatever the pieces
                        sources = [torch.from_numpy(as_unit(image))[None, None] for image in images]
                        features["clip"] = clip(*sources)[0].numpy(force=True)
                    write_sample(file, pieces, features)
            if problems:
                raise InputError("\n".join([f"{source.name} was not made:", *(f"  {line}" for line in problems)]))
            file.attrs.update(
                dataset=source.dataset,
                split=source.split,
                task=source.task,
                sources=f"{source.a},{source.b}",
                resize=config.data.resize or [] if training else [],
                patch_size=config.data.patch_size or 0 if training else 0,
            )
            if text:
                file.attrs["text_encoder"] = encoder_name(config.text.encoder, config.text.path)
                file.attrs["text_dim"] = next(iter(texts.values())).shape[-1]
            if clip:
                file.attrs.update({f"clip_{key}": value for key, value in clip.identity.items()})
            count = len(file["imageA"])
            file.flush()
            size = file.id.get_filesize()
        with writing(path):
            os.truncate(temporary, size)  # less what reserve() left over
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    cut = f" in {count} pieces" if count != len(names) else ""
    return f"{path}: {len(names)} pairs{cut}, {path.stat().st_size / 1e6:.1f} MB"


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


def read_features(
    source: Source, names: list[str], config: Config, problems: list[str], go_on: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Text features (L, dim) by name: from TextFeature/, else Text/ encoded and cached in the H5 folder.

    A feature in TextFeature/ counts if it was given, or if it was encoded from the text that is there now.

    Args:
        go_on: encode what can be encoded although there are problems.

    Returns:
        The features, and a digest of what each one was encoded from, for those that were not given.
    """
    features: dict[str, np.ndarray] = {}
    made_of: dict[str, str] = {}
    paragraphs: dict[str, tuple[str, str]] = {}  # still to encode
    caches: dict[str, Path] = {}
    encoder = encoder_name(config.text.encoder, config.text.path)
    folder = re.sub("[/:]", "-", encoder)
    if config.text.path and Path(config.text.path).is_dir():  # two local encoders may have folders of one name
        folder += "-" + hashlib.sha256(str(Path(config.text.path).resolve()).encode()).hexdigest()[:8]
    cache = Path(config.data.h5) / "TextFeature" / folder / source.dataset
    for name in names:
        given = source.folder("TextFeature") / f"{name}.npy"
        if config.text.recompute or not given.is_file() or recorded(given):
            try:
                pair = tuple(read_paragraph(source, folder, name) for folder in (source.a, source.b))
            except InputError as error:
                problems.append(str(error))
                continue
            made_of[name] = hashlib.sha256("\0".join([encoder, *pair]).encode()).hexdigest()[:16]
            if config.text.recompute or not given.is_file() or recorded(given) != made_of[name]:
                given = caches[name] = cache / f"{name}.{made_of[name]}.npy"  # another text, another file
                if not given.is_file():
                    paragraphs[name] = pair
                    continue
        try:
            with open(given, "rb") as stored:
                features[name] = check_feature(np.lib.format.read_array(stored, allow_pickle=False))
        except Exception as error:  # NumPy's parser raises many kinds
            problems.append(f"the text feature {given} cannot be used ({error})")
    if paragraphs and (go_on or not problems):
        try:
            model = TextEncoder(config.text.encoder, config.text.path, pick_device(config.device))
            encoded = model.encode_pairs(list(paragraphs.values()), config.text.batch_size)
        except InputError as error:
            problems.append(str(error))
            return features, made_of
        for name, feature in zip(paragraphs, encoded):
            features[name] = feature
            write_array(caches[name], feature)
    widths = [feature.shape[1] for feature in features.values()]
    usual = max(set(widths), key=widths.count, default=0)
    for name, feature in features.items():
        if feature.shape[1] != usual:
            problems.append(f"the text feature of '{name}' is {feature.shape[1]} wide, the rest {usual}")
    return features, made_of


def recorded(feature: Path) -> str:
    """What a feature of TextFeature/ was encoded from, by the JSON beside it; empty if it was given."""
    try:
        return str(json.loads(feature.with_suffix(".json").read_text(encoding="utf-8"))["made_of"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def write_array(path: Path, array: np.ndarray) -> None:
    """An .npy that is whole or not there."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


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


def write_sample(file: h5py.File, pieces: dict[str, list[np.ndarray]], features: dict[str, np.ndarray]) -> None:
    """Store the pieces of one pair; all of them link to one copy of its features, {group: feature}."""
    arrays = [*features.values(), *(image for maps in pieces.values() for image in maps)]
    reserve(file, sum(array.nbytes for array in arrays))
    first = next(iter(pieces))
    for group, feature in features.items():
        stored = file.create_dataset(f"{group}/{first}", data=feature)
        stored.attrs[CHECKSUM] = crc32(feature)
        for piece in list(pieces)[1:]:
            file[f"{group}/{piece}"] = stored  # a hard link
    for piece, maps in pieces.items():
        for group, image in zip(("imageA", "imageB", "chroma"), maps):
            image = image.reshape(-1, *image.shape[-2:])
            # chroma is only read for testing and compresses well; the images are read fast, in one piece as they are
            stored = file.create_dataset(
                f"{group}/{piece}", data=image, compression="gzip" if group == "chroma" else None
            )
            stored.attrs[CHECKSUM] = crc32(image)


if __name__ == "__main__":
    run(main)
