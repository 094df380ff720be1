"""The configuration: defaults below, then a YAML file, then `key=value` from the command line.

Keys are written with dots (`train.lr=1e-4`). An unknown key is refused, and the message names the nearest valid one;
so is a value of a wrong type or out of its range. All options of all scripts are here; configs/*.yaml have only what
differs from these defaults.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from utils.check import Constraint, checked, keys_of
from utils.errors import InputError, nearest
from utils.files import find_file, read_text

YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # a date of month 13; a thousand brackets
POSITIVE = Constraint(lambda number: number > 0, "must be above 0")
PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeInt = Annotated[int, Constraint(lambda number: number >= 0, "must be 0 or more")]
Options = dict[str, Any]  # are checked where they are used
Metrics = Annotated[list[str], Constraint(bool, "must name metrics, e.g. [EN,VIFF,Qabf]")]


@dataclass
class Data:
    """Which images. A set is named <dataset>_<split> and lives in <h5>/<dataset>_<split>.h5."""

    root: str = "VLFDataset"  # folder with Image/, Text/ and TextFeature/
    h5: str = "VLFDataset_h5"  # folder of the H5 files that data_process.py writes
    datasets: str = "configs/datasets.yaml"  # the table of datasets; add a row for your own
    train: list[str] = field(default_factory=list)  # sets to train on, e.g. [MSRS_train]
    leave_out: list[str] = field(default_factory=list)  # pairs of the training sets not to train on
    val: list[str] = field(default_factory=list)  # sets to validate on, whole images
    test: list[str] = field(default_factory=list)  # sets to test on, whole images
    resize: tuple[int, int] | None = None  # training sets: (H, W) in pixels, portrait images transposed
    num_workers: NonNegativeInt = 2  # processes that read and encode large sets for the H5; 0: none but the main one
    simulate: Options = field(default_factory=dict)  # of photographs, {dataset: {of: dataset, image: folder}}


@dataclass
class Text:
    """Which texts guide, and which frozen encoder turns them into features where TextFeature/ has none."""

    encoder: Literal["blip2", "auto"] = "blip2"  # blip2 (Q-Former, 768) or auto (any transformers AutoModel)
    path: str | None = None  # hub name or local folder; None: the encoder's default
    # own: of each pair, or as trained; a, b: of one source alone; default: one text for all pairs; none: no text
    use: Literal["own", "a", "b", "default", "none"] = "own"
    folder: str | None = None  # of the paragraphs, under data.root; None: as trained, else Text
    recompute: bool = False  # encode Text/ even where TextFeature/ has features
    batch_size: PositiveInt = 32  # paragraphs at a time
    instructions: str = "configs/instructions.yaml"  # what a network that reads instructions is trained with


@dataclass
class Describe:
    """Who writes a paragraph on each image (FILM, section 3.1). A model is a hub name or a local folder."""

    # parts: caption, dense captions and segments, for a chat model; image: a chat model that sees the image; caption:
    # the caption is the paragraph
    way: Literal["parts", "image", "caption"] = "parts"
    caption: str = "Salesforce/blip2-opt-2.7b"  # a BLIP-2
    dense: str = "florence-community/Florence-2-base"  # a Florence-2
    segments: str = "facebook/sam-vit-base"  # a Segment Anything
    chat: str = "HuggingFaceTB/SmolLM2-1.7B-Instruct"  # a chat model; with way=image one that sees
    url: str | None = None  # where chat is: an OpenAI-compatible endpoint; None: here
    key: str = "OPENAI_API_KEY"  # the environment variable that holds the endpoint's key
    template: str = "configs/prompt_parts.txt"  # the prompt
    modality: Options = field(default_factory=dict)  # what the images of a folder are, e.g. IR: infrared
    batch_size: PositiveInt = 8  # images at a time
    max_tokens: PositiveInt = 200  # the most that a paragraph may have
    points: PositiveInt = 16  # segments are searched from a grid of points x points places
    timeout: PositiveFloat = 60.0  # seconds to wait for the endpoint
    retries: NonNegativeInt = 5  # repetitions of a request
    concurrency: PositiveInt = 4  # requests at a time
    price: tuple[float, float] = field(default_factory=lambda: [0.0, 0.0])  # of a million tokens in, and out


@dataclass
class Train:
    """Recipe. The defaults are those of FILM's released train.py."""

    epochs: PositiveInt = 150
    steps: PositiveInt | None = None  # in place of epochs: how many steps; the last epoch may end early
    batch_size: PositiveInt = 2  # pairs per step, over all processes
    accumulate: PositiveInt = 1  # parts that the pairs of a step are computed in, one after the other; saves memory
    checkpointing: bool = False  # compute Restormer blocks again in the backward pass; saves memory
    lr: PositiveFloat = 1e-5  # Adam
    schedule: Literal["step", "warmup"] = "step"  # of the learning rate; warmup: lr_low up to lr, then down to lr_low
    lr_step: PositiveInt = 50  # step: epochs between two drops of the learning rate
    lr_gamma: PositiveFloat = 0.6  # step: factor of a drop
    warmup: NonNegativeInt = 20  # warmup: epochs on the way up; 0: starts at lr
    lr_low: PositiveFloat = 1e-4  # warmup: where the learning rate starts and ends
    clip_grad: PositiveFloat | None = None  # largest norm of the gradient
    crop: PositiveInt | None = None  # side of a random square crop, pixels; None: whole images
    # reflect continues pairs smaller than the crop as mirrors on the right and below would; None refuses them
    pad: Literal["reflect"] | None = None
    crop_on: str | None = None  # a further map, e.g. warm: half of the crops are placed where it is over 0.5
    augment: bool = False  # flips and 90-degree rotations (of crops or square images)
    num_workers: NonNegativeInt = 2
    log_every: PositiveInt = 10  # steps between two log lines
    val_every: PositiveInt = 10  # epochs between two validations
    save_every: PositiveInt = 10  # epochs between two checkpoints that are kept; last and best always are
    best: str = "Qabf"  # validation metric that chooses best.pth
    pictures: NonNegativeInt = 4  # whole pairs, validation's or else training's, drawn every val_every epochs
    exp: str = "exp"  # folder of the run folders
    init: str | None = None  # weights to start from, of the same network or of one that it extends
    resume: str | None = None  # a run folder, pattern or checkpoint; the training goes on from it, in its run folder


@dataclass
class Test:
    """How fused images become 8 bit, and where they go."""

    # minmax: each image to its own range, truncated, as FILM's released test.py; clamp: clamp and round
    stretch: Literal["minmax", "clamp", "truncate", "round"] = "minmax"
    metrics: Metrics = field(default_factory=lambda: ["EN", "SD", "SF", "AG", "VIFF", "Qabf"])
    compare: bool = False  # show weight-free rules, published results and a picture beside it, as --compare
    output: str = "test_output"  # the results of each dataset are a folder in it
    tile: PositiveInt | None = None  # rows computed at a time, exact; None: by the cache on the CPU, all on a GPU
    num_workers: NonNegativeInt = 2


@dataclass
class Video:
    """How videos of a user are read and written; python fuse.py ir.mp4 vis.mp4 -o fused.mp4."""

    fps: PositiveFloat = 25.0  # frames a second of a folder of frames, which does not say
    codec: str | None = None  # four letters, e.g. FFV1 (lossless); None: by the extension
    batch_size: PositiveInt = 4  # frames at a time


@dataclass
class Config:
    """Everything a script needs to know."""

    name: str = "film"  # names the run folder
    seed: NonNegativeInt = 0
    device: str = "auto"  # auto (the GPU if there is one), cpu, cuda, cuda:1
    # fp32, bf16 in the widest layers, or tf32: fp32 but for the matrix products of NVIDIA GPUs
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False  # torch.compile the Restormer blocks: up to a minute at first, then fewer, larger kernels
    ckpt: str | None = None  # weights to test, or a run folder; the newest where it has a *; {task}: of the set
    net: Options = field(default_factory=dict)  # name, film by default, and options, see net/
    loss: Options = field(default_factory=dict)  # name, fusion by default, and options, see utils/loss.py
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    describe: Describe = field(default_factory=Describe)
    clip: str | None = None  # CLIP's hub name or local folder, or random; None: as trained, else ViT-B/32
    # training with crops: CLIP vectors of the whole image (from the H5), or of the crop
    clip_input: Literal["image", "crop"] = "image"
    train: Train = field(default_factory=Train)
    test: Test = field(default_factory=Test)
    video: Video = field(default_factory=Video)

    def __post_init__(self) -> None:
        self.net = {"name": "film"} | self.net

    def as_dict(self) -> dict:
        """Plain nested dict, for YAML, JSON and checkpoints."""
        return asdict(self)


class Loader(yaml.SafeLoader):
    """PyYAML with two rules of YAML 1.2: 1e-4 is a number, not a word, and a key that stands twice is an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"{key.value} stands twice, first in line {lines[key.value]}"
                raise yaml.composer.ComposerError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file, see `find_file`, or the defaults, with some replaced by `key=value` as in YAML.

    InputError for a missing or broken file, an unknown key, a wrong type, or a value out of its range.
    """
    config = Config() if path is None else checked(Config, read_yaml(path), str(path))
    values: Any = config.as_dict()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"'{override}' is not of the form key=value, e.g. train.lr=1e-4")
        try:
            value = yaml.load(text, Loader)
        except YAML_ERRORS as error:
            raise InputError(f"the value of {key} on the command line is not valid YAML: {text}") from error
        values = _replaced(values, key.split("."), value)
    return checked(Config, values, "the command line")


def _replaced(values: Any, parts: Sequence[str], value: Any) -> Any:
    """`values` with `value` at the place that the parts of a key name."""
    if not parts:
        return value
    inner = values if isinstance(values, dict) else {}
    return inner | {parts[0]: _replaced(inner.get(parts[0]), parts[1:], value)}


def read_yaml(path: str | Path) -> dict:
    """The keys and values of a YAML file, see find_file; InputError if it is missing, broken, or has no keys."""
    text = read_text(find_file(path), "the file")
    try:
        content = yaml.load(text, Loader)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold `key: value` lines")
    return content


def parse_args(
    doc: str, words: str | None = None, arguments: dict[str, dict] | None = None, default: str | None = None
) -> tuple[Config, argparse.Namespace]:
    """The command line of a script: `--config FILE`, key=value, and what the script adds.

    Args:
        doc: the script's docstring, shown by --help.
        words: help for words that are not key=value, e.g. names of files; None refuses them.
        arguments: further options, {"--flag": keywords of argparse's add_argument}.
        default: the config if none is given; None requires one.

    Returns:
        The configuration, and the parsed arguments with `overrides`, the key=value words, and `words`, all others.

    Raises:
        InputError: a word that is not key=value, or what load_config refuses.
    """
    keys = "All keys of the config, their meaning and their defaults are in utils/config.py."
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, epilog=keys, formatter_class=layout)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # --range-a -20,50 is a value, too
    parser.add_argument("--config", metavar="FILE", default=default, required=default is None, help="YAML file")
    for flag, keywords in (arguments or {}).items():
        parser.add_argument(flag, **keywords)
    parser.add_argument("rest", nargs="*", metavar="key=value", help=words or "keys of the config, e.g. seed=1")
    args = parser.parse_intermixed_args()
    args.overrides = [word for word in args.rest if words is None or _is_override(word)]
    args.words = [word for word in args.rest if word not in args.overrides]
    return load_config(args.config, args.overrides), args


def _is_override(word: str) -> bool:
    """Whether a word is key=value; a wrong key that is near to one of the config's counts, if it is no file."""
    key, equals, _ = word.partition("=")
    near = nearest(key, keys_of(Config)).startswith("did you mean") and "/" not in key and not os.path.exists(word)
    return bool(equals) and (near or key.partition(".")[0] in Config().as_dict())
