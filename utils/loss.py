"""The training loss of both papers, follow the brighter and the sharper source, and what other tasks need instead."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError
from utils.metrics import VIFF_MIN_SIDE, gaussian_window


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


def sobel(x: Tensor) -> Tensor:
    """Both Sobel derivatives of (N, 1, H, W), replicated border, unnormalised: (N, 2, H, W)."""
    step = torch.arange(-1, 2, dtype=x.dtype, device=x.device)
    sobel_x = torch.outer(2 - step.abs(), step)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel_x, sobel_x.T])[:, None])


def brighter(image_a: Tensor, image_b: Tensor) -> Tensor:
    """max(A, B): both papers' target."""
    return torch.maximum(image_a, image_b)


def sharper(image_a: Tensor, image_b: Tensor, window: int = 9) -> Tensor:
    """At every pixel the source with more edges around it: what is in focus."""
    energy_a, energy_b = (
        F.avg_pool2d(sobel(x).square().sum(dim=1, keepdim=True), window, 1, window // 2, count_include_pad=False)
        for x in (image_a, image_b)
    )
    return torch.where(energy_a > energy_b, image_a, image_b)


def exposed(image_a: Tensor, image_b: Tensor, window: int = 17, sigma: float = 0.2) -> Tensor:
    """A and B weighted by how near they are to mid-gray around a pixel (Mertens et al. 2007): what is well exposed."""
    weight_a, weight_b = (
        F.avg_pool2d(torch.exp(-((x - 0.5) ** 2) / (2 * sigma**2)), window, 1, window // 2, count_include_pad=False)
        for x in (image_a, image_b)
    )
    return torch.lerp(image_b, image_a, weight_a / (weight_a + weight_b + 1e-6))


def smoothed(x: Tensor, window: list[float], step: int = 1) -> Tensor:
    """Weighted mean of (N, 1, H, W) over whole windows only, every `step`-th sample, by one 1-D window both ways."""
    weights = x.new_tensor(window)
    x = F.conv2d(x, weights.view(1, 1, -1, 1), stride=(step, 1))
    return F.conv2d(x, weights.view(1, 1, 1, -1), stride=(1, step))


def visual_information(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Visual information fidelity of F to A and to B (Sheikh and Bovik 2006), a smooth form: (2), 1 = all of it.

    As the metric VIFF in utils/metrics.py, over whole windows and four scales, but for where it has steps:
    a flat source counts little instead of nothing. Values in [0, 1].

    Raises:
        InputError: under 41 pixels a side.
    """
    if min(fused.shape[-2:]) < VIFF_MIN_SIDE:
        raise InputError(f"loss.vif_weight needs images of {VIFF_MIN_SIDE} pixels a side or more; raise train.crop")
    noise, floor = 2 / 255**2, 1e-6  # the floor keeps gradients of flat regions finite
    n = len(fused)
    maps = torch.cat([fused, image_a, image_b])
    kept = total = 0
    for size in (17, 9, 5, 3):
        window = gaussian_window(size)
        if size < 17:
            maps = smoothed(maps, window, step=2)
        products = maps[:n].repeat(2, 1, 1, 1) * maps[n:]
        mean, square, product = smoothed(torch.cat([maps, maps**2, products]), window).split([3 * n, 3 * n, 2 * n])
        variance = (square - mean**2).clamp(min=0)
        of_fused, of_source = variance[:n].repeat(2, 1, 1, 1), variance[n:]
        gain = ((product - mean[:n].repeat(2, 1, 1, 1) * mean[n:]) / (of_source + floor)).clamp(min=0)
        residual = (of_fused - gain**2 * of_source).clamp(min=0)
        kept = kept + torch.log1p(gain**2 * of_source / (residual + noise)).view(2, -1).sum(dim=1)
        total = total + torch.log1p(of_source / noise).view(2, -1).sum(dim=1)
    return kept / (total + floor)


INTENSITIES = {"max": brighter, "sharper": sharper, "exposed": exposed}
GRADIENTS = ("magnitude", "vector")


class FusionLoss(nn.Module):
    """Weighted sum of mean|F - T(A, B)| (intensity), a gradient term and, if they have a weight, further ones.

    FILM's loss is the default: T = max, gradient mean|G(F) - max(G(A), G(B))| with G of `sobel_gradient`.
    MGFusion has these two terms and a balance lambda = 0.2; the copy of the paper at hand does not show
    which of them it multiplies. The L2 and SSIM terms, sum over S in A, B of ||F - S||_2 + ssim_weight *
    (1 - SSIM(F, S)), are off by default as published; the norm runs over the whole batch, so its scale
    grows with it. A term of weight 0 costs nothing.

    Args:
        grad_weight: of the gradient term; FILM 20.
        fidelity_weight: of the L2 and SSIM terms; FILM 0.
        ssim_weight: of SSIM against L2; FILM 71.
        intensity_weight: of the intensity term; FILM 1.
        vif_weight: of the term -log V(F, A) - log V(F, B), V the `visual_information`; FILM has none. The
            logarithm counts what F keeps of one source more the less it is: the mere sum is best served
            by taking over one of them.
        intensity: T, one of INTENSITIES: max, sharper (multi-focus), exposed (multi-exposure).
        gradient: magnitude, as FILM; vector: mean |dF - dS| of the derivatives themselves, S the source
            with the longer ones at each pixel, so that an edge keeps its direction and sign.
    """

    def __init__(
        self,
        grad_weight: float = 20.0,
        fidelity_weight: float = 0.0,
        ssim_weight: float = 71.0,
        intensity_weight: float = 1.0,
        vif_weight: float = 0.0,
        intensity: str = "max",
        gradient: str = "magnitude",
    ):
        super().__init__()
        for key, value, choices in (("intensity", intensity, INTENSITIES), ("gradient", gradient, GRADIENTS)):
            if value not in choices:
                raise InputError(f"loss.{key} must be one of {', '.join(choices)}, not '{value}'")
        self.grad_weight, self.fidelity_weight, self.ssim_weight = grad_weight, fidelity_weight, ssim_weight
        self.intensity_weight, self.vif_weight = intensity_weight, vif_weight
        self.intensity, self.gradient = INTENSITIES[intensity], gradient

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor) -> dict[str, Tensor]:
        """Images (N, 1, H, W) in [0, 1] -> every term before its weight, and "total": scalars."""
        sources = (image_a, image_b)
        terms = {
            "intensity": (fused - self.intensity(*sources)).abs().mean(),
            "gradient": self.gradient_term(fused, *sources),
        }
        total = self.intensity_weight * terms["intensity"] + self.grad_weight * terms["gradient"]
        if self.fidelity_weight:
            terms["l2"] = sum(torch.linalg.vector_norm(fused - source) for source in sources)
            terms["dissimilarity"] = sum(1 - ssim(fused, source) for source in sources)
            total = total + self.fidelity_weight * (terms["l2"] + self.ssim_weight * terms["dissimilarity"])
        if self.vif_weight:
            kept = visual_information(fused, *sources)
            terms["vif"] = kept.sum()
            total = total - self.vif_weight * torch.log(kept + 1e-3).sum()
        return {"total": total, **terms}

    def gradient_term(self, fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
        if self.gradient == "magnitude":
            sharper_edges = torch.maximum(sobel_gradient(image_a), sobel_gradient(image_b))
            return (sobel_gradient(fused) - sharper_edges).abs().mean()
        of_a, of_b = sobel(image_a), sobel(image_b)
        longer = of_a.square().sum(dim=1, keepdim=True) > of_b.square().sum(dim=1, keepdim=True)
        difference = sobel(fused) - torch.where(longer, of_a, of_b)
        return (difference.square().sum(dim=1) + 1e-6).sqrt().mean()
