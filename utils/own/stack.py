"""More than two images of one scene, exposures or focuses, as one.

Each image is fused with its neighbour in brightness, the brighter one as A; a Laplacian pyramid merges the results. So
the order in which the images are given does not matter, and each passes the network once: fused one after the other,
what the network changes would add up.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from net.baselines import expand, reduce, window_mean

POWERS = {"MEF": 2, "MFF": 8}  # by task, of contrast in a weight: exposures are mixed, the image in focus is chosen
LEVELS, WINDOW = 4, 7  # of the pyramid; pixels a side of a level, over which contrast is averaged
LEAST = 1e-4  # of contrast, for flat parts: there all count alike


def fuse_stack(
    fuse: Callable[[np.ndarray, np.ndarray], np.ndarray], images: Sequence[np.ndarray], task: str
) -> np.ndarray:
    """Images (H, W) float32 in [0, 1], two or more, of a task in POWERS as one; `fuse` does so with two, A and B."""
    ordered = sorted(images, key=np.mean, reverse=True)
    fused = [torch.from_numpy(fuse(a, b)) for a, b in pairwise(ordered)]
    return merge(torch.stack(fused)[:, None], POWERS[task])[0, 0].numpy()


@torch.inference_mode()
def merge(images: Tensor, power: int) -> Tensor:
    """Images (N, 1, H, W) in [0, 1] as one (1, 1, H, W), by Laplacian pyramids (Burt and Adelson 1983).

    Contrast is the mean magnitude of detail in a window. On each level an image counts by a `power` of its contrast; in
    the base, by that of the sum over all levels.
    """
    base, details = images, []
    while len(details) < LEVELS and min(base.shape[-2:]) >= 16:
        low = reduce(base)
        details.append(base - expand(low, base))
        base = low
    contrasts = [window_mean(detail.abs(), WINDOW) for detail in details]
    fused = weigh(base, sum(F.interpolate(c, size=base.shape[-2:], mode="area") for c in contrasts) + 0 * base, power)
    for detail, contrast in zip(reversed(details), reversed(contrasts)):
        fused = weigh(detail, contrast, power) + expand(fused, detail)
    return fused.clamp(0, 1)


def weigh(images: Tensor, contrast: Tensor, power: int) -> Tensor:
    """The mean of (N, 1, H, W) by a power of a contrast of each pixel: (1, 1, H, W)."""
    contrast = contrast + LEAST
    weight = (contrast / contrast.amax(dim=0, keepdim=True)) ** power
    return (weight * images).sum(dim=0, keepdim=True) / weight.sum(dim=0, keepdim=True)
