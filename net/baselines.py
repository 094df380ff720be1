"""Fusion rules without weights, so that every table can show what a network gains.

Same interface as the networks, and no input but the images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from net.base import FusionNetwork
from net.registry import register
from utils.errors import InputError


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
    """Laplacian pyramid fusion (Burt and Adelson 1983): detail by the larger magnitude, base by the mean.

    Args:
        levels: detail levels; fewer are used on an image whose side would fall under 8 pixels.

    Raises:
        InputError: levels below 1.
    """

    label = "Laplacian"

    def __init__(self, levels: int = 4):
        super().__init__()
        if levels < 1:
            raise InputError(f"net.levels must be at least 1, not {levels}")
        self.levels = levels
        self.register_buffer("kernel", torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16, persistent=False)

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        a, b = image_a, image_b
        details = []
        for _ in range(self.levels):
            if min(a.shape[-2:]) < 16:
                break
            low_a, low_b = self._reduce(a), self._reduce(b)
            detail_a, detail_b = a - self._expand(low_a, a), b - self._expand(low_b, b)
            details.append(torch.where(detail_a.abs() >= detail_b.abs(), detail_a, detail_b))
            a, b = low_a, low_b
        fused = (a + b) / 2
        for detail in reversed(details):
            fused = detail + self._expand(fused, detail)
        return fused.clamp(0, 1)

    def _reduce(self, x: Tensor) -> Tensor:
        """Smooth by the 5-tap binomial and keep every second sample: (N, 1, H, W) -> (N, 1, ceil(H/2), ceil(W/2))."""
        kernel = self.kernel.to(x.dtype)
        x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), kernel.view(1, 1, 1, 5), stride=(1, 2))
        return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), kernel.view(1, 1, 5, 1), stride=(2, 1))

    @staticmethod
    def _expand(x: Tensor, like: Tensor) -> Tensor:
        """Bilinear enlargement to the size of `like`."""
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
