"""Warm targets of an infrared image, e.g. people and cars: for the metrics TC and TClost, and for a loss."""

import functools

import numpy as np
import torch
from torch import Tensor

from utils.opencv import cv2

TARGET = 0.75  # of the map "warm" in [0, 1]: between a target and 127, also where data.resize mixed them


def targets(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where an infrared image shows something warmer than what is around it.

    A target is an 8-connected region of 40 pixels to 3 % of the image that is more than 25 levels above the local
    mean, a Gaussian with sigma 0.06 max(H, W) as OpenCV computes it in float32. Its ring is 4 to 15 pixels away,
    where the image is less than 10 levels above the local mean. A target needs a ring of more than 30 pixels.

    Args:
        image: (H, W) float32 in 0..255.

    Returns:
        Pixels of all targets, as indices into the flattened image, and the number of the target of each; pixels
        of all rings, and the number of the target of each. Targets are numbered from 0 without gaps.
    """
    return _find_targets(image.tobytes(), image.shape)


def warm_map(image: np.ndarray) -> np.ndarray:
    """The map "warm" of a whole infrared image (H, W) float32 in 0..255, which can be cropped with it: (H, W) uint8.

    255 is on targets (see `targets`), 0 where rings may lie, less than 10 levels above the local mean, and 127 between:
    lukewarm, or too small or too large for a target.
    """
    warm = np.where(_local_contrast(image) < 10, 0, 127).astype(np.uint8)
    warm.flat[targets(image)[0]] = 255
    return warm


COMPUTED_MAPS = {"warm": warm_map}  # further maps of a pair that need no files: functions of a whole source A


def _local_contrast(image: np.ndarray) -> np.ndarray:
    """An image less its local mean, in its own units."""
    return image - cv2.GaussianBlur(image, (0, 0), 0.06 * max(image.shape))


@functools.lru_cache(16)  # TC and TClost of several networks, in batches, ask for the same images
def _find_targets(pixels: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    local = _local_contrast(np.frombuffer(pixels, np.float32).reshape(shape))
    _, labels, regions, _ = cv2.connectedComponentsWithStats((local > 25).astype(np.uint8), connectivity=8)
    places = np.arange(local.size).reshape(local.shape)
    inner, outer, reach = np.ones((7, 7), np.uint8), np.ones((31, 31), np.uint8), 15
    inside, around = [], []
    for label, (left, top, width, height, area) in enumerate(regions):
        if label == 0 or not 40 <= area <= 0.03 * local.size:  # 0 is what is not warm
            continue
        window = np.s_[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
        target = (labels[window] == label).astype(np.uint8)
        ring = (cv2.dilate(target, outer) > cv2.dilate(target, inner)) & (local[window] < 10)
        if np.count_nonzero(ring) > 30:
            inside.append(places[window][target > 0])
            around.append(places[window][ring])

    def join(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return np.concatenate([np.empty(0, np.int64), *parts]), numbers

    return *join(inside), *join(around)


def kept_contrast(fused: Tensor, image_a: Tensor) -> list[Tensor]:
    """For each of N images, how much of the contrast of A's targets F keeps: (T,) float64 in [-1, 1.5], T may be 0."""

    def kept(f: Tensor, a: Tensor) -> Tensor:
        found = targets(a[0].float().cpu().numpy())
        count = int(found[1][-1]) + 1 if len(found[1]) else 0
        inside, inside_number, around, around_number = (torch.from_numpy(part).to(f.device) for part in found)

        def mean(x: Tensor, pixels: Tensor, number: Tensor) -> Tensor:
            sums = x.new_zeros(count).index_add(0, number, x[pixels])
            return sums / number.bincount(minlength=count)

        def contrast(x: Tensor) -> Tensor:
            x = x.double().flatten()
            return mean(x, inside, inside_number) - mean(x, around, around_number)

        of_a = contrast(a)
        return (contrast(f) / of_a)[of_a > 15].clamp(-1, 1.5)

    return [kept(f, a) for f, a in zip(fused, image_a.detach())]
