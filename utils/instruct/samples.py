"""Instructions to train and test with: sources that are degraded, and what an instruction wants of them.

A sample is degraded at random and given instructions at random. The loss sees the sources that are wanted: without the
degradations that are named, with those that are not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from utils.check import Constraint
from utils.config import PositiveFloat
from utils.opencv import cv2
from utils.targets import TARGET

UNRELATED = "unrelated"  # the entry of sentences that ask for nothing
DEGRADED = 0.6  # the share of samples whose A is degraded; B likewise
SILENT = 0.05  # of samples without an instruction
TWO = 0.35  # of the others, and of texts: two instructions
AIMED, WISHED = 6, 3  # how often a degradation is named that is there, and how often another wish
VARIED = 0.5  # the share of samples whose A, or B, looks as if from another camera
PRACTICE = 16  # texts beside a sample, to learn to read with
FORGET = 0.3  # of the values of a feature are zeroed in training, so that no single word decides


@dataclass(frozen=True)
class Degradation:
    """What can be wrong with one source."""

    source: str  # image_a or image_b, a key of a sample
    apply: Callable[..., np.ndarray]  # of an image (H, W) float32 in [0, 1], rng, and the keys of `values`
    values: dict[str, tuple[float, float, float]]  # the lowest and the highest to draw, and the one to test with
    absent: float  # how often it is named where it is not, beside AIMED: so an editor learns to leave others alone
    may_be_so: Callable[[np.ndarray], bool] = lambda image: False  # by itself: then nobody can say that it is not

    def __call__(self, image: np.ndarray, rng: np.random.Generator, testing: bool = False) -> np.ndarray:
        """The degraded image, 8 bit as a camera gives it: (H, W) float32 in [0, 1]."""
        drawn = {key: test if testing else rng.uniform(low, high) for key, (low, high, test) in self.values.items()}
        return (self.apply(image, rng, **drawn).clip(0, 1) * 255).round().astype(np.float32) / 255


def noise(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Noise of a sensor, equal at all levels."""
    return image + sigma * rng.standard_normal(image.shape, np.float32)


def flat(image: np.ndarray, rng: np.random.Generator, contrast: float) -> np.ndarray:
    """A narrow range of temperatures in a wide range of levels."""
    return image.mean() + contrast * (image - image.mean())


def dark(image: np.ndarray, rng: np.random.Generator, gain: float, gamma: float) -> np.ndarray:
    """Too little light, and a response that buries shadows."""
    return gain * image**gamma


def over(image: np.ndarray, rng: np.random.Generator, mean: float) -> np.ndarray:
    """Exposed for a mean that is too high, for dark scenes, too; with 1.2 times the light at least."""
    return max(mean / max(image.mean(), 0.1), 1.2) * image


DEGRADATIONS = {
    "noise": Degradation("image_a", noise, {"sigma": (0.03, 0.12, 0.08)}, 4),
    "flat": Degradation("image_a", flat, {"contrast": (0.25, 0.5, 0.35)}, 2, lambda x: x.std() < 0.08),
    "dark": Degradation(
        "image_b", dark, {"gain": (0.2, 0.45, 0.3), "gamma": (1.2, 1.8, 1.5)}, 3, lambda x: x.mean() < 0.2
    ),
    "over": Degradation("image_b", over, {"mean": (0.7, 1.1, 0.85)}, 2, lambda x: x.mean() > 0.7),
}


def vary(clean: Mapping[str, np.ndarray], kinds: Iterable[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A pair as other cameras may have it: A less sharp, B in another exposure, mostly darker, if it is not degraded.

    It teaches what is no fault: not each photo with a low mean is too dark.
    """
    varied = dict(clean)
    if rng.random() < VARIED:
        varied["image_a"] = cv2.GaussianBlur(clean["image_a"], (0, 0), rng.uniform(0.4, 2))
    if rng.random() < VARIED and all(DEGRADATIONS[kind].source != "image_b" for kind in kinds):
        varied["image_b"] = rng.uniform(0.7, 1) * clean["image_b"] ** rng.uniform(0.8, 1.6)
    return varied


def bring_out_targets(a: np.ndarray, b: np.ndarray, warm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A with brighter warm targets, and B with these in place of what is darker there."""
    target = cv2.GaussianBlur((warm > TARGET).astype(np.float32), (0, 0), 1.5)
    a = (a + 0.25 * target).clip(0, 1)
    return a, b + target * (a - b).clip(min=0)


# what an instruction makes of the sources A and B and the map "warm", (H, W) each; in this order if there are several
WANTED: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "restored": lambda a, b, warm: (a, b),  # its degradation is left out
    "targets": bring_out_targets,
    "infrared": lambda a, b, warm: (a, a),
    "visible": lambda a, b, warm: (b, b),
}
EXCLUSIVE = {"infrared", "visible"}  # nobody can have both
Sentences = Annotated[list[str], Constraint(lambda texts: bool(texts) and all(texts), "must have sentences")]


@dataclass
class Instruction:
    """An entry of configs/instructions.yaml."""

    train: Sentences
    test: Sentences
    want: Literal[tuple(WANTED)] | None = None  # None: its sentences ask for nothing
    degrade: Literal[tuple(DEGRADATIONS)] | None = None  # what it undoes
    weight: PositiveFloat = 1.0  # of the loss of a sample that it is given for


def wanted_sources(
    clean: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], named: Iterable[Instruction]
) -> tuple[np.ndarray, np.ndarray]:
    """The sources that the instructions `named` want fused.

    `clean` has image_a, image_b and warm of a pair, (H, W) float32 in [0, 1]; `present` has, by the degradation that is
    there, the source as it makes it.
    """
    undone, wishes = {entry.degrade for entry in named}, {entry.want for entry in named}
    left = {DEGRADATIONS[kind].source: degraded for kind, degraded in present.items() if kind not in undone}
    a, b, warm = (left.get(key, clean[key]) for key in ("image_a", "image_b", "warm"))
    for wish, apply in WANTED.items():
        if wish in wishes:
            a, b = apply(a, b, warm)
    return a, b


class InstructionDraw:
    """Degrades a training sample and gives it an instruction, and texts to practise reading with.

    Args:
        instructions: by name, in the order in which the network has them.
        features: (L, dim) of sentences to train with, by the names that they say: (name,), (UNRELATED,), and in both
            orders (one, two) for sentences that say two.
    """

    def __init__(self, instructions: dict[str, Instruction], features: dict[tuple[str, ...], list[Tensor]]):
        self.instructions, self.features = instructions, features
        longest = sorted(max(map(len, pool)) for pool in features.values())
        self.length, self.dim = longest[-1] + longest[-2], features[UNRELATED,][0].shape[1]

    def __call__(
        self, maps: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        """Draw for one sample: image_a, image_b and warm, (1, H, W) float32 in [0, 1].

        Returns:
            The maps with degraded sources, and wanted_a and wanted_b. Beside them `strengths` (K), 1 for an instruction
            that is given, else 0; `instruction` (L, dim), a text that says so; the `weight` of the sample (); further
            texts to `practice` reading with (P, length, dim), padded with zeros; and what they ask for, `asked` (P, K).
        """
        kinds = self.draw_kinds(rng)
        clean = vary({key: maps[key][0] for key in ("image_a", "image_b", "warm")}, kinds, rng)
        present = {kind: DEGRADATIONS[kind](clean[DEGRADATIONS[kind].source], rng) for kind in kinds}
        named = self.draw_names(clean, present, rng)
        given = wanted_sources(clean, present, [])
        wanted = wanted_sources(clean, present, [self.instructions[name] for name in named])
        images = dict(zip(("image_a", "image_b", "wanted_a", "wanted_b"), (*given, *wanted)))
        practice, asked = zip(*(self.draw_practice(rng) for _ in range(PRACTICE)))
        return maps | {key: image[None] for key, image in images.items()}, {
            "strengths": torch.tensor([float(name in named) for name in self.instructions]),
            "instruction": forget(self.say(named, rng), rng),
            "weight": torch.tensor(max((self.instructions[name].weight for name in named), default=1.0)),
            "practice": torch.stack(practice),
            "asked": torch.tensor(asked),
        }

    def draw_kinds(self, rng: np.random.Generator) -> list[str]:
        """Degradations of a sample, one of a source at most."""
        drawn, undone = [], [entry.degrade for entry in self.instructions.values() if entry.degrade]
        for source in ("image_a", "image_b"):
            kinds = [kind for kind in undone if DEGRADATIONS[kind].source == source]
            if kinds and rng.random() < DEGRADED:
                drawn.append(kinds[rng.integers(len(kinds))])
        return drawn

    def draw_names(
        self, clean: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> list[str]:
        """The instructions that a sample is given: none, one or two."""
        if rng.random() < SILENT:
            return []
        chances, named = {}, []
        for name, entry in self.instructions.items():
            kind = DEGRADATIONS.get(entry.degrade)
            if kind is None:
                chances[name] = WISHED
            elif entry.degrade in present:
                chances[name] = AIMED
            else:
                chances[name] = 0 if kind.may_be_so(clean[kind.source]) else kind.absent
        for _ in range(2 if rng.random() < TWO else 1):
            share = np.array([*chances.values()], float)
            named.append(list(chances)[rng.choice(len(chances), p=share / share.sum())])
            both = {n for n in chances if {self.instructions[n].want, self.instructions[named[0]].want} == EXCLUSIVE}
            chances |= dict.fromkeys({named[0], *both}, 0)
        return named

    def say(self, names: Sequence[str], rng: np.random.Generator) -> Tensor:
        """The feature (L, dim) of a text that says some things, in any order; one token of zeros if it says nothing."""
        pools = [self.features[name,] for name in rng.permutation(names)]
        if len(names) == 2 and tuple(names) in self.features and rng.random() < 0.5:
            pools = [self.features[tuple(names)]]
        return torch.cat([pool[rng.integers(len(pool))] for pool in pools] or [torch.zeros(1, self.dim)])

    def draw_practice(self, rng: np.random.Generator) -> tuple[Tensor, list[float]]:
        """A text (length, dim), padded with zeros, and what it asks for (K)."""
        names = rng.choice([*self.instructions, UNRELATED], 2 if rng.random() < TWO else 1, replace=False)
        text = forget(self.say(names, rng), rng)
        padded = torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text)))
        return padded, [float(name in names) for name in self.instructions]


def forget(feature: Tensor, rng: np.random.Generator) -> Tensor:
    """A feature with some of its values zeroed, the others raised to make up for it."""
    kept = torch.from_numpy(rng.random(feature.shape, np.float32) >= FORGET)
    return feature * kept / (1 - FORGET)
