"""Are instructions obeyed? Each with sentences that were kept for testing, on pairs that are degraded where it says so.

    python -m utils.instruct.study --config configs/film_instruct_ivf.yaml "data.test=[RoadScene_test]"

C is the network's result for the clean pair without an instruction. For what is to be restored, the measure is the PSNR
to C; for a source to follow, the distance to that source; for warm targets, the metric TC. For each set of data.test,
<test.output>/<set>_instruction_study/ gets instructions.json with all numbers and, for some pairs, a picture.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from net import FusionNetwork
from test import open_sets
from utils.config import Config, parse_args
from utils.data.h5 import check_shape, h5_path
from utils.data.images import side_by_side, stack_rows, to_8bit, write_image
from utils.data.pairs import PairDataset, collate
from utils.errors import run_script
from utils.files import atomic_folder, short_digest, to_json, write_file
from utils.guides import open_guides
from utils.guides.guidance import Guidance
from utils.instruct.guide import encode_instructions, read_instructions
from utils.instruct.samples import DEGRADATIONS, UNRELATED, Instruction, wanted_sources
from utils.metrics import METRICS
from utils.opencv import cv2
from utils.process import pick_device, set_up_process
from utils.results.evaluate import fuse_batch
from utils.studies.text import psnr
from utils.targets import warm_map

SPOKEN = 3  # sentences of an instruction that a pair is tested with; the next pair gets the next ones
PICTURES = 8  # pairs that are drawn
NLM_STRENGTHS = (15, 20, 25)  # of cv2.fastNlMeansDenoising, in levels


def main() -> None:
    config, args = parse_args(__doc__)
    set_up_process(config.precision)
    device = pick_device(config.device)
    for name, (used, model) in open_sets(config, args.overrides, device).items():
        folder = Path(config.test.output) / f"{name}_instruction_study"
        with atomic_folder(folder) as staged:
            instruction_study(name, used, model, device, staged)
        print(f"written: {folder}")


def levels(x: np.ndarray, y: np.ndarray) -> float:
    """Mean absolute difference of two images in [0, 1], in levels of 255."""
    return 255 * float(np.abs(x - y).mean())


def kept_targets(fused: np.ndarray, image_a: np.ndarray) -> float:
    """The metric TC of a result; NaN without a target."""
    f, a = (torch.from_numpy(x)[None, None].double() * 255 for x in (fused, image_a))
    return float(METRICS["TC"](f, a, a))


# by what is wanted: the name of the measure, and the measure of (result, C, A, B)
MEASURES: dict[str, tuple[str, Callable[..., float]]] = {
    "restored": ("PSNR to C, dB", lambda f, clean, a, b: psnr(f, clean)),
    "infrared": ("levels from A", lambda f, clean, a, b: levels(f, a)),
    "visible": ("levels from B", lambda f, clean, a, b: levels(f, b)),
    "targets": ("TC", lambda f, clean, a, b: kept_targets(f, a)),
}


@dataclass
class Trial:
    """One pair of a set (a batch of one) under instructions; `rng` draws its degradations."""

    model: FusionNetwork
    guidances: Mapping[str, Guidance]
    device: torch.device
    batch: dict
    instructions: Mapping[str, Instruction]
    rng: np.random.Generator
    known: dict[tuple, np.ndarray] = field(default_factory=dict)  # results, by what is read and the sources

    def __post_init__(self):
        self.a, self.b = (self.batch[key][0, 0].numpy() for key in ("image_a", "image_b"))
        warm = warm_map(255 * self.a) / np.float32(255)
        self.clean = {"image_a": self.a, "image_b": self.b, "warm": warm}
        self.result = self.fuse((self.a, self.b))  # C

    def fuse(self, sources: tuple[np.ndarray, np.ndarray], instruction: Tensor | None = None) -> np.ndarray:
        """The result (H, W) of sources in place of the pair's own, under the feature (L, dim) of an instruction.

        Most sentences of an instruction are read alike: then the result is known.
        """
        told = self.batch["instruction"] if instruction is None else instruction[None]
        read = self.model.strengths(told.to(self.device))[0].tolist()
        key = (*read, *(short_digest(source.tobytes()) for source in sources))
        if key not in self.known:
            image_a, image_b = (torch.from_numpy(source)[None, None] for source in sources)
            changed = self.batch | {"image_a": image_a, "image_b": image_b, "instruction": told}
            self.known[key] = fuse_batch([self.model], changed, self.device, self.guidances)[0, 0]
        return self.known[key]

    def degrade(self, *names: str) -> dict[str, np.ndarray]:
        """The degraded sources that some instructions are to undo."""
        kinds = [self.instructions[name].degrade for name in names]
        return {k: DEGRADATIONS[k](self.clean[DEGRADATIONS[k].source], self.rng, testing=True) for k in kinds if k}

    def wanted(self, present: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What each instruction wants of the pair as it is now; "" wants no change, and so does what is absent."""
        a, b = wanted_sources(self.clean, present, [])
        images = {"": self.fuse((a, b))}
        for name, entry in self.instructions.items():
            if entry.want == "restored":
                images |= {name: self.result} if entry.degrade in present else {}
            elif entry.want == "targets":
                images[name] = self.fuse(wanted_sources(self.clean, present, [entry]))
            else:
                images[name] = a if entry.want == "infrared" else b
        return images


def instruction_study(set_name: str, config: Config, model: FusionNetwork, device: torch.device, folder: Path) -> None:
    """Study one set: print a table, and write what was measured to `folder`."""
    path = h5_path(config.data.h5, set_name)
    dataset = PairDataset([path], model.inputs)
    check_shape(path, config.data, training=False)
    guidances = open_guides(config, model, [dataset], device)
    entries = read_instructions(config.text.instructions)
    instructions = {name: entry for name, entry in entries.items() if name != UNRELATED}
    sentences = [sentence for entry in entries.values() for sentence in entry.test]
    encoded = iter(encode_instructions(sentences, config, model, device))
    features = {name: [(sentence, next(encoded)) for sentence in entry.test] for name, entry in entries.items()}
    two = [next((n for n, e in instructions.items() if e.degrade == kind), "") for kind in ("noise", "dark")]

    measured = defaultdict(list)  # by instruction: (pair, sentence, without, with)
    changes = defaultdict(list)  # by what must change nothing: (pair, sentence, levels)
    taken_for = defaultdict(list)  # by what was asked for: what the result was nearest to
    denoised, both = defaultdict(list), defaultdict(list)
    loader = DataLoader(dataset, batch_size=1, collate_fn=collate)
    for number, batch in enumerate(tqdm(loader, desc="instruction study", unit="pair")):
        rng = np.random.default_rng((config.seed, number))
        trial = Trial(model, guidances, device, batch, instructions, rng)
        pair, a, b, fuse = batch["name"][0], trial.a, trial.b, trial.fuse
        turns = range(SPOKEN * number, SPOKEN * (number + 1))
        spoken = {name: [each[turn % len(each)] for turn in turns] for name, each in features.items()}
        wanted_of_clean, rows = trial.wanted({}), []
        for name, entry in instructions.items():
            present = trial.degrade(name)
            sources = wanted_sources(trial.clean, present, [])
            wanted = trial.wanted(present) if present else wanted_of_clean
            of = MEASURES[entry.want][1]
            for sentence, feature in spoken[name]:
                result = fuse(sources, feature)
                scores = [of(image, trial.result, a, b) for image in (wanted[""], result)]
                measured[name].append((pair, sentence, *scores))
                taken_for[name].append(nearest_to(result, wanted))
            shown = [*sources, wanted[""], result, wanted[name]]
            rows.append(draw_row(shown, ["A", "B", "no instruction", sentence, "wanted"]))
            kind = DEGRADATIONS.get(entry.degrade)
            if kind and not kind.may_be_so(trial.clean[kind.source]):  # surely absent
                sentence, feature = spoken[name][0]
                changes[f"{name}, absent"].append((pair, sentence, levels(fuse((a, b), feature), trial.result)))
        for sentence, feature in spoken[UNRELATED]:
            result = fuse((a, b), feature)
            changes[UNRELATED].append((pair, sentence, levels(result, trial.result)))
            taken_for[UNRELATED].append(nearest_to(result, wanted_of_clean) or UNRELATED)
        shuffled = feature[torch.from_numpy(rng.permutation(len(feature)))]
        changes[f"{UNRELATED}, shuffled"].append((pair, sentence, levels(fuse((a, b), shuffled), trial.result)))
        if all(two):
            sources = wanted_sources(trial.clean, trial.degrade(*two), [])
            asked = [spoken[name][0][1] for name in two]
            for label, feature in zip(("none", *two, "both"), (None, *asked, torch.cat(asked))):
                both[label].append(psnr(fuse(sources, feature), trial.result))
        for strength in NLM_STRENGTHS if two[0] else ():
            noisy = to_8bit(wanted_sources(trial.clean, trial.degrade(two[0]), [])[0], "clamp")
            first = cv2.fastNlMeansDenoising(noisy, None, strength).astype(np.float32) / 255
            denoised[strength].append(psnr(fuse((first, b)), trial.result))
        if number < PICTURES:
            write_image(folder / f"instructions_{pair}.png", stack_rows(rows))

    hits = [other == name for name, each in taken_for.items() for other in each]
    summary = {
        "set": set_name,
        "ckpt": config.ckpt,
        "measured": {name: summarise(rows) for name, rows in measured.items()},
        "denoised_first_then_fused": {strength: float(np.mean(values)) for strength, values in denoised.items()},
        "two_instructions": {label: float(np.mean(values)) for label, values in both.items()},
        "must_change_nothing": {label: float(np.mean([row[-1] for row in rows])) for label, rows in changes.items()},
        "accuracy": sum(hits) / len(hits),  # results that are nearest to what was asked for
        "taken_for": {
            name: {o or "nothing": each.count(o) for o in sorted(set(each))} for name, each in taken_for.items()
        },
    }
    write_file(folder / "instructions.json", to_json(summary | {"all": measured, "all_changes": changes}, indent=1))
    print("\n" + format_study(summary, {name: MEASURES[entry.want][0] for name, entry in instructions.items()}))


def nearest_to(result: np.ndarray, wanted: Mapping[str, np.ndarray]) -> str:
    """Whose wanted image a result is nearest to."""
    return min(wanted, key=lambda name: levels(result, wanted[name]))


def summarise(rows: list[tuple[str, str, float, float]]) -> dict:
    """Means of (pair, sentence, without, with) over the pairs that have a value, and the sentence that moved least."""
    rows = [row for row in rows if np.isfinite(row[2:]).all()]
    moved = defaultdict(list)
    for _, sentence, without, with_it in rows:
        moved[sentence].append((abs(with_it - without), with_it))
    worst = min(moved, key=lambda sentence: np.mean([each[0] for each in moved[sentence]]), default="")
    without, with_it = np.mean([row[2:] for row in rows], axis=0).tolist() if rows else (np.nan, np.nan)
    at_worst = float(np.mean([each[1] for each in moved[worst]])) if rows else np.nan
    return {"without": without, "with": with_it, "worst": worst, "with_worst": at_worst, "pairs": len(rows)}


def format_study(summary: dict, measures: Mapping[str, str]) -> str:
    """The study as text."""
    lines = [f"the instructions on {summary['set']}, sentences that were kept for testing:"]
    lines.append(f"{'':<20}{'':<16}{'without':>8}{'with':>8}   worst sentence")
    for name, row in summary["measured"].items():
        numbers = f"{row['without']:>8.2f}{row['with']:>8.2f}   {row['with_worst']:.2f} {row['worst']}"
        lines.append(f"{name:<20}{measures[name]:<16}{numbers}")
    lines += [f"denoised first by {s}, then fused: {v:.2f} dB" for s, v in summary["denoised_first_then_fused"].items()]
    lines += [f"two degradations, named {label}: {v:.2f} dB" for label, v in summary["two_instructions"].items()]
    lines += [f"{label}: changes {value:.2f} levels" for label, value in summary["must_change_nothing"].items()]
    for name, others in summary["taken_for"].items():
        wrong = ", ".join(f"{other} {count}" for other, count in others.items() if other != name)
        lines.append(f"{name} taken for: {wrong}" if wrong else f"{name}: always right")
    return "\n".join([*lines, f"nearest to what was asked for: {100 * summary['accuracy']:.1f} %"])


def draw_row(images: list[np.ndarray], labels: list[str]) -> np.ndarray:
    """Images (H, W) in [0, 1] in a row, 320 pixels wide each."""
    height, width = images[0].shape
    size = (320, round(320 * height / width))
    return side_by_side([cv2.resize(to_8bit(x, "clamp"), size, interpolation=cv2.INTER_AREA) for x in images], labels)


if __name__ == "__main__":
    run_script(main)
