"""From a network and a set of pairs to fused 8-bit images and their metrics."""

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from net import FusionNetwork
from utils.data.images import to_8bit
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError, enough_memory, nearest
from utils.guides.guidance import Guidance
from utils.metrics import INFRARED_ONLY, METRICS


def check_metrics(names: Iterable[str]) -> None:
    """InputError if a name is not in METRICS."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'; {nearest(name, METRICS)}")


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


class Evaluator:
    """Metrics of 8-bit images, computed one by one in float64.

    Args:
        metrics: names in METRICS.
        device: where to compute.

    Attributes:
        results: {image name: {metric: value}} of all images so far.
    """

    def __init__(self, metrics: list[str], device: torch.device):
        check_metrics(metrics)
        self.metrics, self.device = metrics, device
        self.results: dict[str, dict[str, float]] = {}

    @torch.inference_mode()
    def add(self, name: str, *images: np.ndarray) -> None:
        """Measure one image: F, A and B, (H, W) uint8 each; InputError if there is not enough memory."""
        task = "compute the metrics of {} x {} pixels".format(*images[0].shape)
        with enough_memory(task, "leave some out of test.metrics, or use device=cpu"):
            tensors = [torch.from_numpy(image)[None, None].to(self.device).double() for image in images]
            values = torch.cat([METRICS[metric](*tensors) for metric in self.metrics]).tolist()
        self.results[name] = dict(zip(self.metrics, values))


def average(results: dict[str, dict[str, float]]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Means over the images that have a value, and by metric the names of those left out (NaN or inf)."""
    means, left_out = {}, {}
    for metric in next(iter(results.values())):
        values = {name: row[metric] for name, row in results.items()}
        finite = [value for value in values.values() if math.isfinite(value)]
        means[metric] = sum(finite) / len(finite) if finite else math.nan
        if len(finite) < len(values):
            left_out[metric] = [name for name, value in values.items() if not math.isfinite(value)]
    return means, left_out


def average_all(per_image: dict[str, dict[str, dict[str, float]]]) -> tuple[dict[str, dict], dict[str, dict]]:
    """`average` of every network: {label: means} and {label: images left out}."""
    averages = [average(results) for results in per_image.values()]
    means, left_out = zip(*averages)
    return dict(zip(per_image, means)), dict(zip(per_image, left_out))


def sources_8bit(batch: dict) -> tuple[np.ndarray, np.ndarray]:
    """Both sources of a batch of one pair as (H, W) uint8, as the metrics take them."""
    return tuple(to_8bit(batch[key][0, 0].numpy(), "clamp") for key in ("image_a", "image_b"))


def fuse_dataset(
    models: list[FusionNetwork],
    dataset: PairDataset,
    device: torch.device,
    guidances: Mapping[str, Guidance],
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """Whole images one by one: (batch of one pair, the fused (H, W) float32 in [0, 1] of each network).

    Args:
        guidances: of `open_guides` for this set.
        share: (rank, ranks) takes every ranks-th pair, for several processes.

    Raises:
        InputError: a damaged sample, a network that returns NaN.
    """
    part = Subset(dataset, range(share[0], len(dataset), share[1]))
    pinned = device.type == "cuda"
    for batch in DataLoader(part, batch_size=1, num_workers=num_workers, collate_fn=collate, pin_memory=pinned):
        yield batch, list(fuse_batch(models, batch, device, guidances)[:, 0])


@torch.inference_mode()
def fuse_batch(
    models: list[FusionNetwork], batch: dict, device: torch.device, guidances: Mapping[str, Guidance]
) -> np.ndarray:
    """Fuse N pairs with every network.

    Args:
        batch: of `collate`.
        guidances: of `open_guides`.

    Returns:
        (networks, N, H, W) float32 in [0, 1].

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
        fused = fused.numpy(force=True)  # in one transfer
    if not np.isfinite(fused).all():
        raise InputError(f"the network returned NaN for '{names}'; its weights are not usable")
    return fused
