"""The networks by name. A variant is one new file in this folder and `net: {name: ...}` in the YAML."""

from typing import TYPE_CHECKING

import torch

from utils.errors import InputError, enough_memory
from utils.registry import Registry

if TYPE_CHECKING:
    from net.base import FusionNetwork

NETWORKS: "Registry[FusionNetwork]" = Registry("net")
register = NETWORKS.register
BROKEN: dict[str, str] = {}  # files of this folder that cannot be imported, and why


def build_model(name: str, **options) -> "FusionNetwork":
    """Build a network with fresh weights.

    Args:
        name: a registered name, e.g. "film", "mean".
        options: keyword arguments of the network's constructor; those left out keep its defaults.

    Returns:
        The network, see net/base.py. `build_model(**network.config)` builds the same one again.

    Raises:
        InputError: unknown name or option, or a value that the network rejects.
    """
    if name not in NETWORKS and BROKEN:
        raise InputError(f"net.name '{name}' is not known; {'; '.join(BROKEN.values())}")
    with enough_memory(f"build the network '{name}'", "lower its sizes, the options under net"):
        return NETWORKS.build(name, **options).to(memory_format=torch.channels_last)  # the faster layout on a CPU
