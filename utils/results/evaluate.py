"""From a network and a set of pairs to fused 8-bit images and their metrics."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
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


GPU_PIXELS = 8 * 480 * 640  # eight images of a usual size


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
    """Metrics of 8-bit images, computed in float64: in batches of one size on a GPU, one by one on a CPU.

    Args:
        metrics: names in METRICS.
        device: where to compute.

    `add` and `results` raise InputError if there is not enough memory.
    """

    def __init__(self, metrics: list[str], device: torch.device):
        check_metrics(metrics)
        self.metrics, self.device = metrics, device
        self.pixels = 0 if device.type == "cpu" else GPU_PIXELS  # of a batch at most, if it is not one image
        self._waiting: dict[tuple[int, int], list] = {}
        self._results: dict[str, dict[str, float]] = {}

    def add(self, name: str, fused: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> None:
        """One image: (H, W) uint8 each."""
        self._results[name] = {}  # keeps the order of the calls
        waiting = self._waiting.setdefault(fused.shape, [])
        waiting.append((name, fused, image_a, image_b))
        if (len(waiting) + 1) * fused.size > self.pixels:
            self._compute(self._waiting.pop(fused.shape))

    def results(self) -> dict[str, dict[str, float]]:
        """{image name: {metric: value}} of all images so far."""
        while self._waiting:
            self._compute(self._waiting.popitem()[1])
        return self._results

    @torch.inference_mode()
    def _compute(self, images: list) -> None:
        names, *stacks = zip(*images)
        height, width = stacks[0][0].shape
        what = f"compute the metrics of {len(names)} images of {height} x {width} pixels"
        with enough_memory(what, "leave some out of test.metrics, or use device=cpu, which takes one image at a time"):
            tensors = [torch.from_numpy(np.stack(stack)[:, None]).to(self.device).double() for stack in stacks]
            values = torch.stack([METRICS[metric](*tensors) for metric in self.metrics], dim=1).tolist()
        for name, row in zip(names, values):
            self._results[name] = dict(zip(self.metrics, row))


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
    averages = {label: average(results) for label, results in per_image.items()}
    return {label: means for label, (means, _) in averages.items()}, {
        label: out for label, (_, out) in averages.items()
    }


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
    instructions: Sequence[Tensor] = (),
) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """Whole images one by one: (batch of one pair, the fused (H, W) float32 in [0, 1] of each network).

    Args:
        guidances: of `open_guides` for this set.
        share: (rank, ranks) takes every ranks-th pair, for several processes.
        instructions: as for `fuse_batch`.

    Raises:
        InputError: a damaged sample, a network that returns NaN.
    """
    part = Subset(dataset, range(share[0], len(dataset), share[1]))
    pinned = device.type == "cuda"
    for batch in DataLoader(part, batch_size=1, num_workers=num_workers, collate_fn=collate, pin_memory=pinned):
        yield batch, list(fuse_batch(models, batch, device, guidances, instructions)[:, 0])


@torch.inference_mode()
def fuse_batch(
    models: list[FusionNetwork],
    batch: dict,
    device: torch.device,
    guidances: Mapping[str, Guidance],
    instructions: Sequence[Tensor] = (),
) -> np.ndarray:
    """The fused images (networks, N, H, W) float32 in [0, 1] of a batch of N pairs.

    Args:
        instructions: features (L, dim); the first network's results under each come after those of the networks.

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
        calls = [model.forward_args(batch) for model in models]
        asked = [each.to(device).expand(count, -1, -1) for each in instructions]
        calls += [models[0].forward_args(batch | {"instruction": each}) for each in asked]
        networks = [*models, *[models[0]] * len(instructions)]
        fused = torch.stack([model(*call)[:, 0] for model, call in zip(networks, calls)])
        fused = fused.numpy(force=True)  # in one transfer
    if not np.isfinite(fused).all():
        raise InputError(f"the network returned NaN for '{names}'; its weights are not usable")
    return fused
