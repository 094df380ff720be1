"""Filters that the losses and the metrics share, on maps (N, C, H, W) of any device and dtype; and gray levels."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED = 2**16  # so many pixels stay in the cache of a CPU


def gaussian_window(size: int, sigma: float) -> list[float]:
    """1-D Gaussian window of `size` samples, centred, `sigma` in samples: the weights, which add up to 1."""
    window = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [weight / sum(window) for weight in window]


def filter_windows(x: Tensor, window: list[float], step: int = 1) -> Tensor:
    """Weighted sums over whole windows only: y[i, j] = sum over k, l of w[k] w[l] x[i step + k, j step + l].

    One 1-D window serves both directions. It is computed as a sum of shifted views: on one channel that is
    several times faster than a convolution, copies no weights to the device, and is never rounded to TF32.

    Args:
        x: maps (N, C, H, W), any range.
        window: K weights.
        step: distance of two windows, pixels.

    Returns:
        Maps (N, C, (H - K) // step + 1, (W - K) // step + 1).

    Raises:
        ValueError: a map smaller than the window.
    """
    if min(x.shape[2:]) < len(window):
        raise ValueError(f"maps of {tuple(x.shape[2:])} pixels hold no whole window of {len(window)}")
    if x.device.type == "cpu" and x.numel() > CACHED and len(x) * x.shape[1] > 1:
        parts = x.flatten(0, 1)[:, None].split(max(1, CACHED // x[0, 0].numel()))
        return torch.cat([filter_windows(part, window, step) for part in parts]).squeeze(1).unflatten(0, x.shape[:2])
    for dim in (2, 3):
        extent = x.shape[dim] - len(window) + 1
        shifted = [x[(slice(None),) * dim + (slice(k, k + extent, step),)] for k in range(len(window))]
        x = shifted[0] * window[0]
        for view, weight in zip(shifted[1:], window[1:]):
            x.add_(view, alpha=weight)
    return x


Moments = tuple[Tensor, Tensor]  # means and variances


def local_moments(sources: Tensor, fused: Tensor, window: list[float]) -> tuple[Moments, Moments, Tensor]:
    """Means and variances in every whole window, and the covariances of F with A and with B.

    Args:
        sources: A and B of n pairs, (2, n, H, W), any range.
        fused: F of m images, (1, m, H, W); m is n, or n is 1 and all are of one pair.
        window: K weights of `filter_windows` that add up to 1.

    Returns:
        Of the sources (2, n, H - K + 1, W - K + 1) each, of F (1, m, ...) each, and covariances (2, m, ...). Rounding
        can make a variance of a flat part slightly negative.
    """
    maps = [sources, fused, sources**2, fused**2, sources * fused]
    filtered = filter_windows(torch.cat([x.flatten(0, 1)[:, None] for x in maps]), window)
    parts = filtered.split([len(x) * x.shape[1] for x in maps])
    of_s, of_f, square_s, square_f, product = (y.unflatten(0, x.shape[:2]).squeeze(2) for x, y in zip(maps, parts))
    return (of_s, square_s - of_s**2), (of_f, square_f - of_f**2), product - of_s * of_f


def sobel(x: Tensor, border: str = "constant", centre: int = 2) -> tuple[Tensor, Tensor]:
    """Sobel derivatives of every channel of (N, C, H, W), any range, not normalised: a step of 1 gives 4.

    Args:
        border: what is outside, a mode of `F.pad`: "constant" (zeros), "replicate" or "reflect".
        centre: the middle one of the weights, 1 2 1.

    Returns:
        The right column less the left one, and the upper row less the lower one, so weighted: (N, C, H, W) each.
    """
    x = F.pad(x, (1, 1, 1, 1), mode=border)
    down = x[..., :-2, :] + centre * x[..., 1:-1, :] + x[..., 2:, :]  # [1 centre 1] along the columns
    across = x[..., :-2] + centre * x[..., 1:-1] + x[..., 2:]
    return down[..., 2:] - down[..., :-2], across[..., :-2, :] - across[..., 2:, :]


prewitt = partial(sobel, centre=1)  # weighted 1 1 1


def count_levels(levels: Tensor, size: int) -> Tensor:
    """Integers (N, P) in 0..size-1 -> how often each level occurs, (N, size).

    (bincount and unique would make the CPU wait for a GPU, to know their size.)
    """
    return levels.new_zeros(len(levels), size).scatter_add_(1, levels, torch.ones_like(levels))


def rank_levels(x: Tensor) -> Tensor:
    """Integers or floats (P) -> for each the number of distinct smaller ones, (P), in 0..P-1."""
    ordered, places = x.sort()
    steps = F.pad(ordered[1:] != ordered[:-1], (1, 0))
    return torch.empty_like(places).scatter_(0, places, steps.cumsum(dim=0))
