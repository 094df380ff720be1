"""The training loss of both papers: follow the brighter and the sharper source."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM of two batches (N, 1, H, W) in [0, 1], as the published loss computes it: a scalar.

    Gaussian window of 5 x 5, sigma 1.5, zero padding, population covariance. (The metric SSIM in
    utils/metrics.py is another one: scikit-image's.)
    """
    t = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    window = torch.exp(-(t**2) / (2 * 1.5**2))
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y])
    maps = F.conv2d(maps, window.view(1, 1, 5, 1), padding=(2, 0))
    mean_x, mean_y, xx, yy, xy = F.conv2d(maps, window.view(1, 1, 1, 5), padding=(0, 2)).chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).mean()


def sobel_gradient(x: Tensor) -> Tensor:
    """|Sobel_x| + |Sobel_y| of every channel, zero padding, unnormalised (a unit step edge gives 4), (N, C, H, W)."""
    step = torch.arange(-1, 2, dtype=x.dtype, device=x.device)  # -1 0 1
    sobel_x = torch.outer(2 - step.abs(), step)
    kernels = [kernel.expand(x.shape[1], 1, 3, 3) for kernel in (sobel_x, sobel_x.T)]
    return sum(F.conv2d(x, kernel, padding=1, groups=x.shape[1]).abs() for kernel in kernels)


class FusionLoss(nn.Module):
    """Weighted sum of mean|F - max(A, B)|, mean|G(F) - max(G(A), G(B))| and L2 and SSIM terms.

    G is `sobel_gradient`. FILM's weights are the defaults. MGFusion has the first two terms and a balance
    lambda = 0.2; the copy of the paper at hand does not show which of them it multiplies. The L2 and
    SSIM terms, sum over S in A, B of ||F - S||_2 + ssim_weight * (1 - SSIM(F, S)), are off by default
    as published and then cost nothing; the norm runs over the whole batch, so its scale grows with it.

    Args:
        grad_weight: of the second term; FILM 20.
        fidelity_weight: of the L2 and SSIM terms; FILM 0.
        ssim_weight: of SSIM against L2; FILM 71.
        intensity_weight: of the first term; FILM 1.
    """

    def __init__(
        self,
        grad_weight: float = 20.0,
        fidelity_weight: float = 0.0,
        ssim_weight: float = 71.0,
        intensity_weight: float = 1.0,
    ):
        super().__init__()
        self.grad_weight, self.fidelity_weight, self.ssim_weight = grad_weight, fidelity_weight, ssim_weight
        self.intensity_weight = intensity_weight

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor) -> dict[str, Tensor]:
        """Images (N, 1, H, W) in [0, 1] -> every term before its weight, and "total": scalars."""
        sharper = torch.maximum(sobel_gradient(image_a), sobel_gradient(image_b))
        terms = {
            "intensity": (fused - torch.maximum(image_a, image_b)).abs().mean(),
            "gradient": (sobel_gradient(fused) - sharper).abs().mean(),
        }
        total = self.intensity_weight * terms["intensity"] + self.grad_weight * terms["gradient"]
        if self.fidelity_weight:
            sources = (image_a, image_b)
            terms["l2"] = sum(torch.linalg.vector_norm(fused - source) for source in sources)
            terms["dissimilarity"] = sum(1 - ssim(fused, source) for source in sources)
            total = total + self.fidelity_weight * (terms["l2"] + self.ssim_weight * terms["dissimilarity"])
        return {"total": total, **terms}
