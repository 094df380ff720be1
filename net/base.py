"""The base class of all networks."""

import inspect
from typing import Any

from torch import Tensor, nn

from net.checkpoint import load_weights
from net.hub import HubMixin
from net.provenance import Provenance
from utils.registry import options_of


class FusionNetwork(HubMixin, nn.Module):
    """A network that fuses two images, perhaps guided by features.

    `forward(image_a, image_b, *inputs)` takes images (N, 1, H, W) in [0, 1] and what `inputs` names, and
    returns the fused image (N, 1, H, W) in [0, 1].

    Every argument of a network's constructor needs a default: they are its options, the keys under `net:` in a
    config, and the defaults give their types. The width of a guide's features is the option `<guide>_dim`, e.g.
    `text_dim` or `clip_dim`: by it, features of another width are refused before they reach the network.

    Attributes:
        name: what configs call it; `register` sets it.
        label: what tables call it; `name` where a network gives none.
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
            cls.label = ""  # a variant is not called what its base is called

    def __new__(cls, *args, **options):
        """Keep the constructor's arguments, whoever calls it."""
        network = super().__new__(cls, *args, **options)
        given = options | inspect.signature(cls.__init__).bind(network, *args, **options).arguments
        network.options = {name: given.get(name, p.default) for name, p in options_of(cls).items()}
        network.provenance = Provenance()
        network.label = cls.label or cls.name
        return network

    @property
    def config(self) -> dict[str, Any]:
        """Name and options, so that `build_model(**config)` builds the network again."""
        return {"name": self.name, **self.options}

    def arguments(self, batch: dict[str, Any]) -> list[Tensor]:
        """What `forward` takes, from a batch of utils/data/pairs.py."""
        return [batch[key] for key in ("image_a", "image_b", *self.inputs)]

    def readings(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What a loss gets to see of the network beside the fused image, by the names of the loss's arguments."""
        return {}

    def checkpoint(self, provenance: Provenance | None = None) -> dict[str, Any]:
        """Network, weights and provenance as a dict, for `save_checkpoint` and `save_weights`.

        Args:
            provenance: in place of its own, e.g. with new measurements.
        """
        return (provenance or self.provenance).as_dict() | {"net": self.config, "model": self.state_dict()}

    def restore(self, checkpoint: dict[str, Any], path: str) -> None:
        """Take over the weights and the provenance of a checkpoint of `read_checkpoint`.

        Args:
            path: where it was read, for messages.

        Raises:
            InputError: weights that do not fit.
        """
        load_weights(self, checkpoint["model"], path)
        self.provenance = Provenance.from_checkpoint(checkpoint)
