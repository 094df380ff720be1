"""Make the H5 files that train.py and test.py read, from images and text in the VLF layout.

The files hold what the config's network takes: text features, CLIP vectors, or images alone.

    python data_process.py --config configs/film_ivf.yaml                    every set the config names
    python data_process.py --config configs/film_ivf.yaml RoadScene_test     one set, <dataset>_<split>
    python data_process.py --config configs/film_ivf.yaml Lytro data.root=/my/VLFDataset
    python data_process.py --config configs/film_ivf.yaml RoadScene_test --align affine
    python data_process.py arrange MSRS /my/downloads/MSRS                   a download into the VLF layout, by links
    python data_process.py describe --config configs/text.yaml               write a paragraph on every image
    python data_process.py encode --config configs/text.yaml                 paragraphs to text features

A set is written to <data.h5>/<dataset>_<split>.h5 (layout: utils/data/h5.py). Training sets are resized
or cut into patches if the config says so, all others keep whole images. Everything wrong with a set is
listed at once, and nothing is written for it. data.draw draws splits and data.simulate simulates sets of
multi-focus and multi-exposure pairs first, where they are not there yet. With --align, source B of every pair
is registered to source A.
"""

import sys
from functools import partial
from pathlib import Path

from net import build_model
from utils.arrange import arrange
from utils.config import MOTIONS, Config, parse_args, read_yaml
from utils.data.images import read_rgb
from utils.data.make import make_sets, read_pair
from utils.data.sources import Source, draw_splits, find_dataset, find_sources, read_split, simulate_sets
from utils.describe.paragraphs import Item, describe
from utils.errors import InputError, run_script
from utils.files import find_file
from utils.guides.features import read_features, write_features
from utils.process import pick_device, set_up_process

ORIGINALS = "configs/originals.yaml"
COMMANDS = ("arrange", "describe", "encode")


def main() -> None:
    config, args = parse_args(
        __doc__,
        words="arrange, describe or encode, and the sets, <dataset>_<split> or <dataset>; default: the config's",
        arguments={"--align": {"choices": [*MOTIONS], "help": "register B to A by such a motion"}},
        default="configs/text.yaml" if sys.argv[1:2] == ["arrange"] else None,  # which is about files alone
    )
    set_up_process(config.precision)
    command = args.words.pop(0) if args.words and args.words[0] in COMMANDS else ""
    if command and args.align:
        raise InputError(f"--align is for H5 files, and {command} makes none; leave it out")
    if command == "arrange":
        return arrange_download(config, args.words)
    words = args.words or [*config.data.train, *config.data.val, *config.data.test]
    for line in [*draw_splits(config, words), *simulate_sets(config, words)]:
        print(line)
    sources = find_sources(config, words)
    if command == "describe":
        problems = describe_sets(sources, config)
    elif command == "encode":
        problems = encode_sets(sources, config)
    else:
        problems = make_sets(sources, config, build_model(**config.net).inputs, records={}, motion=args.align)
    if problems:
        raise InputError("\n".join(problems))


def arrange_download(config: Config, words: list[str]) -> None:
    """Put a dataset as its authors publish it into the VLF layout.

    Args:
        words: the dataset, the folder of the download, and perhaps files <split>.txt that list names.
    """
    if len(words) < 2:
        raise InputError("arrange takes a dataset and the folder of its download, e.g. arrange MSRS downloads/MSRS")
    dataset, download, *lists = words
    rows = read_yaml(config.data.datasets)
    find_dataset(dataset, rows, config)  # a row that makes no sense is refused
    root, originals = find_file(config.data.root), read_yaml(ORIGINALS)
    for line in arrange(dataset, Path(download), root, rows, originals, [Path(name) for name in lists]):
        print(line)


def describe_sets(sources: list[Source], config: Config) -> list[str]:
    """Write Text/ for all images of the sets; returns what is wrong with those that could not be described."""
    problems: list[str] = []
    items = []
    for source in sources:
        files = {side: source.list_images(side) for side in (source.a, source.b, *source.maps.values())}
        for name in read_split(source, problems):
            try:
                read_pair(source, files, name)
            except InputError as error:
                problems += str(error).splitlines()
                continue
            for side in (source.a, source.b):
                image, modality = files[side][name][0], str(config.describe.modality.get(side) or side)
                items.append(Item(image, source.text_file(side, name), modality, partial(read_rgb, image)))
    return problems + describe(items, config.describe, pick_device(config.device))


def encode_sets(sources: list[Source], config: Config) -> list[str]:
    """Write TextFeature/ from Text/; returns what is wrong with the pairs that have no feature now."""
    problems: list[str] = []
    for source in sources:
        names = read_split(source, problems)
        found = read_features(source, names, config, config.text.encoder, config.text.path, problems, go_on=True)
        count = write_features(source, found)
        print(f"{source.folder('TextFeature')}: {count} features written, {len(found.of) - count} were up to date")
    return problems


if __name__ == "__main__":
    run_script(main)
