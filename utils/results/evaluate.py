"""From a network and a set of pairs to fused 8-bit images and their metrics."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from net.registry import INPUTS
from utils.data.images import to_8bit
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError, enough_memory, nearest
from utils.guides.clip import ClipEncoder
from utils.metrics import METRICS


def check_metrics(names: Iterable[str]) -> None:
    """InputError if a name is not in METRICS."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'; {nearest(name, METRICS)}")


def check_inputs(model: nn.Module, dataset: PairDataset) -> None:
    """InputError if the network takes features of another width than the set has."""
    for kind, dim in dataset.dims.items():
        wanted = model.config.get(f"{kind}_dim", dim)
        if wanted != dim:
            raise InputError(
                f"{dataset.samples[0][0]} has {kind} {dim} wide and the network takes {wanted} (net.{kind}_dim); "
                f"make the H5 with the encoder the network is for, or change net.{kind}_dim and train"
            )


GPU_PIXELS = 8 * 480 * 640  # eight images of a usual size


def to_device(batch: dict, device: torch.device, clip: ClipEncoder | None = None) -> dict:
    """A batch of `collate` with what networks take moved to `device`, and CLIP vectors by `clip` if it has none."""
    moved = [key for key in ("image_a", "image_b", *INPUTS) if key in batch]
    batch = batch | {key: batch[key].to(device, non_blocking=True) for key in moved}
    if clip and "clip" not in batch:
        batch["clip"] = clip(batch["image_a"], batch["image_b"])
    return batch


def split(batch: dict, parts: int) -> list[dict]:
    """A batch in `parts` batches of equally many pairs."""
    size = len(batch["name"]) // parts
    return [{key: value[i * size : (i + 1) * size] for key, value in batch.items()} for i in range(parts)]


def fuse(model: nn.Module, batch: dict) -> Tensor:
    """Run a network on a batch of `to_device`: fused images (N, 1, H, W), float32 in [0, 1]."""
    return model(*(batch[key] for key in ("image_a", "image_b", *model.inputs)))


class Evaluator:
    """Metrics of 8-bit images, computed in float64: in batches of one size on a GPU, one by one on a CPU.

    Args:
        metrics: names in METRICS.
        device: where to compute.
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


def fuse_set(
    models: list[nn.Module],
    dataset: PairDataset,
    device: torch.device,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
    clip: ClipEncoder | None = None,
) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """Whole images one by one: (batch of one pair, the fused (H, W) float32 in [0, 1] of each network).

    `share` = (rank, ranks) takes every ranks-th pair, for several processes; `clip`
    is what `open_clip` gave.

    Raises:
        InputError: text of the wrong width, a damaged sample, a network that returns NaN.
    """
    for model in models:
        check_inputs(model, dataset)
    part = Subset(dataset, range(share[0], len(dataset), share[1]))
    for batch in DataLoader(part, batch_size=1, num_workers=num_workers, collate_fn=collate):
        yield batch, fuse_one(models, batch, device, clip)


@torch.inference_mode()
def fuse_one(
    models: list[nn.Module], batch: dict, device: torch.device, clip: ClipEncoder | None = None
) -> list[np.ndarray]:
    """The fused image (H, W) float32 in [0, 1] of each network, of a batch of one pair.

    Raises:
        InputError: a network returns NaN.
    """
    batch = to_device(batch, device, clip)
    height, width = batch["image_a"].shape[-2:]
    what = f"fuse '{batch['name'][0]}' ({height} x {width} pixels)"
    with enough_memory(what, "limit it with the rows to compute at a time, e.g. test.tile=32, or use device=cpu"):
        fused = [fuse(model, batch)[0, 0].cpu().numpy() for model in models]
    if not np.isfinite(fused).all():
        raise InputError(f"the network returned NaN for '{batch['name'][0]}'; its weights are not usable")
    return fused
