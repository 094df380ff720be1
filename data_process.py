"""Make the H5 files that train.py and test.py read, from images and text in the VLF layout.

The files hold what the config's network takes: text features, CLIP vectors, or images alone.

    python data_process.py --config configs/film_ivf.yaml                    every set the config names
    python data_process.py --config configs/film_ivf.yaml RoadScene_test     one set, <dataset>_<split>
    python data_process.py --config configs/film_ivf.yaml Lytro data.root=/my/VLFDataset
    python data_process.py --config configs/film_ivf.yaml RoadScene_test --align affine
    python data_process.py arrange MSRS /my/downloads/MSRS                   a download into the VLF layout, by links
    python data_process.py describe --config configs/text.yaml               write a paragraph on every image
    python data_process.py encode --config configs/text.yaml                 paragraphs to text features

A set is written to <data.h5>/<dataset>_<split>.h5 (layout: utils/data/h5.py). Training sets are resized if the
config says so, all others keep whole images. Everything wrong with a set is listed at once, and nothing is written for
it. data.simulate simulates sets of multi-focus and multi-exposure pairs first, where they are not there yet. With
--align, source B of every pair is registered to source A.
"""

import importlib
import sys

from net import build_model
from utils.config import Config, parse_args
from utils.data.align import MOTIONS
from utils.data.make import make_sets
from utils.data.sources import find_sources, read_names
from utils.errors import InputError, run_script
from utils.guides import makers_of
from utils.guides.text_features import read_features, write_features
from utils.loss import build_loss
from utils.process import set_up_process
from utils.targets import COMPUTED_MAPS

# found by name, as the core imports no wing: modules with a main(config, words)
COMMANDS = {"arrange": "utils.arrange", "describe": "utils.describe"}
SIMULATION = "utils.simulate"


def main() -> None:
    config, args = parse_args(
        __doc__,
        words="arrange, describe or encode, and the sets, <dataset>_<split> or <dataset>; default: the config's",
        arguments={"--align": {"choices": [*MOTIONS], "help": "register B to A by such a motion"}},
        default="configs/text.yaml" if sys.argv[1:2] == ["arrange"] else None,  # which is about files alone
    )
    set_up_process(config.precision)
    command = args.words.pop(0) if args.words and args.words[0] in (*COMMANDS, "encode") else ""
    if command and args.align:
        raise InputError(f"--align is for H5 files, and {command} makes none; leave it out")
    if command in COMMANDS:
        return importlib.import_module(COMMANDS[command]).main(config, args.words)
    words = args.words or [*config.data.train, *config.data.val, *config.data.test]
    if config.data.simulate:
        importlib.import_module(SIMULATION).main(config, words)
    problems = encode_sets(config, words) if command else make_h5_files(config, words, args.align)
    if problems:
        raise InputError("\n".join(problems))


def make_h5_files(config: Config, words: list[str], motion: str | None) -> list[str]:
    """Write the H5 files of some sets; returns what is wrong with those that could not be made."""
    data, makers = config.data, makers_of(build_model(**config.net).inputs, config, records={})
    maps = {*build_loss(config.loss).maps, config.train.crop_on} & COMPUTED_MAPS.keys()
    return make_sets(find_sources(config, words), makers, data.h5, data.resize, maps, data.num_workers, motion)


def encode_sets(config: Config, words: list[str]) -> list[str]:
    """Write TextFeature/ from Text/; returns what is wrong with the pairs that have no feature now."""
    problems: list[str] = []
    for source in find_sources(config, words):
        names = read_names(source.names, problems)
        found = read_features(source, names, config, config.text.encoder, config.text.path, problems, go_on=True)
        count = write_features(source, found)
        folder = source.folder(f"{source.texts}Feature")
        print(f"{folder}: {count} features written, {len(found.of) - count} were up to date")
    return problems


if __name__ == "__main__":
    run_script(main)
