"""Fusion rules without weights, so that every table can show what a network gains.

Same interface as the networks, and no input but the images. Mean, max and Laplacian pyramid serve every task;
saliency is for infrared-visible pairs, Mertens for exposures, focus for focal planes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from net.base import FusionNetwork, register
from utils.filters import count_levels
from utils.opencv import cv2


@register("mean")
class Mean(FusionNetwork):
    """(A + B) / 2."""

    label = "mean"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        return (image_a + image_b) / 2


@register("max")
class Max(FusionNetwork):
    """The brighter source at each pixel, max(A, B)."""

    label = "max"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        return torch.maximum(image_a, image_b)


@register("laplacian")
class LaplacianPyramid(FusionNetwork):
    """Laplacian pyramid fusion (Burt and Adelson 1983): detail of 4 levels by the larger magnitude, base by the mean.

    Fewer levels are used on an image whose side would fall under 8 pixels.
    """

    label = "Laplacian"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        a, b = image_a, image_b
        details = []
        for _ in range(4):
            if min(a.shape[-2:]) < 16:
                break
            low_a, low_b = reduce(a), reduce(b)
            details.append(_stronger(a - expand(low_a, a), b - expand(low_b, b)))
            a, b = low_a, low_b
        fused = (a + b) / 2
        for detail in reversed(details):
            fused = detail + expand(fused, detail)
        return fused.clamp(0, 1)


def reduce(x: Tensor) -> Tensor:
    """Smooth by the 5-tap binomial and keep every second sample: (N, 1, H, W) -> (N, 1, ceil(H/2), ceil(W/2))."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), kernel.view(1, 1, 1, 5), stride=(1, 2))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), kernel.view(1, 1, 5, 1), stride=(2, 1))


def expand(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear enlargement to the size of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _stronger(detail_a: Tensor, detail_b: Tensor) -> Tensor:
    """At each pixel the detail of larger magnitude."""
    return torch.where(detail_a.abs() >= detail_b.abs(), detail_a, detail_b)


def window_mean(x: Tensor, size: int) -> Tensor:
    """Mean over the part of a square window of `size` pixels, odd, that lies within the image: (N, 1, H, W)."""
    half = size // 2
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, half), count_include_pad=False)


def _saliency(x: Tensor) -> Tensor:
    """How far a pixel's 8-bit level is from those of all others (Zhai and Shah 2006), for (N, 1, H, W) in [0, 1].

    sum over the pixels q of |I(p) - I(q)|, stretched to 0..1 in every image; 0 where that is constant: (N, 1, H, W).
    """
    levels = (255 * x).round().clamp(0, 255).long().flatten(1)
    share = count_levels(levels, 256).to(x.dtype) / levels.shape[1]
    level = torch.arange(256, dtype=x.dtype, device=x.device)
    distance = (share @ (level[:, None] - level).abs()).gather(1, levels)
    low, high = distance.aminmax(dim=1, keepdim=True)
    return torch.where(high > low, (distance - low) / (high - low), 0).view_as(x)


@register("saliency")
class TwoScale(FusionNetwork):
    """Two scales, and what is salient (Ma, Zhou, Wang and Zong 2017, without their least squares), for infrared A.

    Base: the mean in a window of 35 pixels, or the part of it that lies within the image (as Bavirisetti and Dhuli
    2016), weighted by w = 1/2 + (V_A - V_B) / 2 for A and 1 - w for B with the saliencies V of `_saliency`, so that
    warm targets survive. Detail: what the base leaves, by the larger magnitude.
    """

    label = "two-scale"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        base_a, base_b = window_mean(image_a, 35), window_mean(image_b, 35)
        weight = 0.5 + (_saliency(image_a) - _saliency(image_b)) / 2
        return (torch.lerp(base_b, base_a, weight) + _stronger(image_a - base_a, image_b - base_b)).clamp(0, 1)


@register("mertens")
class Mertens(FusionNetwork):
    """Exposure fusion (Mertens, Kautz and Van Reeth 2007) as OpenCV computes it, in float32 on the CPU.

    A Laplacian pyramid blended by contrast and well-exposedness, both to the power of 1, as in the paper; gray has
    no saturation. (OpenCV's own default leaves out well-exposedness.)
    """

    label = "Mertens"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        merge = cv2.createMergeMertens(contrast_weight=1, saturation_weight=0, exposure_weight=1)
        pairs = torch.cat([image_a, image_b], dim=1).detach().float().cpu().numpy() * 255  # OpenCV divides by 255
        fused = np.stack([merge.process(list(pair)) for pair in pairs])[:, None]
        return torch.from_numpy(fused).to(image_a).clamp(0, 1)


@register("focus")
class Focus(FusionNetwork):
    """The source in focus: the larger sum-modified Laplacian (Nayar and Nakagawa 1994), by a vote of the neighbours.

    At each pixel |2 I - left - right| + |2 I - up - down| is averaged in a window of 9 pixels; the source with the
    larger value gets the votes of the 21 x 21 pixels around, and the majority chooses. The mean where there is none,
    e.g. A = B.
    """

    label = "focus"

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        sharper = torch.sign(self._measure(image_a) - self._measure(image_b))
        share = (window_mean(sharper, 21).sign() + 1) / 2  # of A: 1, 1/2 or 0
        return torch.lerp(image_b, image_a, share)

    @staticmethod
    def _measure(x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        across = (2 * x - padded[..., 1:-1, :-2] - padded[..., 1:-1, 2:]).abs()
        down = (2 * x - padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]).abs()
        return window_mean(across + down, 9)
