"""Checkpoints on disk: ours, weights that ship, and the published FILM layout. None of them needs pickle.

Ours (.pth, by train.py) is one dict: net (name and options), model (state dict of the bare network), the
fields of `Provenance`, and, for resuming, what train.py adds. Weights that ship (.safetensors, by `python -m
utils.export`) hold the tensors in half precision and everything else but the optimiser in the header.
"""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub import hf_hub_download

from net.base import FusionNetwork, build_model
from net.published import is_published, translate
from utils.errors import InputError, reason_of
from utils.files import find_file, hub_reached, newest_checkpoint, to_json, write_file
from utils.provenance import Provenance

DEFAULT_FEATURE = "{}.default"  # the name of a guide's default feature beside the weights in a .safetensors
HEADER = ("net", "guides", "config", "commit", "epoch", "metrics")
DIGEST = "digest"  # in the header
WEIGHTS = "model.safetensors"  # of a repository on the hub
NO_WEIGHTS = {b"<": "a web page and no weights", b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_weights(name: str | Path, key: str = "ckpt") -> Path:
    """A checkpoint, the value of a key: the file, which may ship, or a hub id's model.safetensors, downloaded."""
    path = find_file(name)
    if path.is_file():
        return path
    if not HUB_ID.fullmatch(str(name)) or path.suffix in (".pth", ".safetensors"):
        raise InputError(f"there is no checkpoint {path}; give one with {key}=...")
    try:
        path = Path(hf_hub_download(str(name), WEIGHTS, local_files_only=not hub_reached()))
    except Exception as error:  # what is unreachable, private or unknown raises many kinds
        reason = reason_of(error) if hub_reached() else "which does not answer"
        raise InputError(f"{name} is no file here and cannot be loaded from the hub ({reason}); give a file") from error
    print(f"weights of {name} on the hub")
    return path


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint as .pth; it is whole or not there."""
    content = io.BytesIO()  # in a file torch.save itself raises no OSError where the disk is full
    torch.save(checkpoint, content)
    write_file(path, content.getvalue())


def save_weights(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint's network as .safetensors, HEADER as JSON in its header; it is whole or not there.

    Of absolute paths the last part is written, and nothing of `describe`: where things are on this machine stays here.
    """
    tensors = halved(checkpoint["model"])
    facts = {key: checkpoint.get(key) for key in HEADER}
    if facts["config"]:
        facts["config"] = {key: value for key, value in facts["config"].items() if key != "describe"}
    facts = without_folders(facts)
    for kind, record in (facts["guides"] or {}).items():
        default = record.pop("default")
        if default is not None:
            tensors[DEFAULT_FEATURE.format(kind)] = default.half()
    header = {key: to_json(value) for key, value in facts.items()}
    header[DIGEST] = weights_digest(tensors, header)
    write_file(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, header))


def without_folders(value: Any) -> Any:
    """Dicts, lists and words with the last part of each absolute path in place of it."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def weights_digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of all names and values: a flipped bit of a weight would not show otherwise."""
    whole = hashlib.sha256(json.dumps({key: header[key] for key in sorted(header) if key != DIGEST}).encode())
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].contiguous().numpy(force=True).tobytes())
    return whole.hexdigest()


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with its floats in half precision."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_checkpoint(path: str | Path, key: str = "ckpt") -> dict:
    """Read a checkpoint as ours, on the CPU and without pickle; InputError if it is missing, unreadable, or none."""
    path = find_weights(path, key)
    try:
        if path.suffix == ".safetensors":
            checkpoint = read_weights(path)
        else:
            if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
                raise ValueError("a part of it has another checksum")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged ones raise many kinds
        start = path.read_bytes()[:100].lstrip()
        kind = next((kind for head, kind in NO_WEIGHTS.items() if start.startswith(head)), None) if start else "empty"
        if kind:
            raise InputError(f"{path} is {kind}; get the weights again") from error
        raise InputError(f"{path} is not a checkpoint that can be read safely, or it is damaged") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and is_dense(state[key]) for key in state):
        raise InputError(f"{path} holds no 'model' with the weights of a network")
    if is_published(state):
        checkpoint = {"net": {"name": "film"}, "model": translate(state)}
    else:
        checkpoint["model"] = {bare_name(name): tensor for name, tensor in state.items()}
    if not isinstance(checkpoint.get("net"), dict) or "name" not in checkpoint["net"]:
        raise InputError(f"{path} holds weights but not which network they belong to ('net')")
    try:
        Provenance.from_checkpoint(checkpoint)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: what it records of its guides is not what a training records") from error
    return checkpoint


def bare_name(name: str) -> str:
    """The name of a weight without what DistributedDataParallel and torch.compile put into it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def is_dense(value: object) -> bool:
    """True for a tensor that holds its values, as a network's weights do."""
    return torch.is_tensor(value) and value.layout is torch.strided and not value.is_meta


def read_weights(path: str | Path) -> dict:
    """A .safetensors of `save_weights` as a checkpoint, in single precision."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    facts = {key: json.loads(header[key]) for key in HEADER}
    tensors = safetensors.torch.load_file(path)
    if header[DIGEST] != weights_digest(tensors, header):
        raise ValueError("its weights are not those that were written")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    for kind, record in (facts["guides"] or {}).items():
        record["default"] = tensors.pop(DEFAULT_FEATURE.format(kind), None)
    return facts | {"model": tensors}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> FusionNetwork:
    """Open a checkpoint as a network in eval mode. Its `provenance` has what the checkpoint records.

    `path` is a checkpoint of train.py, its run folder, a pattern of either, a .safetensors that ships, a published
    IVF.pth, MIF.pth, MEF.pth or MFF.pth, or a hub id, `owner/name`.

    Raises:
        InputError: missing or damaged file, or weights that do not fit the network.
    """
    path = newest_checkpoint(str(path), "ckpt")
    checkpoint = read_checkpoint(path)
    try:
        model = build_model(**checkpoint["net"])
    except (InputError, TypeError) as error:
        raise InputError(f"the network in {path} cannot be built: {error}") from error
    load_weights(model, checkpoint["model"], path)
    model.provenance = Provenance.from_checkpoint(checkpoint)
    return model.to(device).eval()


def start_from(model: FusionNetwork, path: str | Path) -> None:
    """Load the weights of a smaller network, of which `model` has all; what it has beside them stays fresh."""
    load_weights(model, model.state_dict() | read_checkpoint(path, "train.init")["model"], path)


def load_weights(model: FusionNetwork, state: dict, path: str | Path) -> None:
    """Strictly load a state dict; InputError names a first tensor that is missing, left over or of another shape."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if ours != theirs:
        name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise InputError(
            f"{path} does not fit the network {model.name}: '{name}' is {theirs.get(name, 'missing')} "
            f"in the file and {ours.get(name, 'missing')} in the network; check the options under net"
        )
    model.load_state_dict(state)
