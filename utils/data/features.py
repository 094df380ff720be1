"""Features that guide a fusion beside the images: which there are, and how those of several pairs become a batch."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, nearest


class Feature(NamedTuple):
    """One kind of feature, stored as (rows, width) float for each pair.

    Attributes:
        name: of its group in an H5 file, and of its record in a checkpoint; its width is the option `<name>_dim`.
        inputs: the keys of a batch that it fills: (name,), or (name, mask), True where there is a token.
        rows: how many rows it has; None: any number, padded with zeros in a batch.
        attributes: those of an H5 file that say which encoder the features are of: its name, and its revision.
    """

    name: str
    inputs: tuple[str, ...]
    rows: int | None
    attributes: tuple[str, str]


FEATURES: dict[str, Feature] = {
    "text": Feature("text", ("text", "text_mask"), None, ("text_encoder", "text_revision")),  # tokens of both texts
    "clip": Feature("clip", ("clip",), 2, ("clip_name", "clip_revision")),  # vectors of A and B
}


def features_of(inputs: Iterable[str]) -> list[Feature]:
    """The features that fill a network's `inputs`; InputError for a key that none fills."""
    known = {key for feature in FEATURES.values() for key in feature.inputs}
    for key in inputs:
        if key not in known:
            raise InputError(f"a network takes the input '{key}', which no guide gives; {nearest(key, known)}")
    return [feature for feature in FEATURES.values() if set(feature.inputs) & set(inputs)]


def check_feature(kind: str, array: np.ndarray) -> np.ndarray:
    """A stored feature (L, dim), or (1, L, dim) as in published files, as (L, dim); ValueError if it is none."""
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"it is not a float array (L, dim) or (1, L, dim) but {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or inf")
    rows = FEATURES[kind].rows
    if rows and len(array) != rows:
        raise ValueError(f"its {kind} has {len(array)} rows and not {rows}")
    return array


def collate_features(kind: str, features: list[Tensor]) -> dict[str, Tensor]:
    """Features (L_i, dim) of N pairs -> the values of `inputs`: padded (N, L, dim), and perhaps their mask (N, L)."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    return dict(zip(FEATURES[kind].inputs, (padded, torch.arange(padded.shape[1]) < lengths[:, None])))
