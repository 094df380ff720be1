"""Are instructions obeyed? Each with sentences that were kept for testing, on pairs that are degraded where it says so.

    python -m utils.instruct.study --config configs/film_instruct_ivf.yaml "data.test=[RoadScene_test]"

C is the network's result for the clean pair without an instruction. For what is to be restored, the measure is the PSNR
to C; for a source to follow, the distance to that source; for warm targets, the metric TC; for what must change
nothing, the distance to C. <test.output>/<set>_instruction_study/instructions.json gets all numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from net import FusionNetwork
from test import open_sets
from utils.config import Config, parse_args
from utils.data.images import to_8bit
from utils.data.pairs import collate
from utils.errors import run_script
from utils.files import to_json, write_file
from utils.guides.guidance import Guidance
from utils.instruct.guide import encode_instructions, read_instructions
from utils.instruct.samples import DEGRADATIONS, UNRELATED, Instruction, wanted_sources
from utils.metrics import METRICS
from utils.opencv import cv2
from utils.process import pick_device, set_up_process
from utils.results.evaluate import fuse_batch
from utils.studies.text import open_pairs, psnr
from utils.targets import warm_map

SPOKEN = 3  # sentences of an instruction that a pair is tested with; the next pair gets the next ones
NLM_STRENGTHS = (15, 20, 25)  # of cv2.fastNlMeansDenoising, in levels


def main() -> None:
    config, args = parse_args(__doc__)
    set_up_process(config.precision)
    device = pick_device(config.device)
    for name, (used, model) in open_sets(config, args.overrides, device).items():
        path = Path(config.test.output) / f"{name}_instruction_study" / "instructions.json"
        write_file(path, to_json(instruction_study(name, used, model, device), indent=1))
        print(f"written: {path}")


def levels(x: np.ndarray, y: np.ndarray) -> float:
    """Mean absolute difference of two images in [0, 1], in levels of 255."""
    return 255 * float(np.abs(x - y).mean())


def kept_targets(fused: np.ndarray, image_a: np.ndarray) -> float:
    """The metric TC of a result; NaN without a target."""
    f, a = (torch.from_numpy(x)[None, None].double() * 255 for x in (fused, image_a))
    return float(METRICS["TC"](f, a, a))


# by what is wanted: the name of the measure, and the measure of (result, C, A, B)
MEASURES: dict[str | None, tuple[str, Callable[..., float]]] = {
    "restored": ("PSNR to C, dB", lambda f, c, a, b: psnr(f, c)),
    "infrared": ("levels from A", lambda f, c, a, b: levels(f, a)),
    "visible": ("levels from B", lambda f, c, a, b: levels(f, b)),
    "targets": ("TC", lambda f, c, a, b: kept_targets(f, a)),
    None: ("levels from C", lambda f, c, a, b: levels(f, c)),
}


class Trial:
    """One pair of a set, a batch of one, under instructions; `rng` draws its degradations."""

    def __init__(
        self,
        model: FusionNetwork,
        guidances: Mapping[str, Guidance],
        device: torch.device,
        batch: dict,
        rng: np.random.Generator,
    ):
        self.model, self.guidances, self.device, self.batch, self.rng = model, guidances, device, batch, rng
        self.known: dict[tuple, np.ndarray] = {}
        self.a, self.b = (batch[key][0, 0].numpy() for key in ("image_a", "image_b"))
        self.clean = {"image_a": self.a, "image_b": self.b, "warm": warm_map(255 * self.a) / np.float32(255)}
        self.result = self.fuse(self.a, self.b)  # C

    def fuse(self, a: np.ndarray, b: np.ndarray, instruction: Tensor | None = None) -> np.ndarray:
        """The result (H, W) of sources in place of the pair's own, under the feature (L, dim) of an instruction.

        Most sentences of an instruction are read alike: then the result is known.
        """
        told = self.batch["instruction"] if instruction is None else instruction[None]
        read = self.model.strengths(told.to(self.device))[0].tolist()
        key = (*read, a.tobytes(), b.tobytes())
        if key not in self.known:
            images = {"image_a": torch.from_numpy(a)[None, None], "image_b": torch.from_numpy(b)[None, None]}
            changed = self.batch | images | {"instruction": told}
            self.known[key] = fuse_batch([self.model], changed, self.device, self.guidances)[0, 0]
        return self.known[key]

    def degrade(self, entry: Instruction) -> dict[str, np.ndarray]:
        """The degraded source that an instruction is to undo, if there is one."""
        if entry.degrade is None:
            return {}
        kind = DEGRADATIONS[entry.degrade]
        return {entry.degrade: kind(self.clean[kind.source], self.rng, testing=True)}

    def wanted(self, present: Mapping[str, np.ndarray], entries: Mapping[str, Instruction]) -> dict[str, np.ndarray]:
        """What each instruction wants of the pair as it is now; those that undo what is not there are left out."""
        a, b = wanted_sources(self.clean, present, [])
        images = {UNRELATED: self.fuse(a, b)}  # no change
        for name, entry in entries.items():
            if entry.want == "targets":
                images[name] = self.fuse(*wanted_sources(self.clean, present, [entry]))
            elif entry.want in ("infrared", "visible"):
                images[name] = a if entry.want == "infrared" else b
            elif entry.degrade in present:
                images[name] = self.result
        return images

    def score(self, want: str | None, *results: np.ndarray) -> list[float]:
        """The measure of some results."""
        return [MEASURES[want][1](result, self.result, self.a, self.b) for result in results]


def instruction_study(set_name: str, config: Config, model: FusionNetwork, device: torch.device) -> dict:
    """Study one set: print a table, and return what was measured."""
    dataset, guidances = open_pairs(set_name, config, model, device)
    entries = read_instructions(config.text.instructions)
    sentences = [sentence for entry in entries.values() for sentence in entry.test]
    encoded = iter(encode_instructions(sentences, config, model, device))
    features = {name: [(sentence, next(encoded)) for sentence in entry.test] for name, entry in entries.items()}

    measured = defaultdict(list)  # by what is tested: (pair, sentence, without, with)
    taken_for = defaultdict(list)  # by instruction: whose wanted image each result is nearest to
    denoised = defaultdict(list)  # by strength: PSNR to C
    loader = DataLoader(dataset, batch_size=1, collate_fn=collate)
    for number, batch in enumerate(tqdm(loader, desc="instruction study", unit="pair", disable=None)):
        rng, pair = np.random.default_rng((config.seed, number)), batch["name"][0]
        trial = Trial(model, guidances, device, batch, rng)
        for name, entry in entries.items():
            present = trial.degrade(entry)
            a, b = wanted_sources(trial.clean, present, [])
            wanted = trial.wanted(present, entries)
            spoken = [features[name][(SPOKEN * number + i) % len(entry.test)] for i in range(SPOKEN)]
            for sentence, feature in spoken:
                result = trial.fuse(a, b, feature)
                measured[name].append((pair, sentence, *trial.score(entry.want, wanted[UNRELATED], result)))
                taken_for[name].append(min(wanted, key=lambda other: levels(result, wanted[other])))
            kind = DEGRADATIONS.get(entry.degrade)
            if kind and not kind.may_be_so(trial.clean[kind.source]):  # surely absent in the clean pair
                sentence, feature = spoken[0]
                result = trial.fuse(trial.a, trial.b, feature)
                measured[f"{name}, absent"].append((pair, sentence, *trial.score(None, trial.result, result)))
            for strength in NLM_STRENGTHS if entry.degrade == "noise" else ():
                first = cv2.fastNlMeansDenoising(to_8bit(a, "clamp"), None, strength).astype(np.float32) / 255
                denoised[strength] += trial.score("restored", trial.fuse(first, b))

    hits = [other == name for name, others in taken_for.items() for other in others]
    summary = {
        "set": set_name,
        "ckpt": config.ckpt,
        "measured": {name: summarise(rows) for name, rows in measured.items()},
        "denoised_first_then_fused": {strength: float(np.mean(values)) for strength, values in denoised.items()},
        "accuracy": sum(hits) / len(hits),
        "taken_for": {name: {o: each.count(o) for o in sorted(set(each))} for name, each in taken_for.items()},
    }
    print("\n" + format_study(summary, {name: MEASURES[entry.want][0] for name, entry in entries.items()}))
    return summary | {"all": measured}


def summarise(rows: list[tuple[str, str, float, float]]) -> dict[str, float]:
    """Means of (pair, sentence, without, with) over the rows that have a value, and how many have."""
    values = np.array([row[2:] for row in rows])
    values = values[np.isfinite(values).all(axis=1)]
    without, with_it = values.mean(axis=0).tolist() if len(values) else (np.nan, np.nan)
    return {"without": without, "with": with_it, "values": len(values)}


def format_study(summary: dict, measures: Mapping[str, str]) -> str:
    """The study as text; `measures` by instruction."""
    lines = [f"the instructions on {summary['set']}, sentences that were kept for testing:"]
    lines.append(f"{'':<28}{'':<16}{'without':>8}{'with':>8}")
    for name, row in summary["measured"].items():
        measure = measures.get(name, MEASURES[None][0])
        lines.append(f"{name:<28}{measure:<16}{row['without']:>8.2f}{row['with']:>8.2f}")
    lines += [f"denoised first by {s}, then fused: {v:.2f} dB" for s, v in summary["denoised_first_then_fused"].items()]
    for name, others in summary["taken_for"].items():
        wrong = ", ".join(f"{other} {count}" for other, count in others.items() if other != name)
        lines.append(f"{name} taken for: {wrong}" if wrong else f"{name}: always right")
    return "\n".join([*lines, f"nearest to what was asked for: {100 * summary['accuracy']:.1f} %"])


if __name__ == "__main__":
    run_script(main)
