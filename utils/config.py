"""The configuration: defaults below, then a YAML file, then `key=value` from the command line.

Keys are written with dots (`train.lr=1e-4`). An unknown key is refused, and the message names the nearest valid one;
so are a wrong type, and a value that breaks the constraint that its field is annotated with. All options of all
scripts are here; configs/*.yaml have only what differs from these defaults.
"""

import argparse
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from utils.errors import InputError, nearest, short_repr
from utils.files import find_file

INSTRUCTED = "models/IVF_instruct.safetensors"  # weights that ship and read instructions
RESIZE = ("a", "b", "max")  # the values of --resize, and of --align
MOTIONS = ("translation", "affine", "homography")
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # a date of month 13; a thousand brackets


class Constraint(NamedTuple):
    """What a value must fulfil beyond its type; the type of a field is annotated with it."""

    is_met: Callable[[Any], bool]
    complaint: str  # the message about a value that does not, after the key; {value} is the value


POSITIVE = Constraint(lambda number: number > 0, "must be above 0, not {value}")
PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeInt = Annotated[int, Constraint(lambda number: number >= 0, "must be 0 or more, not {value}")]
Workers = Annotated[  # each is a process
    int, Constraint(lambda number: 0 <= number <= 256, "must be 0 or more, and 256 at most, not {value}")
]
Metrics = Annotated[list[str], Constraint(bool, "names no metric, e.g. test.metrics=[EN,VIFF,Qabf]")]
Prices = Annotated[
    list[float],
    Constraint(lambda two: len(two) == 2 and min(two) >= 0, "must be [in, out], each 0 or more, not {value}"),
]
ImageSize = Annotated[
    list[int],
    Constraint(lambda two: len(two) == 2 and min(two) >= 16, "must be [height, width], 16 pixels or more, not {value}"),
]


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
    resize: ImageSize | None = None  # training sets: (H, W) in pixels, portrait images transposed
    patch_size: PositiveInt | None = None  # training sets: cut into squares of this side, pixels
    stride: PositiveInt | None = None  # step between patches, pixels; patch_size if not given
    num_workers: Workers = 2  # processes that read and encode large sets for the H5; 0: none but the main one
    draw: dict[str, Any] = field(default_factory=dict)  # splits to draw by `seed`: {dataset: {split: pairs}}
    simulate: dict[str, Any] = field(default_factory=dict)  # of photographs, {dataset: {of: dataset, image: folder}}


@dataclass
class Text:
    """Which frozen encoder turns paragraphs into features where TextFeature/ has none."""

    encoder: Literal["blip2", "auto"] = "blip2"  # blip2 (Q-Former, 768) or auto (any transformers AutoModel)
    path: str | None = None  # hub name or local folder; None: the encoder's default
    use: Literal["own", "default"] = "own"  # own: of each pair; default: one text for all pairs, no text is needed then
    recompute: bool = False  # encode Text/ even where TextFeature/ has features
    batch_size: PositiveInt = 32  # paragraphs at a time
    instructions: str = "configs/instructions.yaml"  # what a network that reads instructions is trained with


@dataclass
class Describe:
    """Who writes a paragraph on each image (FILM, section 3.1). A model is a hub name or a local folder."""

    # parts: caption, dense captions and segments, for a chat model; image: a chat model that sees the image
    way: Literal["parts", "image"] = "parts"
    caption: str = "Salesforce/blip2-opt-2.7b"  # a BLIP-2
    dense: str = "florence-community/Florence-2-base"  # a Florence-2
    segments: str = "facebook/sam-vit-base"  # a Segment Anything
    chat: str = "HuggingFaceTB/SmolLM2-1.7B-Instruct"  # a chat model; with way=image one that sees
    url: str | None = None  # where chat is: an OpenAI-compatible endpoint; None: here
    key: str = "OPENAI_API_KEY"  # the environment variable that holds the endpoint's key
    template: str = "configs/prompt_parts.txt"  # the prompt
    modality: dict[str, Any] = field(default_factory=dict)  # what the images of a folder are, e.g. IR: infrared
    batch_size: PositiveInt = 8  # images at a time
    max_tokens: PositiveInt = 200  # the most that a paragraph may have
    points: PositiveInt = 16  # segments are searched from a grid of points x points places
    timeout: PositiveFloat = 60.0  # seconds to wait for the endpoint
    retries: NonNegativeInt = 5  # repetitions of a request
    concurrency: PositiveInt = 4  # requests at a time
    price: Prices = field(default_factory=lambda: [0.0, 0.0])  # of a million tokens in, and out


@dataclass
class Train:
    """Recipe. The defaults are the paper's (section 4.1)."""

    epochs: PositiveInt = 150
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
    crop_on: str | None = None  # a further map, e.g. warm: half of the crops are placed where it is over 0.5
    augment: bool = False  # flips and 90-degree rotations (of crops or square images)
    num_workers: Workers = 2
    log_every: PositiveInt = 10  # steps between two log lines
    val_every: PositiveInt = 10  # epochs between two validations
    save_every: PositiveInt = 10  # epochs between two checkpoints that are kept; last and best always are
    best: str = "Qabf"  # validation metric that chooses best.pth
    pictures: NonNegativeInt = 2  # batches of an epoch drawn to pic_fusion/
    exp: str = "exp"  # folder of the run folders
    init: str | None = None  # weights to start from, of the same network or of one that it extends
    resume: str | None = None  # a checkpoint of train.py; the training goes on from it, in its run folder


@dataclass
class Test:
    """How fused images become 8 bit, and where they go."""

    # minmax: the published per-image stretch, truncated; clamp: clamp and round
    stretch: Literal["minmax", "clamp"] = "minmax"
    metrics: Metrics = field(default_factory=lambda: ["EN", "SD", "SF", "AG", "VIFF", "Qabf"])
    compare: bool = False  # show weight-free rules, published results and a picture beside it, as --compare
    output: str = "test_output"
    tile: PositiveInt | None = None  # rows computed at a time, exact; None: by the cache on the CPU, all on a GPU
    num_workers: Workers = 2


@dataclass
class Video:
    """How videos of a user are read and written; test.py --a ir.mp4 --b vis.mp4 --out fused.mp4."""

    fps: PositiveFloat = 25.0  # frames a second of a folder of frames, which does not say
    codec: str | None = None  # four letters, e.g. FFV1 (lossless); None: by the extension
    batch_size: PositiveInt = 4  # frames at a time


@dataclass
class Export:
    """What --export builds into an .onnx or .pt2; with text.use=default the checkpoint's default text."""

    text: str | None = None  # a text to build in, so that the exported network takes none; None: the text is an input


@dataclass
class Config:
    """Everything a script needs to know."""

    name: str = "film"  # names the run folder
    seed: NonNegativeInt = 0
    device: str = "auto"  # auto (the GPU if there is one), cpu, cuda, cuda:1
    # fp32, bf16 in the widest layers, or tf32: fp32 but for the matrix products of NVIDIA GPUs
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False  # torch.compile the Restormer blocks: up to a minute at first, then fewer, larger kernels
    ckpt: str | None = None  # weights to test; the newest file where it has a *; {task} is the task of the set
    net: dict[str, Any] = field(default_factory=lambda: {"name": "film"})  # name and options, see net/
    loss: dict[str, Any] = field(default_factory=dict)  # name and options, see utils/loss.py
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    describe: Describe = field(default_factory=Describe)
    clip: str | None = None  # CLIP's hub name or local folder, or random; None: as trained, else ViT-B/32
    # training with crops: CLIP vectors of the whole image (from the H5), or of the crop
    clip_input: Literal["image", "crop"] = "image"
    train: Train = field(default_factory=Train)
    test: Test = field(default_factory=Test)
    video: Video = field(default_factory=Video)
    export: Export = field(default_factory=Export)

    def as_dict(self) -> dict:
        """Plain nested dict, for YAML, JSON and checkpoints."""
        return asdict(self)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file, see find_file, or None for the defaults.
        overrides: `key=value` with dotted keys; values are written as in YAML.

    Returns:
        The configuration.

    Raises:
        InputError: missing or broken file, unknown key, wrong type, or a value that breaks a constraint.
    """
    config = Config()
    if path is not None:
        _update(config, read_yaml(path), "", str(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"'{override}' is not of the form key=value, e.g. train.lr=1e-4")
        try:
            value = yaml.safe_load(text)
        except YAML_ERRORS as error:
            raise InputError(f"the value of {key} on the command line is not valid YAML: {text}") from error
        if key in ("net", "loss", "data.draw", "data.simulate") and isinstance(value, dict):
            *parents, last = key.split(".")
            setattr(reduce(getattr, parents, config), last, {})  # given as a whole, it replaces what the file says
        for part in reversed(key.split(".")):
            value = {part: value}
        _update(config, value, "", "the command line")
    if not isinstance(config.net.get("name"), str):
        raise InputError("net.name must be the name of a network, e.g. net.name=film")
    if not isinstance(config.loss.get("name", ""), str):
        raise InputError(f"loss.name must be a word, the name of a loss, not {short_repr(config.loss['name'])}")
    return config


def read_yaml(path: str | Path) -> dict:
    """Read a YAML file.

    Args:
        path: the file, see find_file.

    Returns:
        Its keys and values.

    Raises:
        InputError: it is missing, broken, or has no keys.
    """
    try:
        content = yaml.safe_load(find_file(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the file {path} ({getattr(error, 'strerror', 'not text')})") from error
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold `key: value` lines")
    return content


def _update(target: Any, values: Any, prefix: str, source: str) -> None:
    """Set the fields of a dataclass from a dict, and check names, types and constraints."""
    if not isinstance(values, dict):
        raise InputError(f"{prefix.rstrip('.')} in {source} must hold keys of its own, not {short_repr(values)}")
    hints = get_type_hints(type(target), include_extras=True)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise InputError(f"unknown key '{name}' in {source}; {nearest(name, all_keys())}")
        current = getattr(target, key)
        if is_dataclass(current):
            _update(current, value, f"{name}.", source)
        elif isinstance(current, dict):  # e.g. options of a network: checked where they are used
            if not isinstance(value, dict):
                raise InputError(f"{name} in {source} must hold keys of its own, not {short_repr(value)}")
            if not all(isinstance(option, str) for option in value):
                raise InputError(f"the keys of {name} in {source} must be words, not {short_repr(list(value))}")
            setattr(target, key, current | {option: _number(v) for option, v in value.items()})
        else:
            setattr(target, key, _convert(value, hints[key], name, source))


def _number(value: Any) -> Any:
    """PyYAML reads 1e-4 as a string; every other number it reads right."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _convert(value: Any, kind: Any, name: str, source: str) -> Any:
    """`value` as `kind`: bool, int, float, str, list, Literal, one with a constraint, or a union of one with None."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        kind, constraint = options
        value = _convert(value, kind, name, source)
        if not constraint.is_met(value):
            raise InputError(f"{name} {constraint.complaint.format(value=short_repr(value))}")
        return value
    if origin is Literal:
        if value not in options:
            raise InputError(f"{name} must be one of {', '.join(options)}, not {short_repr(value)}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(value, options[0], name, source)
    if origin is list and isinstance(value, (list, tuple)):
        return [_convert(item, options[0], name, source) for item in value]
    if kind is float:
        value = _number(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e37:  # float32 holds 3e38
            return float(value)
    elif kind is str and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)  # a folder or run may be called 7
    elif type(value) is kind and (kind is not int or abs(value) < 2**53):
        return value
    wanted = f"a list of {options[0].__name__}" if origin is list else kind.__name__
    raise InputError(f"{name} in {source} must be {wanted}, not {short_repr(value)}")


def all_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """List the dotted keys of the configuration.

    Args:
        kind: the dataclass to list.
        prefix: what its keys begin with.

    Returns:
        The keys, e.g. "train.lr".
    """
    hints = get_type_hints(kind)
    keys = []
    for f in fields(kind):
        nested = is_dataclass(hints[f.name])
        keys += all_keys(hints[f.name], f"{prefix}{f.name}.") if nested else [f"{prefix}{f.name}"]
    return keys


def parse_args(
    doc: str, words: str | None = None, arguments: dict[str, dict] | None = None, default: str | None = None
) -> tuple[Config, argparse.Namespace]:
    """The command line of a script: `--config FILE`, key=value, and what the script adds.

    Args:
        doc: the script's docstring, shown by --help.
        words: help for plain words without "="; None refuses them.
        arguments: further options, {"--flag": keywords of argparse's add_argument}.
        default: the config if none is given; None requires one.

    Returns:
        The configuration, and the parsed arguments. Among them are `overrides`, the key=value words as given, and
        `words`, all others.

    Raises:
        InputError: a word that is not key=value, or what load_config refuses.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", default=default, required=default is None, help="YAML file")
    for flag, keywords in (arguments or {}).items():
        parser.add_argument(flag, **keywords)
    parser.add_argument("rest", nargs="*", metavar="key=value", help=words or "keys of the config, e.g. seed=1")
    args = parser.parse_intermixed_args()
    args.words = [word for word in args.rest if "=" not in word]
    args.overrides = [word for word in args.rest if "=" in word]
    if args.words and words is None:
        raise InputError(f"'{args.words[0]}' is not of the form key=value, e.g. train.lr=1e-4")
    return load_config(args.config, args.overrides), args
