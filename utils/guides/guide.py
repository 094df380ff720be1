"""What a kind of guide is, and what opening one gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from net.provenance import GuideRecord

if TYPE_CHECKING:
    from utils.config import Config
    from utils.data.pairs import PairDataset
    from utils.data.sources import Source


@dataclass
class Guidance:
    """A guide, opened for a network and some sets.

    Attributes:
        record: what made the features, for a checkpoint; None where nobody knows.
        encoder: computes the features of a batch from its images (N, 1, H, W), where a set holds none.
        instead: a feature that every pair gets in place of its own.
    """

    record: GuideRecord | None
    encoder: Callable[[Tensor, Tensor], Tensor] | None = None
    instead: Tensor | None = None


class FeatureMaker(Protocol):
    """Makes the features of one set for its H5 file. `attributes` go into the H5, so that the features are known."""

    attributes: dict[str, Any]

    def __call__(self, name: str, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray | None:
        """The feature of the pair `name`, images (H, W) float32 in [0, 1]; None where the set has none."""


class Guide:
    """One kind of feature that guides a fusion: how it is checked, stored, put into batches, made and opened.

    Attributes:
        name: of its group in an H5 file, and of its record in a checkpoint; its width is the option `<name>_dim`.
        inputs: the keys of a batch that it fills; a network takes all of them or none.
    """

    name: str
    inputs: tuple[str, ...]

    def check(self, feature: np.ndarray) -> np.ndarray:
        """A stored feature as networks take it, (tokens, width); ValueError with what is wrong with it."""
        return check_feature(feature)

    def collate(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Features of several pairs -> the values of `inputs`."""
        return {self.name: torch.stack(features)}

    def read_record(self, attribute: Callable[[str], str]) -> GuideRecord | None:
        """What an H5 file says of its features; None if it says nothing. `attribute` gives a word by its key."""
        return None

    def maker(
        self, config: "Config", record: GuideRecord | None, source: "Source", names: list[str], problems: list[str]
    ) -> FeatureMaker:
        """What makes the features of a set.

        Args:
            record: of the network that they are for, if it is trained already.
            source: the set on disk.
            names: its pairs.
            problems: gets a sentence for everything that is wrong.
        """
        raise NotImplementedError

    def open(
        self,
        config: "Config",
        record: GuideRecord | None,
        dim: int | None,
        datasets: list["PairDataset"],
        device: torch.device,
        training: bool,
    ) -> Guidance:
        """The guide for a network and some sets; see `open_guides`.

        Args:
            record: what the network was trained with, if it is known.
            dim: width that the network takes; None: any.
        """
        raise NotImplementedError

    def describe(self, record: GuideRecord | None) -> str:
        """The guide in words."""
        return f"{self.name} of {record.name}" if record else self.name

    def remark(self, record: GuideRecord | None) -> str:
        """A warning to put beside a network's name; empty for none."""
        return ""


GIVEN = "given"  # the name in a record of features that came as files without a note of their encoder
NO_TEXT = "none"  # the name in a record of a training without any text


def same_encoder(one: GuideRecord | None, other: GuideRecord | None) -> bool:
    """False if two records are known to be of different encoders: by the digests of their weights, else by name."""
    if one is None or other is None or {one.name, other.name} & {GIVEN, NO_TEXT}:
        return True
    if one.revision and other.revision:
        return one.revision == other.revision
    return one.name == other.name


def check_feature(feature: np.ndarray) -> np.ndarray:
    """A stored feature (L, dim) or (1, L, dim) as (L, dim); ValueError with what is wrong with it."""
    if not isinstance(feature, np.ndarray):
        raise ValueError("it is not an array")
    if feature.ndim == 3 and len(feature) == 1:
        feature = feature[0]
    if feature.ndim != 2 or 0 in feature.shape or not np.issubdtype(feature.dtype, np.floating):
        raise ValueError(f"it is not a float array (L, dim) or (1, L, dim) but {feature.dtype} {feature.shape}")
    if not np.isfinite(feature).all():
        raise ValueError("it holds NaN or inf")
    return feature
