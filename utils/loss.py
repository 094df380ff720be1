"""Training losses: that of both papers, follow the brighter and the sharper source, and what other tasks need instead.

Adding a loss takes one class here: a subclass of `Loss` with `@register_loss("mine")`. In the YAML,
`loss: {name: mine, ...}` chooses it and sets the arguments of its constructor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError
from utils.filters import filter_windows, gaussian_window, local_moments, sobel
from utils.metrics import VIFF_MIN_SIDE
from utils.registry import Registry

LOSSES = Registry("loss")
register_loss = LOSSES.register


class Loss(nn.Module):
    """What a training minimises. The arguments of the constructor are its options in the config.

    For the training not to depend on `train.accumulate` or the number of processes, "total" must be a mean over
    the images of a term that each image gives alone.

    Attributes:
        name: the name it is registered under.
        maps: further maps of each pair that it wants from the data, by name.
    """

    name: str
    maps: tuple[str, ...] = ()

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor, **batch) -> dict[str, Tensor]:
        """Called as `criterion(fused, **batch)`; a loss names the arguments that it uses.

        Args:
            fused, image_a, image_b: (N, 1, H, W) in [0, 1].
            batch: the rest of the batch, as far as the data has it, on the same device: text (N, L, D), text_mask
                (N, L), True for a token, clip (N, 2, E), name (list of N words), and `maps`.

        Returns:
            "total", the scalar to minimise, and under any other name the scalars to report.
        """
        raise NotImplementedError


def build_loss(options: dict) -> nn.Module:
    """The loss of a config.

    Args:
        options: the mapping `loss` of the config: name, "fusion" if not given, and arguments of its constructor.

    Raises:
        InputError: unknown name or option, or a value that the loss refuses.
    """
    return LOSSES.build(**({"name": "fusion"} | options))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM of two batches (N, 1, H, W) in [0, 1], as the published loss computes it: a scalar.

    Gaussian window of 5 x 5, sigma 1.5, zero padding, population covariance. (The metric SSIM in
    utils/metrics.py is another one: scikit-image's.)
    """
    maps = F.pad(torch.cat([x, y, x * x, y * y, x * y]), (2, 2, 2, 2))
    mean_x, mean_y, xx, yy, xy = filter_windows(maps, gaussian_window(5, 1.5)).chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).mean()


def sobel_gradient(x: Tensor) -> Tensor:
    """|Sobel_x| + |Sobel_y| of every channel, zero border, not normalised (a step of 1 gives 4): (N, C, H, W)."""
    across, down = sobel(x)
    return across.abs() + down.abs()


def brighter(image_a: Tensor, image_b: Tensor) -> Tensor:
    """max(A, B): both papers' target."""
    return torch.maximum(image_a, image_b)


def sharper(image_a: Tensor, image_b: Tensor, window: int = 9) -> Tensor:
    """At every pixel the source with more edges around it: what is in focus."""
    energy_a, energy_b = (
        F.avg_pool2d(across.square() + down.square(), window, 1, window // 2, count_include_pad=False)
        for across, down in (sobel(x, border="replicate") for x in (image_a, image_b))
    )
    return torch.where(energy_a > energy_b, image_a, image_b)


def exposed(image_a: Tensor, image_b: Tensor, window: int = 17, sigma: float = 0.2) -> Tensor:
    """A and B weighted by how near they are to mid-gray around a pixel (Mertens et al. 2007): what is well exposed."""
    weight_a, weight_b = (
        F.avg_pool2d(torch.exp(-((x - 0.5) ** 2) / (2 * sigma**2)), window, 1, window // 2, count_include_pad=False)
        for x in (image_a, image_b)
    )
    return torch.lerp(image_b, image_a, weight_a / (weight_a + weight_b + 1e-6))


def visual_information(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Visual information fidelity of F to A and to B (Sheikh and Bovik 2006), a smooth form.

    As the metric VIFF in utils/metrics.py, over whole windows and four scales, but without its steps: a flat
    part of a source counts little instead of nothing. For each image and source S, summed over pixels and scales,

        V(F, S) = sum log(1 + g^2 var_S / (max(var_F - g^2 var_S, 0) + v)) / sum log(1 + var_S / v),
        g = max(cov_FS / var_S, 0), v = 2 / 255^2.

    Args:
        fused, image_a, image_b: (N, 1, H, W) in [0, 1].

    Returns:
        V(F, A) and V(F, B) of each image, (N, 2) in [0, 1]; 1: F keeps all of it.

    Raises:
        InputError: under 41 pixels a side.
    """
    if min(fused.shape[-2:]) < VIFF_MIN_SIDE:
        raise InputError(f"loss.vif_weight needs images of {VIFF_MIN_SIDE} pixels a side or more; raise train.crop")
    noise, floor = 2 / 255**2, 1e-6  # the floor keeps gradients of flat regions finite
    n = len(fused)
    maps = torch.cat([image_a, image_b, fused])
    kept = total = 0
    for size in (17, 9, 5, 3):
        window = gaussian_window(size, size / 5)
        if size < 17:
            maps = filter_windows(maps, window, step=2)
        _, variance, covariance = local_moments(maps, window)
        variance = variance.clamp(min=0)
        source, target = variance[: 2 * n], variance[2 * n :].repeat(2, 1, 1, 1)
        gain = (covariance / (source + floor)).clamp(min=0)
        residual = (target - gain**2 * source).clamp(min=0)
        kept = kept + torch.log1p(gain**2 * source / (residual + noise)).sum(dim=(1, 2, 3))
        total = total + torch.log1p(source / noise).sum(dim=(1, 2, 3))
    return (kept / (total + floor)).view(2, n).T


INTENSITIES = {"max": brighter, "sharper": sharper, "exposed": exposed}
GRADIENTS = ("magnitude", "vector")


@register_loss("fusion")
class FusionLoss(Loss):
    """Weighted sum of mean|F - T(A, B)| (intensity), a gradient term and, if they have a weight, further ones.

    FILM's loss is the default: T = max, gradient mean|G(F) - max(G(A), G(B))| with G of `sobel_gradient`.
    MGFusion has these two terms and a balance lambda = 0.2; the copy of the paper at hand does not show
    which of them it multiplies. The L2 and SSIM terms, sum over S in A, B of ||F - S||_2 + ssim_weight *
    (1 - SSIM(F, S)), are off by default as published; the norm runs over the whole batch, so its scale
    grows with it. All other terms are means over the images. A term of weight 0 costs nothing.

    Args:
        grad_weight: of the gradient term; FILM 20.
        fidelity_weight: of the L2 and SSIM terms; FILM 0.
        ssim_weight: of SSIM against L2; FILM 71.
        intensity_weight: of the intensity term; FILM 1.
        vif_weight: of the mean over the images of -log V(F, A) - log V(F, B), V the `visual_information`;
            FILM has none. The logarithm makes the source count more of which F keeps less: a plain sum would
            be lowest if F just copied one of them.
        intensity: T, one of INTENSITIES: max, sharper (multi-focus), exposed (multi-exposure).
        gradient: magnitude, as FILM; vector: mean |dF - dS| of the derivatives themselves, S the source
            with the longer ones at each pixel, so that an edge keeps its direction and sign.

    Raises:
        InputError: another `intensity` or `gradient`; in `forward`, images too small for `visual_information`.
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

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor, **batch) -> dict[str, Tensor]:
        """Images (N, 1, H, W) in [0, 1] -> "total", and every term before its weight: scalars.

        The term "vif" is V(F, A) + V(F, B), the mean over the images.
        """
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
            terms["vif"] = kept.sum(dim=1).mean()
            total = total - self.vif_weight * torch.log(kept + 1e-3).sum(dim=1).mean()
        return {"total": total, **terms}

    def gradient_term(self, fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
        if self.gradient == "magnitude":
            sharper_edges = torch.maximum(sobel_gradient(image_a), sobel_gradient(image_b))
            return (sobel_gradient(fused) - sharper_edges).abs().mean()
        of_fused, of_a, of_b = (torch.cat(sobel(x, border="replicate"), dim=1) for x in (fused, image_a, image_b))
        longer = of_a.square().sum(dim=1, keepdim=True) > of_b.square().sum(dim=1, keepdim=True)
        difference = of_fused - torch.where(longer, of_a, of_b)
        return (difference.square().sum(dim=1) + 1e-6).sqrt().mean()
