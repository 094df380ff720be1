"""Does the text matter? The same pairs with other texts: metrics, and pictures of where the result changes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from net import FusionNetwork
from utils.config import Config
from utils.data.images import side_by_side, stack_rows, to_8bit, write_image
from utils.data.pairs import PairDataset, collate
from utils.guides import GUIDES
from utils.guides.guide import Guidance
from utils.opencv import cv2
from utils.results.evaluate import Evaluator, average_all, fuse_pair, sources_8bit
from utils.results.table import PICTURE_PAIRS, format_table, write_results


def text_study(
    model: FusionNetwork,
    dataset: PairDataset,
    set_name: str,
    guidances: Mapping[str, Guidance],
    sentence: str,
    feature: Tensor,
    config: Config,
    device: torch.device,
    folder: Path,
) -> None:
    """Fuse every pair with its own text, that of another pair, the default text and one sentence; print and write.

    Args:
        model: a network that reads text.
        dataset: whole pairs with their own text, the set `set_name`.
        guidances: of `open_guides` for the set; the default text is that of the text's record.
        sentence: what `feature` says, for the table.
        feature: text feature (L, dim) of the sentence.
        folder: gets metrics.csv, metrics.json, table.tex, table.md and text_study.png.
    """
    evaluators: dict[str, Evaluator] = {}
    changes: dict[str, list[float]] = {}
    rows: list[tuple[float, str, dict[str, np.ndarray]]] = []
    record = guidances["text"].record
    texts_of_pairs = variants(dataset, record.default if record else None, feature, config.seed)
    pairs = zip(DataLoader(dataset, batch_size=1, collate_fn=collate), texts_of_pairs)
    for batch, texts in tqdm(pairs, total=len(dataset), desc="text study", unit="pair"):
        name, sources, fused = batch["name"][0], sources_8bit(batch), {}
        for label, text in texts.items():
            batch |= GUIDES["text"].collate([text])
            (fused[label],) = fuse_pair([model], batch, device, guidances)
            evaluator = evaluators.setdefault(label, Evaluator(config.test.metrics, device))
            evaluator.add(name, to_8bit(fused[label], config.test.stretch), *sources)
        own = fused.pop("own text")
        maps = {label: 255 * np.abs(other - own) for label, other in fused.items()}  # in 8-bit levels
        for label, change in maps.items():
            changes.setdefault(label, []).append(float(change.mean()))
        rows.append((float(np.mean([change.mean() for change in maps.values()])), name, {"own text": own} | maps))
        rows = sorted(rows, key=lambda row: -row[0])[:PICTURE_PAIRS]

    per_image = {label: evaluator.results() for label, evaluator in evaluators.items()}
    means, left_out = average_all(per_image)
    levels = {label: float(np.mean(values)) for label, values in changes.items()}
    summary = {
        "ckpt": config.ckpt,
        "sentence": sentence,
        "stretch": config.test.stretch,
        "metrics": config.test.metrics,
        "mean": means,
        "dataset": f"{set_name}, text study",
        "published": {},
        "left_out": left_out,
        "mean_change_in_8bit_levels": levels,
    }
    write_results(folder, summary, per_image)
    write_image(folder / "text_study.png", stack_rows([draw_row(name, maps) for _, name, maps in rows]))
    print("\n" + format_table(f"the text study on {set_name}", config.test.metrics, means))
    for label, level in levels.items():
        print(f"{label}: a pixel changes by {level:.3f} of 255 levels on average")
    print(f"the sentence: {sentence}")


def variants(dataset: PairDataset, default: Tensor | None, feature: Tensor, seed: int) -> Iterator[dict[str, Tensor]]:
    """The texts of each pair in turn, by label."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    other = dict(zip(order, np.roll(order, 1)))  # a cycle through all pairs: none gets its own
    for i in range(len(dataset)):
        texts = {"own text": dataset.feature("text", i), "another's": dataset.feature("text", other[i])}
        if default is not None:
            texts["default text"] = default
        yield texts | {"the sentence": feature}


def draw_row(name: str, maps: dict[str, np.ndarray]) -> np.ndarray:
    """The result with its own text, and in colours how far the others are from it, with a colour bar."""
    changes = {label: change for label, change in maps.items() if label != "own text"}
    top = max(1e-6, *(float(change.max()) for change in changes.values()))
    colours = [
        cv2.applyColorMap((change / top * 255).astype(np.uint8), cv2.COLORMAP_TURBO) for change in changes.values()
    ]
    height = maps["own text"].shape[0]
    bar = np.repeat(np.linspace(255, 0, height).astype(np.uint8)[:, None], 70, axis=1)
    bar = cv2.applyColorMap(bar, cv2.COLORMAP_TURBO)
    bar[:, 14:] = 255
    for text, y in ((f"{top:.3g}", 12), (f"{top / 2:.3g}", height // 2 + 4), ("0", height - 3)):
        cv2.putText(bar, text, (18, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    images = [to_8bit(maps["own text"], "clamp"), *colours, bar]
    return side_by_side(images, [name, *(f"change: {label}" for label in changes), "levels"])
