"""From a network and a set of pairs to fused 8-bit images and their metrics; torchrun's processes share the pairs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from net import FusionNetwork
from utils import distributed
from utils.config import Test
from utils.data.images import colorize, shrunk, side_by_side, to_8bit, write_image
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError, enough_memory
from utils.files import atomic_folder
from utils.guides.guidance import Guidance
from utils.metrics import INFRARED_ONLY, measure_all
from utils.process import worker_count
from utils.results.methods import FusedFolder
from utils.results.statistics import mean
from utils.results.table import PICTURE_PAIRS


def applicable(metrics: list[str], tasks: Mapping[str, str]) -> tuple[list[str], str]:
    """The metrics that say something of some sets, and a note on those that do not, empty if all do.

    Args:
        metrics: names in METRICS.
        tasks: by the name of each set its task; empty where it is not known, and every metric is taken.
    """
    others = [name for name, task in tasks.items() if task not in ("", "IVF")]
    left_out = [metric for metric in metrics if others and metric in INFRARED_ONLY]
    if not left_out:
        return metrics, ""
    are = "are" if len(left_out) > 1 else "is"
    note = f"{' and '.join(left_out)} {are} for an infrared source A and left out of {' and '.join(others)}"
    return [metric for metric in metrics if metric not in left_out], note


def average(results: dict[str, dict[str, float]]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Means over the images that have a value, and by metric the names of those left out (NaN or inf)."""
    means, left_out = {}, {}
    for metric in next(iter(results.values())):
        values = {name: row[metric] for name, row in results.items()}
        means[metric] = mean(np.array([*values.values()]))
        if undefined := [name for name, value in values.items() if not math.isfinite(value)]:
            left_out[metric] = undefined
    return means, left_out


def average_all(per_image: dict[str, dict[str, dict[str, float]]]) -> tuple[dict[str, dict], dict[str, dict]]:
    """`average` of every network: {label: means} and {label: images left out}."""
    means, left_out = zip(*map(average, per_image.values()))
    return dict(zip(per_image, means)), dict(zip(per_image, left_out))


def image_8bit(batch: dict, key: str) -> np.ndarray:
    """An image of a batch of one pair, e.g. image_a, as (H, W) uint8, as the metrics take it."""
    return to_8bit(batch[key][0, 0].numpy(), "clamp")


def sources_8bit(batch: dict) -> tuple[np.ndarray, np.ndarray]:
    """Both sources of a batch of one pair, see `image_8bit`."""
    return image_8bit(batch, "image_a"), image_8bit(batch, "image_b")


def to_device(batch: dict, device: torch.device, guidances: Mapping[str, Guidance]) -> dict:
    """A batch of `collate` on `device`, with the features that its guides compute where it has none.

    Chroma stays where it is: no network takes it.
    """
    on_device = {
        key: value.to(device, non_blocking=True)
        for key, value in batch.items()
        if torch.is_tensor(value) and key != "chroma"
    }
    for name, guidance in guidances.items():
        if guidance.encoder and name not in batch:
            on_device[name] = guidance.encoder(on_device["image_a"], on_device["image_b"])
    return batch | on_device


def split_batch(batch: dict, parts: int) -> list[dict]:
    """A batch in `parts` batches of equally many pairs."""
    size = len(batch["name"]) // parts
    return [{key: value[i * size : (i + 1) * size] for key, value in batch.items()} for i in range(parts)]


@torch.inference_mode()
def fuse_batch(
    models: list[FusionNetwork], batch: dict, device: torch.device, guidances: Mapping[str, Guidance]
) -> np.ndarray:
    """Fuse N pairs, a batch of `collate`, with every network: (networks, N, H, W) float32 in [0, 1].

    Raises:
        InputError: a network returns NaN, or there is not enough memory.
    """
    batch = to_device(batch, device, guidances)
    count, _, height, width = batch["image_a"].shape
    names = batch["name"][0] if count == 1 else f"{batch['name'][0]} ... {batch['name'][-1]}"
    with enough_memory(
        f"fuse '{names}' ({height} x {width} pixels)",
        "limit it with the rows to compute at a time, e.g. test.tile=32, or use device=cpu",
    ):
        fused = torch.stack([model(*model.forward_args(batch))[:, 0] for model in models])
        fused = keep_flat(fused, batch["image_a"], batch["image_b"]).numpy(force=True)  # in one transfer
    if not np.isfinite(fused).all():
        raise InputError(f"the network returned NaN for '{names}'; its weights are not usable")
    return fused


def keep_flat(fused: torch.Tensor, image_a: torch.Tensor, image_b: torch.Tensor) -> torch.Tensor:
    """Results (networks, N, H, W) that are flat where both sources (N, 1, H, W) are: a stretch would show the rest.

    The level is that of both sources, black for two black ones, or else the mean of what the network gives.
    """
    level, other = (image[:, 0, :1, :1] for image in (image_a, image_b))
    flat = ((image_a[:, 0] == level) & (image_b[:, 0] == other)).flatten(1).all(dim=1)[:, None, None]
    mean = fused.mean(dim=(2, 3), keepdim=True)
    return torch.where(flat, torch.where(level == other, level.to(fused.dtype), mean), fused)


def fuse_dataset(
    models: list[FusionNetwork],
    dataset: PairDataset | Subset,
    device: torch.device,
    guidances: Mapping[str, Guidance],
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """Whole images one by one: (batch of one pair, the fused (H, W) float32 in [0, 1] of each network).

    With share=(rank, ranks) every ranks-th pair, from that of the rank on.
    """
    part = Subset(dataset, range(share[0], len(dataset), share[1]))
    options = {"pin_memory": device.type == "cuda", "generator": torch.Generator()}  # no random number of the process
    options["num_workers"] = worker_count(num_workers)
    for batch in DataLoader(part, batch_size=1, collate_fn=collate, **options):
        yield batch, list(fuse_batch(models, batch, device, guidances)[:, 0]) if models else []


@contextmanager
def shared_folder(folder: Path, outdated: list[str]) -> Iterator[Path]:
    """`atomic_folder` for all processes: the first one makes it, and moves it when all have ended the block."""
    with atomic_folder(folder, outdated) if distributed.place()[0] == 0 else nullcontext() as staged:
        yield distributed.gather(staged)[0]
        distributed.gather(None)


class Group(NamedTuple):
    """Networks that fuse a set together, by label: that of a checkpoint, or rules, or none."""

    networks: dict[str, FusionNetwork]
    dataset: PairDataset  # whole pairs
    guidances: Mapping[str, Guidance]  # of `open_guides` for it


def fuse_set(
    groups: Sequence[Group],
    folders: Sequence[FusedFolder],
    options: Test,
    device: torch.device,
    folder: Path,
    shows: Sequence[Callable[[int, str, dict[str, np.ndarray]], None]] = (),
    stretches: Sequence[str] = (),
) -> tuple[dict[str, dict[str, dict[str, dict[str, float]]]], list[np.ndarray]]:
    """Fuse one set and write the results of the first network, <folder>/Gray/<name>.png and RGB/<name>.png.

    Args:
        groups: the first one's dataset has chroma, and the map "truth" if the set has a truth; the last one has rules.
        folders: results of other methods; they come before the rules.
        folder: where to.
        shows: called for each pair with its place in the set, its name and, by label, A, B, the first result, that in
            colour, and the others.
        stretches: how else results become 8 bit, to measure them so, too.

    Returns:
        By stretch, the first that of `options`: {label: {image: {metric: value}}}, in the order of the set; and where
        there are several results pictures of the first PICTURE_PAIRS pairs, (H, W, 3) BGR uint8. The same in every
        process.

    Raises:
        InputError: a label given twice, a damaged sample or image, NaN, not enough memory, an image that cannot be
            written.
    """
    dataset, has_network = groups[0].dataset, bool(groups[0].networks)
    *tested, rules = groups
    labels = [label for group in tested for label in group.networks]
    labels += [*(method.label for method in folders), *rules.networks]
    taken = ["A", "B", "in colour", *labels]
    if twice := [label for label in labels if taken.count(label) > 1]:
        raise InputError(f"two rows or pictures are called {twice[0]}; give others NAME=... in --fused and --with")
    measured = {stretch: {label: {} for label in labels} for stretch in [options.stretch, *stretches]}
    pictures: dict[int, np.ndarray] = {}

    def save(index: int, image: str, sources: tuple, fused: list[np.ndarray], chroma: np.ndarray) -> None:
        color = colorize(fused[0], chroma)
        if has_network:
            write_image(folder / "Gray" / f"{image}.png", fused[0])
            write_image(folder / "RGB" / f"{image}.png", color)
        shown = dict(zip(["A", "B", labels[0], "in colour", *labels[1:]], [*sources, fused[0], color, *fused[1:]]))
        if len(labels) > 1 and index < PICTURE_PAIRS:
            pictures[index] = side_by_side([*map(shrunk, shown.values())], [f"A of {image}", *list(shown)[1:]])
        for show in shows:
            show(index, image, shown)

    rank, ranks = distributed.place()
    share, written = range(rank, len(dataset), ranks), []
    by_group = [
        fuse_dataset([*networks.values()], of_group, device, guidances, options.num_workers, (rank, ranks))
        for networks, of_group, guidances in groups
    ]
    bar = tqdm(zip(*by_group), desc=Path(dataset.path).stem, total=len(share), unit="pair", disable=rank > 0 or None)
    with ThreadPoolExecutor() as pool:  # drawing and encoding need no lock of Python
        for fused_by_groups, index in zip(bar, share):
            batch = fused_by_groups[0][0]
            image, sources = batch["name"][0], sources_8bit(batch)
            truth = image_8bit(batch, "truth") if "truth" in batch else None
            *outputs, of_rules = (of_group for _, of_group in fused_by_groups)
            read = [method.read(image, sources[0].shape) for method in folders]
            for stretch, per_image in measured.items():
                fused = [to_8bit(output, stretch) for output in chain(*outputs)]
                fused += [*read, *(to_8bit(output, stretch) for output in of_rules)]
                if stretch == options.stretch:
                    written.append(pool.submit(save, index, image, sources, fused, batch["chroma"][0].numpy()))
                for label, row in zip(labels, measure_all(fused, *sources, options.metrics, device, truth)):
                    per_image[label][image] = row
    for each in written:
        each.result()  # raises what went wrong there

    parts = distributed.gather((measured, pictures))
    pictures = {index: picture for _, drawn in parts for index, picture in drawn.items()}
    for stretch, per_image in measured.items():
        for label in labels:
            rows = {image: row for of_rank, _ in parts for image, row in of_rank[stretch][label].items()}
            per_image[label] = {image: rows[image] for _, image in dataset.samples}
    return measured, [pictures[index] for index in sorted(pictures)]
