"""Training losses. `fusion` matches the brighter source and the stronger gradient (both papers), with optional terms.

Adding a loss takes one class here: a subclass of `Loss` with `@register_loss("mine")`. In the YAML,
`loss: {name: mine, ...}` chooses it and sets the arguments of its constructor.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.check import Constraint
from utils.errors import InputError
from utils.filters import filter_windows, gaussian_window, local_moments, sobel
from utils.metrics import VIFF_MIN_SIDE, exposure_fusion_similarity_with_luminance
from utils.registry import Registry
from utils.targets import TARGET

LOSSES = Registry("loss")
register_loss = LOSSES.register


class Loss(nn.Module):
    """What a training minimises. The arguments of the constructor are its options in the config.

    For the training not to depend on `train.accumulate` or the number of processes, "total" must be a mean over
    the images of a term that each image gives alone.

    Attributes:
        name: the name it is registered under.
        maps: further maps of each pair that it wants from the data, by name.
        follows_progress: True if the loss looks at `progress`: then a run cannot be resumed with another number of
            epochs.
    """

    name: str
    maps: tuple[str, ...] = ()
    follows_progress: bool = False

    def forward(self, fused: Tensor, image_a: Tensor, image_b: Tensor, **batch) -> dict[str, Tensor]:
        """Called as `criterion(fused, **batch, progress=...)`; a loss names the arguments that it uses.

        Args:
            fused, image_a, image_b: (N, 1, H, W) in [0, 1].
            batch: the rest of the batch, as far as the data has it: text (N, L, D), text_mask (N, L), True for a
                token, clip (N, 2, E), name (list of N words), and `maps`; `progress`, the share of the training that
                is done, in [0, 1); and what the network's `loss_inputs` gives.

        Returns:
            "total", the scalar to minimise, and under any other name the scalars to report.
        """
        raise NotImplementedError


def build_loss(options: dict) -> nn.Module:
    """The loss of a config's `loss`: its name, else "fusion", and options; InputError for what it does not know."""
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


def mean_within(x: Tensor, window: int) -> Tensor:
    """Mean over the part of the window x window pixels around each pixel that lies within the image."""
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


def sharper(image_a: Tensor, image_b: Tensor) -> Tensor:
    """At every pixel the source with more edges around it: what is in focus."""
    edges = (sobel(x, border="replicate") for x in (image_a, image_b))
    energy_a, energy_b = (mean_within(across.square() + down.square(), 9) for across, down in edges)
    return torch.where(energy_a > energy_b, image_a, image_b)


def exposed(image_a: Tensor, image_b: Tensor) -> Tensor:
    """A and B weighted by how near they are to mid-gray around a pixel (Mertens et al. 2007): what is well exposed."""
    weight_a, weight_b = (mean_within(torch.exp(-((x - 0.5) ** 2) / (2 * 0.2**2)), 17) for x in (image_a, image_b))
    return torch.lerp(image_b, image_a, weight_a / (weight_a + weight_b + 1e-6))


def visual_information(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Visual information fidelity of F to A and to B (Sheikh and Bovik 2006), a smooth form.

    As the metric VIFF in utils/metrics.py, over whole windows and four scales, but without its steps: a flat
    part of a source counts little instead of nothing. For each image and source S, summed over pixels and scales,

        V(F, S) = sum log(1 + g^2 var_S / (max(var_F - g^2 var_S, 0) + v)) / sum log(1 + var_S / v),
        g = max(cov_FS / var_S, 0), v = 2 / 255^2.

    Images are (N, 1, H, W) in [0, 1].

    Returns:
        V(F, A) and V(F, B) of each image, (N, 2) in [0, 1]; 1: F keeps all of it.

    Raises:
        InputError: under 41 pixels a side.
    """
    if min(fused.shape[-2:]) < VIFF_MIN_SIDE:
        raise InputError(f"loss.vif_weight needs images of {VIFF_MIN_SIDE} pixels a side or more; raise train.crop")
    noise, floor = 2 / 255**2, 1e-6  # the floor keeps gradients of flat regions finite
    sources, fused = torch.cat([image_a, image_b], dim=1).transpose(0, 1), fused.transpose(0, 1)
    kept = total = 0
    for size in (17, 9, 5, 3):
        window = gaussian_window(size, size / 5)
        if size < 17:
            sources, fused = (filter_windows(x, window, step=2) for x in (sources, fused))
        (_, source), (_, target), covariance = local_moments(sources, fused, window)
        source, target = source.clamp(min=0), target.clamp(min=0)
        gain = (covariance / (source + floor)).clamp(min=0)
        residual = (target - gain**2 * source).clamp(min=0)
        kept = kept + torch.log1p(gain**2 * source / (residual + noise)).sum(dim=(2, 3))  # (2, N)
        total = total + torch.log1p(source / noise).sum(dim=(2, 3))
    return (kept / (total + floor)).T


def grow(x: Tensor, window: int) -> Tensor:
    """Largest value in the window x window pixels around each pixel."""
    x = F.max_pool2d(x, (window, 1), 1, (window // 2, 0))
    return F.max_pool2d(x, (1, window), 1, (0, window // 2))


def local_mean(x: Tensor, window: int) -> Tensor:
    """Mean over the window x window pixels around each pixel, zeros outside."""
    x = F.avg_pool2d(x, (window, 1), 1, (window // 2, 0))
    return F.avg_pool2d(x, (1, window), 1, (0, window // 2))


def missing_contrast(fused: Tensor, image_a: Tensor, warm: Tensor, window: int = 31) -> Tensor:
    """How much of the contrast of A's warm targets is missing in F: what the metric TC looks at, for crops.

    At each pixel of a target, c_X is the mean of X over the target less its mean over the ring, both within the
    window around the pixel. F may brighten the target or darken the ring: in a headlight, where max(A, B) is white,
    only the second is possible. What is missing is max(1 - c_F / max(c_A, 15/255), 0), and each image's mean is over
    its target pixels with a ring of more than 30 pixels and c_A > 10/255 (a part of a target may be cooler than the
    15 levels from which TC counts it), weighted by 1 / the number of target pixels around them, so that a small
    target counts like a large one.

    Args:
        fused, image_a: (N, 1, H, W) in [0, 1].
        warm: (N, 1, H, W), the map "warm" of utils/targets.py in [0, 1]; a ring reaches 15 pixels from a target.

    Returns:
        (N,), from 0 (no contrast is missing) to over 1 (targets are darker than their rings); 0 without a target.
    """
    target = (warm > TARGET).to(fused.dtype)
    ring = (grow(target, 31) - grow(target, 7)) * (warm < 0.25)
    share_of_target, share_of_ring, tiny = local_mean(target, window), local_mean(ring, window), 1e-6

    def contrast(x: Tensor) -> Tensor:
        inside, around = local_mean(target * x, window), local_mean(ring * x, window)
        return inside / (share_of_target + tiny) - around / (share_of_ring + tiny)

    of_a = contrast(image_a)
    counts = target * (share_of_ring > 30.5 / window**2) * (of_a > 10 / 255)
    weight = counts / (share_of_target + tiny)
    missing = (1 - contrast(fused) / of_a.clamp(min=15 / 255)).clamp(min=0)
    return (weight * missing).sum(dim=(1, 2, 3)) / (weight.sum(dim=(1, 2, 3)) + tiny)


INTENSITIES = {  # of A and B
    "max": torch.maximum,  # both papers'
    "mean": lambda a, b: (a + b) / 2,  # that of FILM's released loss with in_max=False; it trains with the maximum
    "sharper": sharper,
    "exposed": exposed,
}
Weight = Annotated[float, Constraint(lambda number: number >= 0, "must be 0 or more")]
Share = Annotated[float, Constraint(lambda share: 0 <= share < 1, "must be a share, 0 or more and under 1")]


@register_loss("fusion")
class FusionLoss(Loss):
    """Weighted sum of mean|F - T(A, B)| (intensity), a gradient term and, if they have a weight, further ones.

    FILM's loss is the default: T = max, gradient mean|G(F) - max(G(A), G(B))| with G of `sobel_gradient`.
    MGFusion has these two terms and a balance lambda = 0.2; the copy of the paper at hand does not show
    which of them it multiplies. The L2 and SSIM terms, sum over S in A, B of ||F - S||_2 + ssim_weight *
    (1 - SSIM(F, S)), are off in FILM's released train.py, as here; the norm runs over the whole batch, so its scale
    grows with it. All other terms are means over the images. A term of weight 0 costs nothing.

    Args:
        grad_weight: of the gradient term; FILM 20.
        fidelity_weight: of the L2 and SSIM terms; FILM 0.
        ssim_weight: of SSIM against L2; None: int(sqrt(H W)), as FILM, 332 at 288 x 384.
        intensity_weight: of the intensity term; FILM 1.
        vif_weight: of the mean over the images of -log V(F, A) - log V(F, B), V the `visual_information`. The
            logarithm makes the source count more of which F keeps less: a plain sum would be lowest if F just copied
            one of them.
        intensity: T, one of INTENSITIES: max, mean, sharper (multi-focus), exposed (multi-exposure).
        gradient: magnitude, as FILM; vector: mean |dF - dS| of the derivatives themselves, S the source
            with the longer ones at each pixel, so that an edge keeps its direction and sign.
        edge_gain: with gradient=vector, mean |dF - edge_gain dS|: over 1, F is somewhat sharper than its sources.
        contrast_weight: of `missing_contrast`: warm targets of an infrared A stand out. Takes the map "warm".
        target_edges: with gradient=vector, near targets |dA| is multiplied by 1 + target_edges before the comparison,
            and the term is weighted likewise. Takes the map "warm".
        targets_from: the share of the training after which contrast_weight and target_edges count. From the start,
            the network would learn to copy A everywhere, and hardly unlearn it.
        exposure_weight: of 1 - MEFSSIMl, the metric of utils/metrics.py: structure and exposure of two exposures.

    Raises:
        InputError: edge_gain or target_edges with gradient=magnitude; in `forward`, images too small for
            `visual_information`.
    """

    def __init__(
        self,
        grad_weight: Weight = 20.0,
        fidelity_weight: Weight = 0.0,
        ssim_weight: Weight | None = None,
        intensity_weight: Weight = 1.0,
        vif_weight: Weight = 0.0,
        intensity: Literal[tuple(INTENSITIES)] = "max",
        gradient: Literal["magnitude", "vector"] = "magnitude",
        edge_gain: Weight = 1.0,
        contrast_weight: Weight = 0.0,
        target_edges: Weight = 0.0,
        targets_from: Share = 0.0,
        exposure_weight: Weight = 0.0,
    ):
        super().__init__()
        if gradient != "vector" and (edge_gain != 1 or target_edges):
            raise InputError("loss.edge_gain and loss.target_edges need loss.gradient=vector")
        self.grad_weight, self.fidelity_weight, self.ssim_weight = grad_weight, fidelity_weight, ssim_weight
        self.intensity_weight, self.vif_weight = intensity_weight, vif_weight
        self.intensity, self.gradient, self.edge_gain = INTENSITIES[intensity], gradient, edge_gain
        self.contrast_weight, self.target_edges, self.targets_from = contrast_weight, target_edges, targets_from
        self.exposure_weight = exposure_weight
        self.maps = ("warm",) if contrast_weight or target_edges else ()
        self.follows_progress = bool(self.maps and targets_from)

    def forward(
        self,
        fused: Tensor,
        image_a: Tensor,
        image_b: Tensor,
        warm: Tensor | None = None,
        progress: float = 0.0,
        **batch,
    ) -> dict[str, Tensor]:
        """Images and the map (N, 1, H, W) in [0, 1] -> "total", and every term before its weight: scalars.

        The term "vif" is V(F, A) + V(F, B), the mean over the images.
        """
        sources, targets_count = (image_a, image_b), progress >= self.targets_from
        emphasis = 1
        if self.target_edges and targets_count:  # an edge of a target lies half outside it
            emphasis = 1 + self.target_edges * local_mean(grow((warm > TARGET).to(fused.dtype), 7), 5)
        terms = {
            "intensity": (fused - self.intensity(*sources)).abs().mean(),
            "gradient": self.gradient_term(fused, *sources, emphasis),
        }
        total = self.intensity_weight * terms["intensity"] + self.grad_weight * terms["gradient"]
        if self.fidelity_weight:
            terms["l2"] = sum(torch.linalg.vector_norm(fused - source) for source in sources)
            terms["dissimilarity"] = sum(1 - ssim(fused, source) for source in sources)
            weight = math.isqrt(math.prod(fused.shape[-2:])) if self.ssim_weight is None else self.ssim_weight
            total = total + self.fidelity_weight * (terms["l2"] + weight * terms["dissimilarity"])
        if self.vif_weight:
            kept = visual_information(fused, *sources)
            terms["vif"] = kept.sum(dim=1).mean()
            total = total - self.vif_weight * torch.log(kept + 1e-3).sum(dim=1).mean()
        if self.contrast_weight:
            terms["missing_contrast"] = missing_contrast(fused, image_a, warm).mean()
            if targets_count:
                total = total + self.contrast_weight * terms["missing_contrast"]
        if self.exposure_weight:
            in_levels = (255 * x for x in (fused, *sources))
            terms["exposure"] = exposure_fusion_similarity_with_luminance(*in_levels).mean()
            total = total + self.exposure_weight * (1 - terms["exposure"])
        return {"total": total, **terms}

    def gradient_term(self, fused: Tensor, image_a: Tensor, image_b: Tensor, emphasis: Tensor | int) -> Tensor:
        """The gradient term; `emphasis` (N, 1, H, W) says by how much A's edges count more (1: no more)."""
        if self.gradient == "magnitude":
            sharper_edges = torch.maximum(sobel_gradient(image_a), sobel_gradient(image_b))
            return (sobel_gradient(fused) - sharper_edges).abs().mean()
        of_fused, of_a, of_b = (torch.cat(sobel(x, border="replicate"), dim=1) for x in (fused, image_a, image_b))
        longer = of_a.square().sum(dim=1, keepdim=True) * emphasis**2 > of_b.square().sum(dim=1, keepdim=True)
        difference = of_fused - self.edge_gain * torch.where(longer, of_a, of_b)
        return (emphasis * (difference.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()).mean()
