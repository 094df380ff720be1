"""Fuse a whole set, measure the results and save the images; with torchrun the processes share the pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from net import FusionNetwork
from utils import distributed
from utils.config import Config
from utils.data.images import background, colorize, side_by_side, to_8bit, write_image
from utils.data.pairs import PairDataset
from utils.guides.guidance import Guidance
from utils.results.evaluate import Evaluator, fuse_dataset, sources_8bit
from utils.results.report import Report
from utils.results.table import PICTURE_PAIRS


def fuse_set(
    models: list[FusionNetwork],
    labels: list[str],
    name: str,
    dataset: PairDataset,
    guidances: Mapping[str, Guidance],
    instructions: Sequence[Tensor],
    config: Config,
    device: torch.device,
    folder: Path,
    report: Report | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], list[np.ndarray]]:
    """Fuse one set, and write <folder>/Gray/<name>.png and RGB/<name>.png; under one instruction what it asks for.

    Args:
        models: the network that is tested, and others to compare it with.
        labels: of the models, and then of the instructions.
        dataset: whole pairs with chroma, the set `name`.
        guidances, instructions: as for `utils.results.evaluate.fuse_dataset`.
        report: gets the images, too.

    Returns:
        {label: {image: {metric: value}}}, in the order of the set, and where there are several labels pictures of the
        first PICTURE_PAIRS pairs; the same on every rank.

    Raises:
        InputError: a damaged sample, NaN, not enough memory, or what cannot be written, on any rank.
    """
    evaluators = [Evaluator(config.test.metrics, device) for _ in labels]
    columns = ["A", "B", labels[0], "in colour", *labels[1:]]
    drawn: dict[int, np.ndarray] = {}
    if report:
        report.start_set(name, columns)

    def save(index: int, image: str, sources: tuple, fused: list[np.ndarray], chroma: np.ndarray) -> None:
        saved = fused[-1] if len(instructions) == 1 else fused[0]
        color = colorize(saved, chroma)
        write_image(folder / "Gray" / f"{image}.png", saved)
        write_image(folder / "RGB" / f"{image}.png", color)
        shown = [*sources, fused[0], color, *fused[1:]]
        if len(labels) > 1 and index < PICTURE_PAIRS:
            drawn[index] = side_by_side(shown, columns)
        if report:
            report.add_images(index, shown)

    rank, ranks = distributed.place()
    share = range(rank, len(dataset), ranks)
    pairs = fuse_dataset(
        models, dataset, device, guidances, config.test.num_workers, (rank, ranks), instructions=instructions
    )
    bar = tqdm(zip(pairs, share), total=len(share), desc=name, unit="pair", disable=rank > 0)
    with background() as write:
        for (batch, outputs), index in bar:
            distributed.listen()
            image, sources = batch["name"][0], sources_8bit(batch)
            fused = [to_8bit(output, config.test.stretch) for output in outputs]
            write(save, index, image, sources, fused, batch["chroma"][0].numpy())
            for evaluator, result in zip(evaluators, fused):
                evaluator.add(image, result, *sources)
        measured = [evaluator.results() for evaluator in evaluators]

    parts = distributed.exchange((measured, drawn))
    per_image = {}
    for k, label in enumerate(labels):
        rows = {image: row for of_rank, _ in parts for image, row in of_rank[k].items()}
        per_image[label] = {image: rows[image] for _, image in dataset.samples}
    pictures = {index: picture for _, of_rank in parts for index, picture in of_rank.items()}
    return per_image, [pictures[index] for index in sorted(pictures)]
