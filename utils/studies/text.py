"""Does the text matter? The same pairs with other texts: what changes in the images, in the metrics, and where."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from net import FusionNetwork
from utils.config import Config
from utils.data.images import side_by_side, stack_rows, to_8bit, write_image
from utils.data.pairs import PairDataset, collate
from utils.guides import GUIDES
from utils.guides.guidance import Guidance
from utils.guides.text import TextEncoder
from utils.opencv import cv2
from utils.results.evaluate import Evaluator, average_all, fuse_batch, sources_8bit
from utils.results.table import PICTURE_PAIRS, arrow, left_out_lines, write_results

OWN = "own text"
TILES = 3  # pictures beside each other in text_study.png
NOTES = (
    "mean, 99 %: how far a pixel is from the result with its own text, in levels of 255; PSNR: between the two, in dB",
    "p: Wilcoxon signed-rank test of a metric against own text over the images, Holm-corrected for all p of the table",
)


def text_study(
    model: FusionNetwork,
    dataset: PairDataset,
    set_name: str,
    guidances: Mapping[str, Guidance],
    encoder: TextEncoder,
    sentence: str,
    config: Config,
    device: torch.device,
    folder: Path,
) -> None:
    """Fuse every pair with its own text and with others; print a table, and write what was measured.

    The others are those of `variants` and, for all pairs, the empty text, the network's default text if it has one,
    and one sentence. Only the text changes; what else guides the network stays that of the pair.

    Args:
        model: a network that reads text.
        dataset: whole pairs with their own text, the set `set_name`; two at least.
        guidances: of `open_guides` for the set; the default text is that of the text's record.
        encoder: that of the set's text.
        sentence: the paragraph of A and of B in "the sentence".
        folder: gets metrics.csv, table.tex and table.md with the metrics, text_study.png, and metrics.json with all:
            "change" and "change_per_image" as in `change_from` ("change" has the means over the images; that of PSNR
            is over those whose results differ, null if none does), "equal" {label: {"PSNR": images whose results are
            equal}} and "p" as in `p_values`.
    """
    empty, said = map(torch.from_numpy, encoder.encode_pairs([("", ""), (sentence, sentence)]))
    record = guidances["text"].record
    default = {"default text": record.default} if record and record.default is not None else {}
    for_all = {"empty text": empty, **default, "the sentence": said}
    evaluators: dict[str, Evaluator] = {}
    changes: dict[str, dict[str, dict[str, float]]] = {}
    shown: list[tuple[float, str, dict[str, np.ndarray]]] = []  # the pairs that change most
    pairs = zip(DataLoader(dataset, batch_size=1, collate_fn=collate), variants(dataset, config.seed))
    for batch, texts in tqdm(pairs, total=len(dataset), desc="text study", unit="pair"):
        name, sources, fused = batch["name"][0], sources_8bit(batch), {}
        for label, text in (texts | for_all).items():
            batch |= GUIDES["text"].collate([text])
            fused[label] = fuse_batch([model], batch, device, guidances)[0, 0]
            evaluator = evaluators.setdefault(label, Evaluator(config.test.metrics, device))
            evaluator.add(name, to_8bit(fused[label], config.test.stretch), *sources)
        own = fused.pop(OWN)
        for label, other in fused.items():
            changes.setdefault(label, {})[name] = change_from(own, other)
        maps = {label: 255 * np.abs(other - own) for label, other in fused.items()}
        shown.append((float(np.mean([levels.mean() for levels in maps.values()])), name, {OWN: own} | maps))
        shown = sorted(shown, key=lambda row: -row[0])[:PICTURE_PAIRS]

    per_image = {label: evaluator.results() for label, evaluator in evaluators.items()}
    (means, left_out), (change, equal) = average_all(per_image), average_all(changes)
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
        "equal": {label: images for label, images in equal.items() if images},
        "p": p_values(per_image),
        "change_per_image": changes,
    }
    write_results(folder, summary, per_image)
    write_image(folder / "text_study.png", stack_rows([draw_maps(name, maps) for _, name, maps in shown]))
    print(f"\nthe text study on {len(dataset)} pairs of {set_name}; the sentence: {sentence}\n")
    print("\n".join([study_table(summary), *NOTES, *left_out_lines(left_out)]))


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
        "mean" and "99 %": mean and 99th percentile over the pixels of |other - own|, in levels of 255. "PSNR": of the
        one against the other with a peak of 1, in dB; inf if they are equal.
    """
    difference = 255 * np.abs(other.astype(np.float64) - own)
    return {
        "mean": float(difference.mean()),
        "99 %": float(np.percentile(difference, 99)),
        "PSNR": psnr(other, own),
    }


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR of two images with a peak of 1, dB; inf if they are equal."""
    error = float(np.square(x.astype(np.float64) - y).mean())
    return -10 * math.log10(error) if error else math.inf


def p_values(per_image: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Whether a metric differs from that with own text: p of a two-sided Wilcoxon signed-rank test over the images.

    All p together are corrected by Holm's method: if no text changed any metric, one or more of them would be below
    0.05 in at most 5 % of such studies. A small p says that a change has a direction, not that it is large. Images
    where the metric does not change (by 1e-9), or is undefined, do not count; p is 1 if none is left. n images cannot
    give less than 2 ** (1 - n) times the number of tests: ten or fewer show nothing.

    Args:
        per_image: {label: {image: {metric: value}}}, with that of own text.

    Returns:
        {label: {metric: p}} for all labels but that.
    """
    own, found = per_image[OWN], {}
    for label, images in per_image.items():
        for metric in next(iter(images.values())) if label != OWN else ():
            differences = np.array([row[metric] - own[name][metric] for name, row in images.items()])
            differences = differences[np.isfinite(differences) & (np.abs(differences) > 1e-9)]
            found[label, metric] = float(wilcoxon(differences).pvalue) if len(differences) else 1.0
    corrected: dict[str, dict[str, float]] = {label: {} for label, _ in found}
    least = 0.0
    for rank, (label, metric) in enumerate(sorted(found, key=found.get)):
        least = min(1.0, max(least, found[label, metric] * (len(found) - rank)))
        corrected[label][metric] = least
    return corrected


def study_table(summary: dict) -> str:
    """Means of the metrics for each text, under them the p of their differences, beside them how far pixels change.

    Args:
        summary: with "metrics", "mean", "p" and "change" as `text_study` writes them.
    """

    def line(label: str, cells: list[str], changes: list[str] = ()) -> str:
        return f"{label:<16}{''.join(f'{cell:>9}' for cell in cells)} |{''.join(f'{c:>9}' for c in changes)}".rstrip(
            " |"
        )

    metrics = summary["metrics"]
    lines = [line("", [name + arrow(name) for name in metrics], ["mean", "99 %", "PSNR"])]
    for label, means in summary["mean"].items():
        change = summary["change"].get(label)
        psnr = f"{change['PSNR']:.1f}" if change and math.isfinite(change["PSNR"]) else "equal"
        beside = [f"{change['mean']:.3g}", f"{change['99 %']:.3g}", psnr] if change else []
        lines.append(line(label, [f"{means[metric]:.4f}" for metric in metrics], beside))
        if change:
            p = summary["p"][label]
            lines.append(line("  p", [f"{p[metric]:.3f}" if p[metric] >= 0.001 else "<0.001" for metric in metrics]))
    return "\n".join(lines)


def draw_maps(name: str, maps: dict[str, np.ndarray]) -> np.ndarray:
    """The result with its own text and, in colours, how far the others are from it, in lines of TILES with a bar.

    The colours end at the 99.9th percentile of the strongest change, so that a few pixels do not darken all others.
    """
    changes = {label: change for label, change in maps.items() if label != OWN}
    top = max(1e-6, *(float(np.percentile(change, 99.9)) for change in changes.values()))
    height, width = maps[OWN].shape
    tiles = {name: to_8bit(maps[OWN], "clamp")}
    for label, change in changes.items():
        tiles[f"change: {label}"] = cv2.applyColorMap(to_8bit(change / top, "clamp"), cv2.COLORMAP_TURBO)
    while len(tiles) % TILES:
        tiles[" " * len(tiles)] = np.full((height, width), 255, np.uint8)
    bar = np.repeat(np.linspace(255, 0, height).astype(np.uint8)[:, None], 70, axis=1)
    bar = cv2.applyColorMap(bar, cv2.COLORMAP_TURBO)
    bar[:, 14:] = 255
    for text, y in ((f"{top:.3g}+", 12), (f"{top / 2:.3g}", height // 2 + 4), ("0", height - 3)):
        cv2.putText(bar, text, (18, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    labels, images = list(tiles), list(tiles.values())
    starts = range(0, len(tiles), TILES)
    return np.vstack([side_by_side([*images[i : i + TILES], bar], [*labels[i : i + TILES], "levels"]) for i in starts])
