"""Fuse a whole set, measure the results and save the images; with torchrun the processes share the pairs."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from net import FusionNetwork
from utils import distributed
from utils.config import Test
from utils.data.images import colorize, side_by_side, to_8bit, write_image
from utils.data.pairs import PairDataset
from utils.files import atomic_folder
from utils.guides.guidance import Guidance
from utils.results.evaluate import Evaluator, fuse_dataset, sources_8bit
from utils.results.report import Report
from utils.results.table import PICTURE_PAIRS


@contextmanager
def shared_folder(folder: Path, outdated: list[str]) -> Iterator[Path]:
    """`atomic_folder` for all processes: the first one makes it, and moves it when all have ended the block."""
    with atomic_folder(folder, outdated) if distributed.place()[0] == 0 else nullcontext() as staged:
        yield distributed.gather(staged)[0]
        distributed.gather(None)


def fuse_set(
    networks: dict[str, FusionNetwork],
    name: str,
    dataset: PairDataset,
    guidances: Mapping[str, Guidance],
    options: Test,
    device: torch.device,
    folder: Path,
    report: Report | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], list[np.ndarray]]:
    """Fuse one set and write the results of the first network, <folder>/Gray/<name>.png and RGB/<name>.png.

    Args:
        networks: by label, the network that is tested, and others to compare it with.
        dataset: whole pairs with chroma, the set `name`.
        guidances: of `open_guides` for this set.
        report: gets the images, too.

    Returns:
        {label: {image: {metric: value}}}, in the order of the set, and where there are several networks pictures of
        the first PICTURE_PAIRS pairs, (H, W, 3) BGR uint8; the same in every process.

    Raises:
        InputError: a damaged sample, NaN, not enough memory, or an image that cannot be written.
    """
    evaluators = {label: Evaluator(options.metrics, device) for label in networks}
    first, *others = networks
    pictures: dict[int, np.ndarray] = {}

    def save(index: int, image: str, sources: tuple, fused: list[np.ndarray], chroma: np.ndarray) -> None:
        color = colorize(fused[0], chroma)
        write_image(folder / "Gray" / f"{image}.png", fused[0])
        write_image(folder / "RGB" / f"{image}.png", color)
        shown = [*sources, fused[0], color, *fused[1:]]
        if others and index < PICTURE_PAIRS:
            pictures[index] = side_by_side(shown, [f"A of {image}", "B", first, "in colour", *others])
        if report:
            report.add_images(index, shown)

    rank, ranks = distributed.place()
    share = range(rank, len(dataset), ranks)
    pairs = fuse_dataset([*networks.values()], dataset, device, guidances, options.num_workers, (rank, ranks))
    bar = tqdm(zip(pairs, share), total=len(share), desc=name, unit="pair", disable=rank > 0)
    written = []
    with ThreadPoolExecutor() as pool:  # drawing and encoding need no lock of Python
        for (batch, outputs), index in bar:
            image, sources = batch["name"][0], sources_8bit(batch)
            fused = [to_8bit(output, options.stretch) for output in outputs]
            written.append(pool.submit(save, index, image, sources, fused, batch["chroma"][0].numpy()))
            for evaluator, result in zip(evaluators.values(), fused):
                evaluator.add(image, result, *sources)
    for each in written:
        each.result()  # raises what went wrong there
    measured = {label: evaluator.results for label, evaluator in evaluators.items()}

    parts = distributed.gather((measured, pictures))
    pictures = {index: picture for _, drawn in parts for index, picture in drawn.items()}
    per_image = {}
    for label in networks:
        rows = {image: row for found, _ in parts for image, row in found[label].items()}
        per_image[label] = {image: rows[image] for _, image in dataset.samples}
    return per_image, [pictures[index] for index in sorted(pictures)]
