"""The networks by name. A variant is one new file in this folder and `net: {name: ...}` in the YAML."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from utils.errors import InputError, nearest

NETWORKS: dict[str, type[nn.Module]] = {}


def register(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a network known to `build_model` and to the configs under `name`.

    Every argument of its constructor needs a default; the defaults give the types of the options. A
    class attribute `label` is what tables call it, `name` if there is none.
    """

    def add(network: type[nn.Module]) -> type[nn.Module]:
        if name in NETWORKS:
            raise ValueError(f"two networks are registered as '{name}'")
        NETWORKS[name] = network
        return network

    return add


def build_model(name: str, **options) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: a registered name, e.g. "film", "mean".
        options: keyword arguments of the network's constructor; those left out keep its defaults.

    Returns:
        A module whose `forward(image_a, image_b, text, text_mask=None)` takes images (N, 1, H, W) in
        [0, 1], text tokens (N, L, D) and their mask (N, L, True where there is a token) and returns
        the fused image (N, 1, H, W) in [0, 1]. Its `config` holds the name and all options, so that
        `build_model(**model.config)` builds the same network.

    Raises:
        InputError: unknown name or option, or a value that the network rejects.
    """
    if name not in NETWORKS:
        raise InputError(f"net.name '{name}' is not known; {nearest(name, NETWORKS)}")
    network = NETWORKS[name]
    parameters = inspect.signature(network).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key, value in options.items():
        if key not in defaults:
            raise InputError(f"net.{key} is not an option of '{name}'; {nearest(key, defaults)}")
        if not _same_kind(value, defaults[key]):
            raise InputError(f"net.{key} must be like {defaults[key]!r}, not {value!r}")
    options = defaults | options
    model = network(**options).to(memory_format=torch.channels_last)  # the faster layout, here and on the GPU
    model.config = {"name": name, **options}
    model.label = getattr(model, "label", name)  # what tables call it
    return model


def _same_kind(value: object, default: object) -> bool:
    """True where `value` has the type of `default`; sequences by length and elements."""
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(_same_kind, value, default))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)
