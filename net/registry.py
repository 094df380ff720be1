"""The networks by name. A variant is one new file in this folder and `net: {name: ...}` in the YAML."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from utils.errors import InputError, enough_memory, nearest, shown

NETWORKS: dict[str, type[nn.Module]] = {}
INPUTS = ("text", "text_mask", "clip")  # what a network may take beside the images


def register(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a network known to `build_model` and to the configs under `name`.

    Every argument of its constructor needs a default; the defaults give the types of the options. The
    attribute `inputs` names what it takes of a batch beside the two images: "text" and "text_mask", "clip",
    or nothing, as if there is no such attribute. `label` is what tables call it, `name` if there is none.
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
        A module whose `forward(image_a, image_b, *inputs)` takes images (N, 1, H, W) in [0, 1] and what
        its `inputs` name: text tokens (N, L, D) and their mask (N, L, True where there is a token), CLIP
        vectors of A and B (N, 2, E). It returns the fused image (N, 1, H, W) in [0, 1]. Its `config` holds
        the name and all options, so that `build_model(**model.config)` builds the same network.

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
            raise InputError(f"net.{key} must be like {defaults[key]!r}, not {shown(value)}")
    options = defaults | options
    with enough_memory(f"build the network '{name}'", "lower its sizes, the options under net"):
        model = network(**options).to(memory_format=torch.channels_last)  # the faster layout, here and on the GPU
    model.config = {"name": name, **options}
    model.inputs = tuple(getattr(model, "inputs", ()))  # what it takes beside the images
    if not set(model.inputs) <= set(INPUTS):
        raise InputError(f"the inputs of '{name}', {model.inputs}, may be of {INPUTS} only")
    model.label = getattr(model, "label", name)  # what tables call it
    model.text = model.clip = None  # what it was trained with, if that is known
    model.facts = {}
    return model


def _same_kind(value: object, default: object) -> bool:
    """True where `value` has the type of `default`; sequences by length and elements, an empty one is of words."""
    if isinstance(default, (list, tuple)):
        if not default:
            return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        return isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(_same_kind, value, default))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default) and not (isinstance(value, int) and abs(value) >= 2**31)
