"""Checkpoints on disk: ours, weights that ship, and the published FILM layout.

Ours (.pth, by train.py) is one dict: net (name and options), model (state dict of the bare network), text
(encoder, path, name and the default feature) or clip (name and revision) if the network takes it, and,
for resuming, what train.py adds. Weights that ship (.safetensors, by test.py --export) hold the tensors
in half precision and everything else but the optimiser in the header. Neither needs pickle.
"""

import copy
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import safetensors
import safetensors.torch
import torch
from torch import nn

from net.published import is_published, translate
from net.registry import build_model
from utils.errors import InputError
from utils.files import to_json, write_file

DEFAULT_TEXT = "text.default"  # the tensor beside the weights in a .safetensors
FACTS = ("config", "commit", "epoch", "metrics")  # how a network was trained, and what it was measured to do
HEADER = ("net", "text", "clip", *FACTS)
# what a config says of one machine
PLACES = ["ckpt", "describe", "data.root", "data.h5", "data.datasets", "train.exp", "train.resume", "test.output"]
DIGEST = "digest"  # in the header
WEIGHTS = "model.safetensors"  # in a folder to share
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_weights(name: str | Path, **hub) -> Path:
    """A checkpoint: the file, that of a folder of `save_pretrained`, or that of a hub id `owner/name`, downloaded.

    Args:
        name: file, folder or hub id.
        hub: further arguments of huggingface_hub.hf_hub_download.

    Raises:
        InputError: nothing of the kind is there.
    """
    path = Path(name)
    if path.is_dir():
        path = path / WEIGHTS
    elif HUB_ID.fullmatch(str(name)) and not path.parent.is_dir() and path.suffix not in (".pth", ".safetensors"):
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(str(name), WEIGHTS, **hub))
        except Exception as error:  # what is unreachable, private or unknown raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{name} is no file or folder here and cannot be had from the hub ({reason})") from error
        print(f"weights of {name} on the hub")
        return path
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give one with ckpt=...")
    return path


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint as .pth; it is whole or not there."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getvalue())


def save_weights(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint's network as .safetensors, HEADER as JSON in its header; it is whole or not there.

    `metrics` is what the weights were measured to do, {set: {metric: mean}}. Places on this machine, and how texts
    were described, stay here.
    """
    tensors = halved(checkpoint["model"])
    facts = {key: copy.deepcopy(checkpoint.get(key)) for key in HEADER}
    config = facts["config"] or {}  # published weights record none
    for place in PLACES:
        part, _, key = place.rpartition(".")
        (config.get(part, {}) if part else config).pop(key, None)
    models = [(config, "clip"), (config.get("text", {}), "path"), (facts["text"], "path"), (facts["clip"], "name")]
    for part, key in models:  # a hub name, or a folder of one machine, of which the last part stays
        if part and Path(str(part.get(key))).is_absolute():
            part[key] = Path(part[key]).name
    if facts["text"]:
        tensors[DEFAULT_TEXT] = facts["text"]["default"].half()
        facts["text"] = {key: value for key, value in facts["text"].items() if key != "default"}
    header = {key: to_json(value) for key, value in facts.items()}
    header[DIGEST] = digest(tensors, header)
    write_file(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, header))


def digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of all names and values: a flipped bit of a weight would not show otherwise."""
    whole = hashlib.sha256(json.dumps({key: header[key] for key in sorted(header) if key != DIGEST}).encode())
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].contiguous().numpy(force=True).tobytes())
    return whole.hexdigest()


def checkpoint_of(model: nn.Module) -> dict:
    """A network of `build_model` or `load_model` as a checkpoint."""
    text = model.text and vars(model.text)
    return model.facts | {"net": model.config, "model": model.state_dict(), "text": text, "clip": model.clip}


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with its floats in half precision."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of ours, weights that ship, or a published file, as ours, on the CPU and without pickle.

    Raises:
        InputError: missing, unreadable, or not a checkpoint.
    """
    path = find_weights(path)
    try:
        if path.suffix == ".safetensors":
            checkpoint = read_weights(path)
        else:
            if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
                raise ValueError("a part of it has another checksum")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged ones raise many kinds
        raise InputError(f"{path} is not a checkpoint that can be read safely, or it is damaged") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and is_plain(state[key]) for key in state):
        raise InputError(f"{path} holds no 'model' with the weights of a network")
    if is_published(checkpoint["model"]):
        checkpoint = {"net": {"name": "film"}, "model": translate(checkpoint["model"]), "text": None}
    if not isinstance(checkpoint.get("net"), dict) or "name" not in checkpoint["net"]:
        raise InputError(f"{path} holds weights but not which network they belong to ('net')")
    text, clip = checkpoint.get("text"), checkpoint.get("clip")
    right = {
        "text": not text or (is_text(text) and is_plain(text.get("default")) and text["default"].ndim == 2),
        "clip": not clip
        or (isinstance(clip, dict) and all(isinstance(clip.get(k), str) for k in ("name", "revision"))),
        "config": is_config(checkpoint.get("config") or {}),
    }
    if not all(right.values()):
        raise InputError(f"{path} is damaged: its '{min(right, key=right.get)}' is not what a training records")
    return checkpoint


def is_plain(value: object) -> bool:
    """True for a tensor with values of its own, as networks have."""
    return torch.is_tensor(value) and value.layout is torch.strided and not value.is_meta


def is_text(text: object) -> bool:
    """True for what a checkpoint records of a text encoder, whatever its default feature."""
    words = text if isinstance(text, dict) else {}
    path = words.get("path")
    return (
        words.get("encoder") in ("blip2", "auto")
        and (path is None or isinstance(path, str))
        and bool(words.get("name"))
    )


def is_config(config: object) -> bool:
    """True for what a checkpoint records of its training: a dict, its parts dicts too."""
    parts = ("data", "text", "train", "test")
    return isinstance(config, dict) and all(isinstance(config.get(part, {}), dict) for part in parts)


def read_weights(path: str | Path) -> dict:
    """A .safetensors of `save_weights` as a checkpoint, in single precision."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    facts = {key: json.loads(value) for key, value in header.items() if key in HEADER}
    tensors = safetensors.torch.load_file(path)
    if header[DIGEST] != digest(tensors, header):
        raise ValueError("its weights are not those that were written")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    default = tensors.pop(DEFAULT_TEXT, None)
    if facts.get("text"):
        facts["text"]["default"] = default
    return facts | {"model": tensors}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Open a checkpoint as a network in eval mode.

    Args:
        path: a checkpoint of train.py, a .safetensors that ships, a published IVF.pth, MIF.pth, MEF.pth or MFF.pth, a
            folder of `save_pretrained`, or a hub id.
        device: where to put the network.

    Returns:
        The network. `.config` is its name and options, for `build_model(**config)`. `.text` is None
        for the published layout, else what the network was trained with: a namespace of `encoder`,
        `path`, `name` and `default`, the feature (L, dim) to use where there is no text. `.clip` is
        likewise `name` and `revision` of the CLIP that gave its vectors, or None. `.facts` has what is
        recorded of FACTS.

    Raises:
        InputError: missing or damaged file, or weights that do not fit the network.
    """
    checkpoint = read_checkpoint(path)
    try:
        model = build_model(**checkpoint["net"])
    except (InputError, TypeError) as error:
        raise InputError(f"the network in {path} cannot be built: {error}") from error
    load_weights(model, checkpoint["model"], path)
    model.text = SimpleNamespace(**checkpoint["text"]) if checkpoint.get("text") else None
    if model.text and model.text.default.shape[1] != model.config.get("text_dim", model.text.default.shape[1]):
        raise InputError(f"{path} is damaged: its default text is {model.text.default.shape[1]} wide")
    model.clip = checkpoint.get("clip")
    model.facts = {key: checkpoint[key] for key in FACTS if checkpoint.get(key) is not None}
    return model.to(device).eval()


def load_weights(model: nn.Module, state: dict, path: str | Path) -> None:
    """Strictly load a state dict; InputError names a first tensor that is missing, left over or of another shape."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if ours != theirs:
        name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise InputError(
            f"{path} does not fit the network {model.config['name']}: '{name}' is {theirs.get(name, 'missing')} "
            f"in the file and {ours.get(name, 'missing')} in the network; check the options under net"
        )
    model.load_state_dict(state)
