"""Checkpoints on disk: ours, and the published FILM layout.

Ours is one dict: net (name and options), model (state dict of the bare network), text (encoder, path,
name and the default feature) or clip (name and revision) if the network takes it, and, for resuming,
what train.py adds. Nothing in it needs pickle.
"""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from net.published import is_published, translate
from net.registry import build_model
from utils.errors import InputError
from utils.files import write_file


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint; it is whole or not there."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of ours or of the published layout, as ours, on the CPU and without pickle.

    Raises:
        InputError: missing, unreadable, or not a checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; give one with ckpt=...")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint that can be read safely, or it is damaged") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        raise InputError(f"{path} holds no 'model' with the weights of a network")
    if is_published(checkpoint["model"]):
        checkpoint = {"net": {"name": "film"}, "model": translate(checkpoint["model"]), "text": None}
    if not isinstance(checkpoint.get("net"), dict) or "name" not in checkpoint["net"]:
        raise InputError(f"{path} holds weights but not which network they belong to ('net')")
    return checkpoint


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Open a checkpoint as a network in eval mode.

    Args:
        path: a checkpoint of train.py, or a published IVF.pth, MIF.pth, MEF.pth or MFF.pth.
        device: where to put the network.

    Returns:
        The network. `.config` is its name and options, for `build_model(**config)`. `.text` is None
        for the published layout, else what the network was trained with: a namespace of `encoder`,
        `path`, `name` and `default`, the feature (L, dim) to use where there is no text. `.clip` is
        likewise `name` and `revision` of the CLIP that gave its vectors, or None.

    Raises:
        InputError: missing or damaged file, or weights that do not fit the network.
    """
    checkpoint = read_checkpoint(path)
    model = build_model(**checkpoint["net"])
    load_weights(model, checkpoint["model"], path)
    model.text = SimpleNamespace(**checkpoint["text"]) if checkpoint.get("text") else None
    model.clip = checkpoint.get("clip")
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
