"""What guides a fusion beside the images, once it is opened for a network and some sets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from utils.data.features import FEATURES, Feature
from utils.data.pairs import Transform
from utils.provenance import GuideRecord

GIVEN = "given"  # the name in a record of features that came as files without a note of their encoder
NO_TEXT = "none"  # the name in a record of a training without any text

Encoder = Callable[[Tensor, Tensor], Tensor]  # of a batch, from A and B (N, 1, H, W) in [0, 1] -> (N, rows, width)


@dataclass
class Guidance:
    """A guide, opened."""

    record: GuideRecord | None  # which encoder the features are of, for a checkpoint; None where nobody knows
    encoder: Encoder | None = None  # if a set lacks it
    instead: Tensor | None = None  # a feature (L, dim) that every pair gets in place of its own
    ignore: bool = False  # the first set does not return its stored features
    transform: Transform | None = None  # of the samples of the first set, see `PairDataset`
    words: str = ""  # names the guide in logs; "<name> of <record>" if empty
    remark: str = ""  # a warning to put beside a network's name

    @property
    def default(self) -> Tensor | None:
        """What a pair without a feature of its own gets, (L, dim); None if there is nothing."""
        return self.instead if self.instead is not None else self.record and self.record.default


class Guide(NamedTuple):
    """What is done with one kind of feature.

    Attributes:
        open: (config, record, dim, datasets, device, training) -> Guidance. `record` is that of the network, if it is
            known, `dim` the width that it takes or None, and `datasets` as for `open_guides`.
        make: (config, record, source, names, problems) -> a `FeatureMaker` as `make_sets` takes it; None: in no set.
    """

    open: Callable[..., Guidance]
    make: Callable | None


def register_guide(name: str, rows: int = 1) -> Callable[[Encoder], Encoder]:
    """Function decorator: a guide computed from the images of each batch, for networks that take `name`, a new one."""

    def add(encoder: Encoder) -> Encoder:
        if name in FEATURES:
            raise ValueError(f"the guide '{name}' is taken")
        FEATURES[name] = Feature(name, (name,), rows, (f"{name}_name", f"{name}_revision"))
        GUIDES[name] = Guide(lambda *_: Guidance(GuideRecord("both images"), encoder), make=None)
        return encoder

    return add


GUIDES: dict[str, Guide] = {}  # by name of the feature; utils/guides/__init__.py has the rows


def same_encoder(one: GuideRecord | None, other: GuideRecord | None) -> bool:
    """False if two records are known to be of different encoders: by the digests of their weights, else by name."""
    if one is None or other is None or {one.name, other.name} & {GIVEN, NO_TEXT}:
        return True
    return one.revision == other.revision if one.revision and other.revision else one.name == other.name
