"""The base class of all networks, and the networks by name.

A variant is one new file in this folder and `net: {name: ...}` in the YAML.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import enough_memory
from utils.provenance import Provenance
from utils.registry import Registry, options_of

NETWORKS = Registry("net")
register = NETWORKS.register


class FusionNetwork(nn.Module):
    """A network that fuses two images, perhaps guided by features.

    `forward(image_a, image_b, *inputs)` takes images (N, 1, H, W) in [0, 1] and what `inputs` names, and
    returns the fused image (N, 1, H, W) in [0, 1].

    Every argument of a network's constructor needs a default: they are its options, the keys under `net:` in a
    config, and the annotations give their types. The width of a guide's features is the option `<guide>_dim`, e.g.
    `text_dim` or `clip_dim`: by it, features of another width are refused before they reach the network.

    Attributes:
        name: what configs call it; `register` sets it.
        label: what tables call it; `name` where a network gives none. Subclasses do not inherit the label.
        inputs: what `forward` takes beside the two images, in its order: keys of a batch, as the guides in
            utils/guides give them. ("text", "text_mask"): tokens (N, L, text_dim) and their mask (N, L), True where
            there is a token. ("clip",): vectors of A and B (N, 2, clip_dim). A network whose options decide its
            label or inputs sets them in its constructor.
        options: the arguments of the constructor, defaults included.
        provenance: where its weights come from.
    """

    name = ""
    label = ""
    inputs: tuple[str, ...] = ()
    options: dict[str, Any]
    provenance: Provenance

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__:
            cls.label = ""

    def __new__(cls, *args, **options):
        """Keep the constructor's arguments, whoever calls it."""
        network = super().__new__(cls)
        given = options | inspect.signature(cls.__init__).bind(network, *args, **options).arguments
        network.options = {name: given.get(name, p.default) for name, p in options_of(cls).items()}
        network.provenance = Provenance()
        network.label = cls.label or cls.name
        return network

    @property
    def config(self) -> dict[str, Any]:
        """Name and options, so that `build_model(**config)` builds the network again."""
        return {"name": self.name, **self.options}

    def forward_args(self, batch: dict[str, Any]) -> list[Tensor]:
        """What `forward` takes, from a batch of utils/data/pairs.py."""
        return [batch[key] for key in ("image_a", "image_b", *self.inputs)]

    def loss_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Extra tensors passed to the loss, by the names of its arguments."""
        return {}

    def checkpoint(self, provenance: Provenance | None = None) -> dict[str, Any]:
        """Network, weights and provenance, its own or another, as a dict for `save_checkpoint` and `save_weights`."""
        return (provenance or self.provenance).as_dict() | {"net": self.config, "model": self.state_dict()}


def build_model(name: str, **options) -> FusionNetwork:
    """Build a network with fresh weights by its name, e.g. "film"; `build_model(**network.config)` builds it again.

    Raises:
        InputError: unknown name or option, or a value that the network rejects.
    """
    with enough_memory(f"build the network '{name}'", "lower its sizes, the options under net"):
        return NETWORKS.build(name, **options).to(memory_format=torch.channels_last)  # the faster layout on a CPU
