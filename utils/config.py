"""The configuration: defaults below, then a YAML file, then `key=value` from the command line.

Keys are written with dots (`train.lr=1e-4`). Unknown keys and wrong types are refused with the nearest
valid key. Every scripts' option lives here; configs/*.yaml differ from these defaults only where they
say so.
"""

import argparse
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import yaml

from utils.errors import InputError, nearest, shown

if TYPE_CHECKING:
    import torch

YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # a date of month 13; a thousand brackets


@dataclass
class Data:
    """Which images. A set is named <dataset>_<split> and lives in <h5>/<dataset>_<split>.h5."""

    root: str = "VLFDataset"  # folder with Image/, Text/ and TextFeature/
    h5: str = "VLFDataset_h5"  # folder of the H5 files that data_process.py writes
    datasets: str = "configs/datasets.yaml"  # the table of datasets; add a row for one of your own
    train: list[str] = field(default_factory=list)  # sets to train on, e.g. [MSRS_train]
    leave_out: list[str] = field(default_factory=list)  # pairs of the training sets not to train on
    val: list[str] = field(default_factory=list)  # sets to validate on, whole images
    test: list[str] = field(default_factory=list)  # sets to test on, whole images
    resize: list[int] | None = None  # training sets: (H, W) in pixels, portrait images transposed
    patch_size: int | None = None  # training sets: cut into squares of this side, pixels
    stride: int | None = None  # step between patches, pixels; patch_size if not given
    draw: dict[str, Any] = field(default_factory=dict)  # splits to draw by `seed`: {dataset: {split: pairs}}
    simulate: dict[str, Any] = field(default_factory=dict)  # of photographs, {dataset: {of: dataset, image: folder}}


@dataclass
class Text:
    """Which frozen encoder turns paragraphs into features where TextFeature/ has none."""

    encoder: str = "blip2"  # blip2 (Q-Former, 768) or auto (any transformers AutoModel)
    path: str | None = None  # hub name or local folder; None: the encoder's default
    use: str = "own"  # which text guides: each pair's own, or the default one for all pairs (ablation)
    recompute: bool = False  # encode Text/ even where TextFeature/ has features
    batch_size: int = 32  # paragraphs at a time


@dataclass
class Describe:
    """Who writes a paragraph on each image (FILM, section 3.1). A model is a hub name or a local folder."""

    way: str = "parts"  # parts: caption, dense captions, segments, and a chat model; image: a chat model that sees
    caption: str = "Salesforce/blip2-opt-2.7b"  # a BLIP-2
    dense: str = "florence-community/Florence-2-base"  # a Florence-2
    segments: str = "facebook/sam-vit-base"  # a Segment Anything
    chat: str = "HuggingFaceTB/SmolLM2-1.7B-Instruct"  # a chat model; with way=image one that sees
    url: str | None = None  # where chat is: an OpenAI-compatible endpoint; None: here
    key: str = "OPENAI_API_KEY"  # the environment variable that holds the endpoint's key
    template: str = "configs/prompt_parts.txt"  # the prompt
    modality: dict[str, Any] = field(default_factory=dict)  # what the images of a folder are, e.g. IR: infrared
    batch_size: int = 8  # images at a time
    max_tokens: int = 200  # of a paragraph at most
    points: int = 16  # segments are looked for at so many places a side
    timeout: float = 60.0  # seconds to wait for the endpoint
    retries: int = 5  # repetitions of a request
    concurrency: int = 4  # requests at a time
    price: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of a million tokens in, and out


@dataclass
class Train:
    """Recipe. The defaults are the paper's (section 4.1)."""

    epochs: int = 150
    batch_size: int = 2  # pairs per step, over all processes
    accumulate: int = 1  # parts that the pairs of a step are computed in, one after the other; saves memory
    checkpointing: bool = False  # compute Restormer blocks again in the backward pass; saves memory
    lr: float = 1e-5  # Adam
    schedule: str = "step"  # of the learning rate: step, or warmup (lr_low up to lr, then down to lr_low)
    lr_step: int = 50  # step: epochs between two drops of the learning rate
    lr_gamma: float = 0.6  # step: factor of a drop
    warmup: int = 20  # warmup: epochs on the way up; 0: starts at lr
    lr_low: float = 1e-4  # warmup: where the learning rate starts and ends
    clip_grad: float | None = None  # largest norm of the gradient
    crop: int | None = None  # side of a random square crop, pixels; None: whole images
    augment: bool = False  # flips and 90-degree rotations (of crops or square images)
    num_workers: int = 2
    log_every: int = 10  # steps between two log lines
    val_every: int = 10  # epochs between two validations
    save_every: int = 10  # epochs between two checkpoints that are kept; last and best always are
    best: str = "Qabf"  # validation metric that chooses best.pth
    pictures: int = 2  # batches of an epoch drawn to pic_fusion/
    exp: str = "exp"  # folder of the run folders
    resume: str | None = None  # a checkpoint of train.py to go on from, in its run folder


@dataclass
class Test:
    """How fused images become 8 bit, and where they go."""

    stretch: str = "minmax"  # minmax: the published per-image stretch, truncated; clamp: clamp and round
    metrics: list[str] = field(default_factory=lambda: ["EN", "SD", "SF", "AG", "VIFF", "Qabf"])
    compare: bool = False  # show weight-free rules, published results and a picture beside it, as --compare
    output: str = "test_output"
    tile: int | None = None  # rows computed at a time, exact; None: by the cache on the CPU, all on a GPU
    num_workers: int = 2


@dataclass
class Config:
    """Everything a script needs to know."""

    name: str = "film"  # names the run folder
    seed: int = 0
    device: str = "auto"  # auto (the GPU if there is one), cpu, cuda, cuda:1
    precision: str = "fp32"  # fp32, or bf16 in the widest layers
    compile: bool = False  # torch.compile the Restormer blocks: slow at first, then fewer kernels (GPU)
    ckpt: str | None = None  # weights to test; the newest file where it has a *; {task} is the task of the set
    net: dict[str, Any] = field(default_factory=lambda: {"name": "film"})  # name and options, see net/
    loss: dict[str, Any] = field(default_factory=dict)  # options of utils.loss.FusionLoss
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    describe: Describe = field(default_factory=Describe)
    clip: str | None = None  # CLIP's hub name or local folder, or random; None: as trained, else ViT-B/32
    clip_input: str = "image"  # training with crops: CLIP vectors of the whole image (from the H5), or of the crop
    train: Train = field(default_factory=Train)
    test: Test = field(default_factory=Test)

    def as_dict(self) -> dict:
        """Plain nested dict, for YAML, JSON and checkpoints."""
        return asdict(self)


CHOICES = {"precision": ("fp32", "bf16"), "test.stretch": ("minmax", "clamp"), "text.encoder": ("blip2", "auto")}
CHOICES |= {"text.use": ("own", "default")}
CHOICES |= {"describe.way": ("parts", "image"), "clip_input": ("image", "crop"), "train.schedule": ("step", "warmup")}
POSITIVE = ["data.patch_size", "data.stride", "text.batch_size", "train.epochs", "train.batch_size", "train.lr"]
POSITIVE += ["train.lr_step", "train.lr_gamma", "train.lr_low", "train.clip_grad", "train.crop", "train.log_every"]
POSITIVE += ["describe.batch_size", "describe.max_tokens", "describe.points", "describe.timeout"]
POSITIVE += ["describe.concurrency", "train.accumulate", "train.val_every", "train.save_every", "test.tile"]
NOT_NEGATIVE = ["seed", "describe.retries", "train.warmup", "train.num_workers", "test.num_workers", "train.pictures"]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file, or None for the defaults.
        overrides: `key=value` with dotted keys; values are written as in YAML.

    Raises:
        InputError: missing or broken file, unknown key, wrong type, unknown choice.
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
    _check(config)
    return config


def read_yaml(path: str | Path) -> dict:
    """A YAML file as a dict; InputError if it is missing, broken or no mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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
    """Set the fields of a dataclass from a dict, checking names and types."""
    if not isinstance(values, dict):
        raise InputError(f"{prefix.rstrip('.')} in {source} must hold keys of its own, not {values!r}")
    hints = get_type_hints(type(target))
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise InputError(f"unknown key '{name}' in {source}; {nearest(name, all_keys())}")
        current = getattr(target, key)
        if is_dataclass(current):
            _update(current, value, f"{name}.", source)
        elif isinstance(current, dict):  # options of a network or a loss: checked where they are used
            if not isinstance(value, dict):
                raise InputError(f"{name} in {source} must hold keys of its own, not {shown(value)}")
            if not all(isinstance(option, str) for option in value):
                raise InputError(f"the keys of {name} in {source} must be words, not {shown(list(value))}")
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
    """`value` as `kind`, one of bool, int, float, str, list[...] and their unions with None."""
    origin, options = get_origin(kind), get_args(kind)
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
    raise InputError(f"{name} in {source} must be {wanted}, not {shown(value)}")


def all_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    hints = get_type_hints(kind)
    keys = []
    for f in fields(kind):
        nested = is_dataclass(hints[f.name])
        keys += all_keys(hints[f.name], f"{prefix}{f.name}.") if nested else [f"{prefix}{f.name}"]
    return keys


def _check(config: Config) -> None:
    """Values that have the right type and still make no sense."""

    def value(key: str) -> Any:
        return reduce(getattr, key.split("."), config)

    for key, choices in CHOICES.items():
        if value(key) not in choices:
            raise InputError(f"{key} must be one of {', '.join(choices)}, not '{value(key)}'")
    for key in POSITIVE:
        if value(key) is not None and not value(key) > 0:
            raise InputError(f"{key} must be above 0, not {value(key)}")
    for key in NOT_NEGATIVE:
        if value(key) < 0:
            raise InputError(f"{key} must be 0 or more, not {value(key)}")
    for key in ("train.num_workers", "test.num_workers"):
        if value(key) > 256:
            raise InputError(f"{key} is {value(key)}: each is a process of its own, 256 are the most")
    if not isinstance(config.net.get("name"), str):
        raise InputError("net.name must be the name of a network, e.g. net.name=film")
    if not config.test.metrics:
        raise InputError("test.metrics names no metric, e.g. test.metrics=[EN,VIFF,Qabf]")
    if len(config.describe.price) != 2 or min(config.describe.price) < 0:
        raise InputError(f"describe.price must be [in, out], each 0 or more, not {config.describe.price}")
    resize = config.data.resize
    if resize is not None and (len(resize) != 2 or min(resize) < 16):
        raise InputError(f"data.resize must be [height, width], 16 pixels or more, not {resize}")


def parse_args(
    doc: str, words: str | None = None, arguments: dict[str, dict] | None = None, default: str | None = None
) -> tuple[Config, argparse.Namespace]:
    """The command line of a script: `--config FILE`, key=value, and what the script adds.

    Args:
        doc: the script's docstring, shown by --help.
        words: help for plain words without "="; None refuses them.
        arguments: further options, {"--flag": keywords of argparse's add_argument}.
        default: the config where none is given; None requires one.

    Returns:
        The configuration, and the parsed arguments, `words` among them.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", default=default, required=default is None, help="YAML file")
    for flag, keywords in (arguments or {}).items():
        parser.add_argument(flag, **keywords)
    parser.add_argument("rest", nargs="*", metavar="key=value", help=words or "keys of the config, e.g. seed=1")
    args = parser.parse_intermixed_args()
    args.words = [word for word in args.rest if "=" not in word]
    if args.words and words is None:
        raise InputError(f"'{args.words[0]}' is not of the form key=value, e.g. train.lr=1e-4")
    return load_config(args.config, [word for word in args.rest if "=" in word]), args


def pick_device(device: str) -> "torch.device":
    """The torch device of `device`; "auto" is the GPU if there is one.

    Raises:
        InputError: a device that is not here.
    """
    import torch  # seconds to import, and the config alone does not need it

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:  # a device that computes nothing
            raise RuntimeError
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' is not to be had here; use device=cpu or device=auto") from error
    return torch.device(device)
