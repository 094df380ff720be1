"""The training loss of the published FILM: follow the brighter and the sharper source."""

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


class FusionLoss(nn.Module):
    """mean|F - max(A, B)| + grad_weight * mean|G(F) - max(G(A), G(B))| + fidelity_weight * (L2 and SSIM terms).

    G = |Sobel_x| + |Sobel_y| with zero padding, unnormalised (a unit step edge gives 4). The L2 and
    SSIM terms, sum over S in A, B of ||F - S||_2 + ssim_weight * (1 - SSIM(F, S)), are off by default
    as published and then cost nothing; the norm runs over the whole batch, so its scale grows with it.

    Args:
        grad_weight: published 20.
        fidelity_weight: published 0.
        ssim_weight: published 71.
    """

    def __init__(self, grad_weight: float = 20.0, fidelity_weight: float = 0.0, ssim_weight: float = 71.0):
        super().__init__()
        self.grad_weight, self.fidelity_weight, self.ssim_weight = grad_weight, fidelity_weight, ssim_weight
        sobel_x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack([sobel_x, sobel_x.T])[:, None], persistent=False)

    def gradient(self, x: Tensor) -> Tensor:
        """|Sobel_x| + |Sobel_y|: (N, 1, H, W) -> (N, 1, H, W)."""
        return F.conv2d(x, self.sobel.to(x.dtype), padding=1).abs().sum(dim=1, keepdim=True)

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor) -> dict[str, Tensor]:
        """Images (N, 1, H, W) in [0, 1] -> every term before its weight, and "total": scalars."""
        sharper = torch.maximum(self.gradient(image_a), self.gradient(image_b))
        terms = {
            "intensity": (fused - torch.maximum(image_a, image_b)).abs().mean(),
            "gradient": (self.gradient(fused) - sharper).abs().mean(),
        }
        total = terms["intensity"] + self.grad_weight * terms["gradient"]
        if self.fidelity_weight:
            sources = (image_a, image_b)
            terms["l2"] = sum(torch.linalg.vector_norm(fused - source) for source in sources)
            terms["dissimilarity"] = sum(1 - ssim(fused, source) for source in sources)
            total = total + self.fidelity_weight * (terms["l2"] + self.ssim_weight * terms["dissimilarity"])
        return {"total": total, **terms}
