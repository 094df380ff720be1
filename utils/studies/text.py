"""Does the text matter? The same pairs with other texts: what changes in the images, in the metrics, and where.

    python -m utils.studies.text --config configs/film_ivf_small.yaml "data.test=[RoadScene_test,TNO_test]"

Every pair is fused with its own text and with others: another pair's, its own tokens in a random order, the empty
text, the network's default text if it has one, and one sentence. Only the text changes; what else guides the network
stays that of the pair. <test.output>/<set>_text_study/ gets metrics.csv, table.tex and table.md with the metrics,
text_study.png with the pairs that change most, and metrics.json with all.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from net import FusionNetwork
from test import open_sets
from utils.config import Config, parse_args
from utils.data.features import collate_features
from utils.data.h5 import check_shape, h5_path
from utils.data.images import side_by_side, stack_rows, to_8bit, write_image
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError, run_script
from utils.files import atomic_folder
from utils.guides import open_guides
from utils.guides.guidance import Guidance
from utils.guides.text import open_text_encoder, text_use
from utils.metrics import measure_all
from utils.opencv import cv2
from utils.process import pick_device, set_up_process
from utils.results.evaluate import average_all, fuse_batch, sources_8bit
from utils.results.statistics import column, holm, signed_rank, statistics
from utils.results.table import PICTURE_PAIRS, left_out_lines, write_results

OWN = "own text"
SENTENCE = {"metavar": "TEXT", "default": "A red rose on a white table.", "help": "one of the other texts"}
NOTES = """
mean, 99 %: how far a pixel is from the result with its own text, in levels of 255; PSNR: between the two, in dB, nan if
all are equal; p: Wilcoxon signed-rank test of a metric against own text over the images, Holm-corrected"""


def main() -> None:
    config, args = parse_args(__doc__, arguments={"--sentence": SENTENCE})
    config.text.use = "own"
    set_up_process(config.precision)
    device = pick_device(config.device)
    for name, (used, model) in open_sets(config, args.overrides, device).items():
        folder = Path(config.test.output) / f"{name}_text_study"
        with atomic_folder(folder) as staged:
            text_study(name, used, model, args.sentence, device, staged)
        print(f"written: {folder}")


def text_study(
    set_name: str, config: Config, model: FusionNetwork, sentence: str, device: torch.device, folder: Path
) -> None:
    """Study one set: print a table, and write what was measured to `folder`.

    In metrics.json "change" and "change_per_image" are as in `change_from` (the mean PSNR is over the images whose
    results differ, null if none does), and "p" as in `p_values`.

    Raises:
        InputError: a network that reads no text, or a set without text, or with one pair.
    """
    if "text" not in model.inputs:
        raise InputError(f"{model.label} reads no text; the study needs a network that does")
    dataset, guidances = open_pairs(set_name, config, model, device)
    if dataset.features["text"].lacking or len(dataset) < 2:
        raise InputError(f"{dataset.path} holds no text, or one pair; the study gives each pair the text of another")
    record = guidances["text"].record
    encoder = open_text_encoder(config, record, model.options["text_dim"], device)
    texts = encoder.encode_pairs([("", ""), (sentence, sentence)], use=text_use(config, record))
    empty, said = map(torch.from_numpy, texts)
    default = {"default text": record.default} if record and record.default is not None else {}
    for_all = {"empty text": empty, **default, "the sentence": said}

    per_image: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    changes: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    shown: list[tuple[str, np.ndarray, dict[str, np.ndarray]]] = []  # the pairs that change most
    pairs = zip(DataLoader(dataset, batch_size=1, collate_fn=collate), variants(dataset, config.seed))
    for batch, texts in tqdm(pairs, total=len(dataset), desc="text study", unit="pair", disable=None):
        name, sources, maps = batch["name"][0], sources_8bit(batch), {}
        for label, text in (texts | for_all).items():
            batch |= collate_features("text", [text])
            fused = fuse_batch([model], batch, device, guidances)[0, 0]
            results = [to_8bit(fused, config.test.stretch)]
            (per_image[label][name],) = measure_all(results, *sources, config.test.metrics, device)
            if label == OWN:
                own = fused
            else:
                changes[label][name] = change_from(own, fused)
                maps[label] = 255 * np.abs(fused - own)
        shown.append((name, own, maps))
        shown = sorted(shown, key=lambda row: -np.mean([*row[2].values()]))[:PICTURE_PAIRS]

    (means, left_out), (change, _) = average_all(per_image), average_all(changes)
    summary = {
        "ckpt": config.ckpt,
        "sentence": sentence,
        "stretch": config.test.stretch,
        "metrics": config.test.metrics,
        "mean": means,
        "dataset": f"{set_name}, text study",
        "published": {},
        "left_out": left_out,
        "change": change,
        "p": p_values(per_image),
        "std": {},
        "change_per_image": changes,
    }
    write_results(folder, summary | statistics(per_image, config.test.metrics), per_image)
    write_image(folder / "text_study.png", stack_rows([draw_maps(*row) for row in shown]))
    print(f"\nthe text study on {len(dataset)} pairs of {set_name}; the sentence: {sentence}\n")
    print("\n".join([study_table(summary), NOTES, *left_out_lines(left_out)]))


def open_pairs(
    set_name: str, config: Config, model: FusionNetwork, device: torch.device
) -> tuple[PairDataset, dict[str, Guidance]]:
    """A set of whole pairs, and what guides a network on it; InputError if they do not go together."""
    path = h5_path(config.data.h5, set_name)
    check_shape(path, config.data, training=False)
    dataset = PairDataset([path], model.inputs)
    return dataset, open_guides(config, model, [dataset], device)


def variants(dataset: PairDataset, seed: int) -> Iterator[dict[str, Tensor]]:
    """For each pair in turn, by label: its own text (L, dim), another pair's, and its own tokens in a random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    other = dict(zip(order, np.roll(order, 1)))  # a cycle through all pairs: none gets its own
    for i in range(len(dataset)):
        own = dataset.feature("text", i)
        shuffled = own[torch.from_numpy(rng.permutation(len(own)))]
        yield {OWN: own, "another's": dataset.feature("text", other[i]), "shuffled tokens": shuffled}


def change_from(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far a result is from that with the pair's own text; (H, W) floats in [0, 1] each, before they become 8 bit.

    Returns:
        "mean" and "99 %": mean and 99th percentile over the pixels of |other - own|, in levels of 255; and "PSNR".
    """
    difference = 255 * np.abs(other.astype(np.float64) - own)
    return {"mean": difference.mean(), "99 %": np.percentile(difference, 99), "PSNR": psnr(other, own)}


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR of two images with a peak of 1, dB; inf if they are equal."""
    error = float(np.square(x.astype(np.float64) - y).mean())
    return -10 * math.log10(error) if error else math.inf


def p_values(per_image: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Whether a metric differs from that with own text: p of a two-sided Wilcoxon signed-rank test over the images.

    All p together are corrected by Holm's method, so ten images or fewer show nothing. A small p says that a change has
    a direction, not that it is large.

    Returns:
        {label: {metric: p}} for all labels but that of own text.
    """
    own = per_image[OWN]
    tests = [(label, metric) for label in per_image if label != OWN for metric in next(iter(own.values()))]
    found = [signed_rank(column(per_image, label, metric) - column(per_image, OWN, metric)) for label, metric in tests]
    corrected: dict[str, dict[str, float]] = {label: {} for label, _ in tests}
    for (label, metric), p in zip(tests, holm(found)):
        corrected[label][metric] = p
    return corrected


def study_table(summary: dict) -> str:
    """How far each text moves pixels, the means of the metrics with it, and the p of their differences."""
    rows = [["", "mean", "99 %", "PSNR", *summary["metrics"]]]
    for label, means in summary["mean"].items():
        change = summary["change"].get(label)
        changed = [f"{number:.3g}" for number in change.values()] if change else [""] * 3
        rows.append([label, *changed, *(f"{mean:.4f}" for mean in means.values())])
    for label, p in summary["p"].items():
        rows.append([f"p of {label}", "", "", "", *(f"{p[metric]:.3f}" for metric in summary["metrics"])])
    return "\n".join(f"{label:<20}" + "".join(f"{cell:>10}" for cell in cells) for label, *cells in rows)


def draw_maps(name: str, own: np.ndarray, maps: dict[str, np.ndarray]) -> np.ndarray:
    """The result with its own text and, in colours, how far the others are from it.

    Red is the 99.9th percentile of the strongest change, so that a few pixels do not darken all others.
    """
    tiles = {name: to_8bit(own, "clamp")}
    top = max(1e-6, *(float(np.percentile(change, 99.9)) for change in maps.values()))
    for label, change in maps.items():
        colors = cv2.applyColorMap(to_8bit(change / top, "clamp"), cv2.COLORMAP_TURBO)
        tiles[f"{label}, red: {top:.3g} levels"] = colors
    return side_by_side([*tiles.values()], [*tiles])


if __name__ == "__main__":
    run_script(main)
