"""Fusion metrics as pure batched functions, matched to the evaluator of the published FILM code.

Qcv, Qcb, CE and EI, which that evaluator lacks, follow the toolbox of VIFB (Zhang et al. 2020); MEFSSIM
follows MEF-Net's authors; MSSSIM, QW, QE, FMI and Nabf the papers that they name; TC and TClost are ours.

Every metric is `metric(fused, image_a, image_b) -> (N,)` on float tensors (N, 1, H, W) in 0..255, on
any device, and computes in the dtype it is given: float64 equals the published numbers to 1e-6,
float32 to two decimals. It cannot tell images in 0..1 from dark ones, and gives wrong numbers for them;
`measure` takes files and arrays, and knows their range. Image-only metrics (EN, SD, SF, AG) ignore the
sources. `METRICS` has them by name; higher is better but for those in `LOWER_IS_BETTER`.

Adding a metric takes one function with `@register_metric`, here or in a file of net/. The tests take each:
image i of a batch must give the value that it gives alone, and the dtype must stay. They also compare those
here with a slow literal form, `f(fused, image_a, image_b) -> float` on NumPy arrays (H, W), in tests/literal.py.

Undefined values. A metric is NaN, and a table leaves that image out of its mean and says so, where
the definition has no value: a correlation with a constant image (CC; SCD also if F equals a source),
Qabf and Qcv if neither source has an edge, VIFF under 41 pixels a side, MSSSIM under 176, QW and QE under 8 or if both
sources are flat, SSIM under 7, FMI under 3, Qcb if A, B or F
is constant, Qcv if one of them is constant and not black, TC and TClost if A has no target. PSNR of
F = A = B is inf and of a black F -inf, left out likewise. VIFF of a flat source and a flat F is 1 for
that source; CE of images without a common level is 0. MEFSSIM has a value for every image.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.images import as_unit, open_images, to_8bit
from utils.errors import InputError, enough_memory
from utils.filters import count_levels, filter_windows, gaussian_window, local_moments, prewitt, rank_levels, sobel
from utils.registry import nearest_or_broken
from utils.targets import kept_contrast

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
METRICS: dict[str, Metric] = {}
LOWER_IS_BETTER: set[str] = set()
INFRARED_ONLY: set[str] = set()  # for an infrared source A, the task IVF
PAPER_METRICS = ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]  # of FILM's tables

VIFF_MIN_SIDE = 41  # smaller images leave no whole window at the fourth scale
SSIM_WINDOW = 7
MSSSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the finest on
MSSSIM_MIN_SIDE = 176  # a whole window of 11 at the fifth scale
QW_WINDOW = 8
FMI_STRIP = 16  # columns of windows at a time: they hold 81 numbers each
TOGETHER = 4  # results of a pair that are measured at a time: more would not stay in a CPU's cache
MEFSSIM_MASS = 1 - 3.7886e-8  # sum of the authors' window of 11 x 11, in single precision; it moves MEFSSIM by 1e-6


def register_metric(
    name: str, lower_is_better: bool = False, infrared_only: bool = False
) -> Callable[[Metric], Metric]:
    """Function decorator: add a metric under `name`, here or in a file of net/; ValueError if the name is taken."""

    def add(metric: Metric) -> Metric:
        if name in METRICS:
            raise ValueError(f"the metric '{name}' is taken by {METRICS[name].__module__}.{METRICS[name].__qualname__}")
        METRICS[name] = metric
        LOWER_IS_BETTER.update([name] if lower_is_better else [])
        INFRARED_ONLY.update([name] if infrared_only else [])
        return metric

    return add


def _mean(x: Tensor) -> Tensor:
    """Mean over a map's pixels, (N, 1, H, W) -> (N,)."""
    return x.mean(dim=(1, 2, 3))


def _histogram(x: Tensor) -> Tensor:
    """Share of each level of x rounded half to even and cast to 8 bit, (N, 1, H, W) -> (N, 256)."""
    levels = x.round().to(torch.int64).flatten(1) % 256
    return count_levels(levels, 256).to(x.dtype) / levels.shape[1]


@register_metric("EN")
def entropy(fused: Tensor, image_a: Tensor | None = None, image_b: Tensor | None = None) -> Tensor:
    """EN: entropy in bits of the histogram of F rounded half to even and cast to 8 bit."""
    return torch.special.entr(_histogram(fused)).sum(dim=1) / math.log(2)


@register_metric("CE", lower_is_better=True)
def cross_entropy(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """CE, lower is better: mean over the sources of sum p log2(p / q), p theirs, q of F, where both are not 0."""
    q, terms = _histogram(fused), []
    for p in map(_histogram, (image_a, image_b)):
        terms.append(torch.where((p > 0) & (q > 0), p * (p / q).log2(), 0).sum(dim=1))
    return sum(terms) / 2


@register_metric("SD")
def standard_deviation(fused: Tensor, image_a: Tensor | None = None, image_b: Tensor | None = None) -> Tensor:
    """SD: standard deviation of F, divisor HW."""
    return fused.flatten(1).std(dim=1, correction=0)


@register_metric("SF")
def spatial_frequency(fused: Tensor, image_a: Tensor | None = None, image_b: Tensor | None = None) -> Tensor:
    """SF: root of the mean squared horizontal plus the mean squared vertical difference."""
    return (_mean(fused.diff(dim=3) ** 2) + _mean(fused.diff(dim=2) ** 2)).sqrt()


@register_metric("AG")
def average_gradient(fused: Tensor, image_a: Tensor | None = None, image_b: Tensor | None = None) -> Tensor:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border; NaN for a line of pixels.

    VIFB, whose AG MGFusion's paper cites, divides the sum by (H - 1)(W - 1), FILM by HW.
    """
    if min(fused.shape[2:]) < 2:
        return fused.new_full((len(fused),), math.nan)
    gy, gx = torch.gradient(fused, dim=(2, 3))
    return _mean(((gx**2 + gy**2) / 2).sqrt())


@register_metric("MI")
def mutual_information(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """MI: I(F; A) + I(F; B) in nats, every distinct value a level of its own.

    I(X; Y) = H(X) + H(Y) - H(X, Y), the entropies in float64 always.
    """

    def information(*images: Tensor) -> Tensor:
        # equal numbers have equal bits once -0 is 0, and the bits are quicker to sort
        f, a, b = (rank_levels((x.double() + 0).view(torch.int64).flatten()) for x in images)
        pairs = (rank_levels(f * len(f) + x) for x in (a, b))
        counts = count_levels(torch.stack([f, a, b, *pairs]), len(f))
        h_f, h_a, h_b, h_fa, h_fb = torch.special.entr(counts.double() / len(f)).sum(dim=1)
        return 2 * h_f + h_a + h_b - h_fa - h_fb

    return torch.stack([information(*images) for images in zip(fused, image_a, image_b)]).to(fused.dtype)


@register_metric("MSE", lower_is_better=True)
def mean_squared_error(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """MSE: mean over both sources of the mean squared difference to F."""
    return (_mean((image_a - fused) ** 2) + _mean((image_b - fused) ** 2)) / 2


@register_metric("PSNR")
def peak_signal_to_noise(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """PSNR in dB: 10 log10(max(F)^2 / MSE). The peak is the fused image's own maximum, as published."""
    return 10 * (fused.amax(dim=(1, 2, 3)) ** 2 / mean_squared_error(fused, image_a, image_b)).log10()


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation over the pixels, (N, 1, H, W) x 2 -> (N,); NaN if one of them is constant."""
    constant = [(z.amax(dim=(1, 2, 3)) == z.amin(dim=(1, 2, 3))) for z in (x, y)]
    x, y = (z - _mean(z).view(-1, 1, 1, 1) for z in (x, y))
    correlation = _mean(x * y) / (_mean(x**2) * _mean(y**2)).sqrt()
    return correlation.masked_fill(constant[0] | constant[1], math.nan)


@register_metric("CC")
def correlation_coefficient(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """CC: mean of the Pearson correlations of F with A and with B."""
    return (_pearson(image_a, fused) + _pearson(image_b, fused)) / 2


@register_metric("SCD")
def sum_of_correlations_of_differences(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """SCD (Aslantas and Bendes 2015): corr(A, F - B) + corr(B, F - A)."""
    return _pearson(image_a, fused - image_b) + _pearson(image_b, fused - image_a)


def _layers(fused: Tensor, image_a: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as (2, N, H, W), and F as (1, N, H, W).

    Where A and B are one pair repeated by `expand`, as for several results of it, they are (2, 1, H, W): what is
    computed of them alone is computed once.
    """
    repeated = len(fused) > 1 and image_a.stride(0) == image_b.stride(0) == 0
    pair = [x[:1] if repeated else x for x in (image_a, image_b)]
    return torch.stack(pair).squeeze(2), fused.squeeze(1)[None]


def _centred(sources: Tensor, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_layers` less one offset a pair, and the offset (1, n, 1, 1).

    Variances do not change with an offset, and around zero they keep more digits in float32.
    """
    offset = sources.mean(dim=(0, 2, 3), keepdim=True)
    return sources - offset, fused - offset, offset


@register_metric("VIFF")
def visual_information_fidelity(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """VIFF: vifp(A, F) + vifp(B, F), pixel-domain visual information fidelity (Sheikh and Bovik 2006).

    Four scales with Gaussian windows 17, 9, 5, 3; noise variance 2 on the 0..255 scale. The reference
    of each term is the source. Both terms share the maps of F. NaN under 41 pixels a side.
    """
    if min(fused.shape[-2:]) < VIFF_MIN_SIDE:
        return fused.new_full((len(fused),), math.nan)
    eps, noise = 1e-10, 2.0
    sources, target, _ = _centred(*_layers(fused, image_a, image_b))
    numerator = denominator = 0
    for size in (17, 9, 5, 3):
        window = gaussian_window(size, size / 5)
        if size < 17:
            sources, target = (filter_windows(x, window, step=2) for x in (sources, target))
        (_, of_source), (_, of_target), covariance = local_moments(sources, target, window)
        of_source, of_target = of_source.clamp(min=0), of_target.clamp(min=0)

        flat = of_source < eps
        gain = (covariance / (of_source + eps)).masked_fill(flat | (of_target < eps), 0).clamp(min=0)
        residual = (of_target - gain * covariance).clamp(min=eps)
        of_source = of_source.masked_fill(flat, 0)
        numerator = numerator + torch.log1p(gain**2 * of_source / (residual + noise)).sum(dim=(2, 3))  # (2, N)
        denominator = denominator + torch.log1p(of_source / noise).sum(dim=(2, 3))
    return (numerator / denominator).nan_to_num(nan=1.0).sum(dim=0)


@register_metric("Qabf")
def edge_preservation(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Qabf (Xydeas and Petrovic 2000): how much of the sources' edge strength and angle F keeps, in [0, 1].

    Sobel with zero border; weights are the sources' edge strengths. NaN if no source has an edge.
    """

    def edges(x: Tensor) -> tuple[Tensor, Tensor]:
        sx, sy = sobel(x)
        return (sx**2 + sy**2).sqrt(), torch.where(sx == 0, math.pi / 2, torch.atan(sy / sx))

    (source, angle), (target, target_angle) = map(edges, _layers(fused, image_a, image_b))
    # the smaller strength over the larger; where they are equal, the published form has the strength itself
    ratio = torch.minimum(source, target) / torch.maximum(source, target)
    ratio = torch.where(source == target, target, ratio)
    agreement = 1 - (angle - target_angle).abs() / (math.pi / 2)
    kept_strength = 0.9994 / (1 + torch.exp(-15 * (ratio - 0.5)))
    kept_angle = 0.9879 / (1 + torch.exp(-22 * (agreement - 0.8)))
    kept = (kept_strength * kept_angle * source).sum(dim=(2, 3)).sum(dim=0)
    return kept / source.sum(dim=(2, 3)).sum(dim=0)


@register_metric("SSIM")
def structural_similarity(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """SSIM: ssim(F, A) + ssim(F, B), scikit-image's defaults: 7 x 7 uniform window, sample covariance.

    Peak 255. The mean is over whole windows. NaN under 7 pixels a side.
    """
    if min(fused.shape[-2:]) < SSIM_WINDOW:
        return fused.new_full((len(fused),), math.nan)
    sources, target, offset = _centred(*_layers(fused, image_a, image_b))
    window = [1 / SSIM_WINDOW] * SSIM_WINDOW
    luminance, structure = _similarities(sources, target, offset, window, SSIM_WINDOW**2)
    return (luminance * structure).mean(dim=(2, 3)).sum(dim=0)


def _similarities(
    sources: Tensor, fused: Tensor, offset: Tensor, window: list[float], sample: float = math.inf
) -> tuple[Tensor, Tensor]:
    """The two maps of SSIM of `_centred` images: luminance; contrast and structure.

    Args:
        sample: pixels of a window, for the sample's variance; infinite for the population's.
    """
    (mean_s, variance_s), (mean_f, variance_f), covariance = local_moments(sources, fused, window)
    mean_s, mean_f, unbiased = mean_s + offset, mean_f + offset, 1 / (1 - 1 / sample)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_s * mean_f + c1) / (mean_s**2 + mean_f**2 + c1)
    return luminance, (2 * unbiased * covariance + c2) / (unbiased * (variance_s + variance_f) + c2)


@register_metric("MSSSIM")
def multi_scale_similarity(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """MSSSIM (Wang, Simoncelli and Bovik 2003): msssim(F, A) + msssim(F, B). Rewards structure at all scales.

    Five scales, each the means over 2 x 2 pixels of the one before; Gaussian window 11 x 11, sigma 1.5, whole windows;
    mean contrast and structure of each scale, and luminance of the last, to the power of its weight. A mean below 0
    counts as 0. Peak 255. NaN under 176 pixels a side.
    """
    if min(fused.shape[-2:]) < MSSSIM_MIN_SIDE:
        return fused.new_full((len(fused),), math.nan)
    sources, target, offset = _centred(*_layers(fused, image_a, image_b))
    product = 1
    for scale, weight in enumerate(MSSSIM_WEIGHTS):
        if scale:
            sources, target = F.avg_pool2d(sources, 2), F.avg_pool2d(target, 2)
        luminance, similarity = _similarities(sources, target, offset, gaussian_window(11, 1.5))
        if scale == len(MSSSIM_WEIGHTS) - 1:
            similarity = luminance * similarity
        product = product * similarity.mean(dim=(2, 3)).clamp(min=0) ** weight
    return product.sum(dim=0)


def _weighted_quality(sources: Tensor, fused: Tensor) -> Tensor:
    """Q_W of `_layers` in float64: (N,); NaN under 8 pixels a side, or if both sources are flat."""
    if min(fused.shape[-2:]) < QW_WINDOW:
        return fused.new_full((fused.shape[1],), math.nan)
    # sums of eighths are exact, and so is a variance of 0
    (mean_s, variance_s), (mean_f, variance_f), covariance = local_moments(sources, fused, [1 / QW_WINDOW] * QW_WINDOW)
    variance_s, variance_f = variance_s.clamp(min=0), variance_f.clamp(min=0)
    variances, squares = variance_s + variance_f, mean_s**2 + mean_f**2
    structure = torch.where(variances > 0, 2 * covariance / variances, 1)
    luminance = torch.where(squares > 0, 2 * mean_s * mean_f / squares, 1)
    share = variance_s / variance_s.sum(dim=0)  # NaN where both sources are flat: no weight
    quality = (share * luminance * structure).sum(dim=0)
    weight = variance_s.amax(dim=0)
    return (weight * quality.masked_fill(weight <= 0, 0)).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))


@register_metric("QW")
def weighted_fusion_quality(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """QW (Piella and Heijmans 2003), in [-1, 1]: how well F keeps each window of the source that varies more there.

    In all windows of 8 x 8, lambda Q(A, F) + (1 - lambda) Q(B, F), where Q is the universal quality index of Wang and
    Bovik (2002) and lambda the share of A in the sum of the sources' variances; the mean over the windows is weighted
    by the larger variance. Rewards the structure, brightness and contrast of the sharper source. Computed in float64.
    """
    layers = (x.double() for x in _layers(fused, image_a, image_b))
    return _weighted_quality(*layers).to(fused.dtype)


@register_metric("QE")
def edge_fusion_quality(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """QE (Piella and Heijmans 2003): QW of the images times QW of their edge images, in [-1, 1]. Rewards kept edges.

    The edge image is the norm of the Prewitt derivatives, zero border, and the exponent of the second factor 1, as in
    the toolbox of Liu et al. (2012).
    """
    sources, target = (x.double() for x in _layers(fused, image_a, image_b))
    edges = (torch.hypot(*prewitt(x)) for x in (sources, target))
    return (_weighted_quality(sources, target) * _weighted_quality(*edges)).to(fused.dtype)


@register_metric("FMI")
def feature_mutual_information(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """FMI of gradients (Haghighat et al. 2011, by the code of their Fast-FMI, 2014), at most 1. Rewards kept gradients.

    In each window of 3 x 3 the horizontal derivatives, stretched to 0..1 and divided by their sum, count as a
    distribution over the nine places (1/9 each where they are equal). The joint distribution of two is that of Nelsen:
    the product of both, moved towards Frechet's bound by their correlation. Mean over the windows and both sources of
    2 I(F, S) / (H(F) + H(S)); 1 where the derivatives are equal, 0 without entropy. NaN under 3 pixels a side.
    """
    if min(fused.shape[-2:]) < 3:
        return fused.new_full((len(fused),), math.nan)
    slopes = [torch.gradient(x, dim=3)[0].transpose(2, 3) for x in (fused, image_a, image_b)]  # (N, 1, W, H)
    totals = []
    for start in range(0, slopes[0].shape[2] - 2, FMI_STRIP):
        target, *sources = (F.unfold(slope[:, :, start : start + FMI_STRIP + 2], 3) for slope in slopes)  # (N, 9, L)
        totals.append(sum(_shared_information(target, source).sum(dim=1) for source in sources))
    height, width = fused.shape[-2:]
    return sum(totals) / (2 * (height - 2) * (width - 2))


def _shared_information(f: Tensor, s: Tensor) -> Tensor:
    """2 I(F, S) / (H(F) + H(S)) of windows (N, 9, L), see FMI: (N, L)."""
    (pdf_f, cdf_f, sd_f, flat_f), (pdf_s, cdf_s, sd_s, flat_s) = map(_as_distribution, (f, s))
    c = torch.cosine_similarity(pdf_f - 1 / 9, pdf_s - 1 / 9, dim=1, eps=1e-30).masked_fill(flat_f | flat_s, 0)
    rows, columns = cdf_f[:, :, None], cdf_s[:, None]
    # Frechet's upper bound where they correlate, else the lower one, as cumulative distributions (N, 9, 9, L)
    bound = torch.where(c[:, None, None] >= 0, torch.minimum(rows, columns), (rows + columns - 1).clamp(min=0))
    farthest = (bound - rows * columns).sum(dim=(1, 2))  # the covariance at the bound
    share = (c * sd_f * sd_s / farthest).masked_fill(farthest.abs() < 1e-12, 0)[:, None, None]
    bound = bound.diff(dim=1, prepend=torch.zeros_like(bound[:, :1]))
    bound = bound.diff(dim=2, prepend=torch.zeros_like(bound[:, :, :1]))
    joint = share * bound + (1 - share) * pdf_f[:, :, None] * pdf_s[:, None]
    entropies = sum(torch.special.entr(pdf).sum(dim=1) for pdf in (pdf_f, pdf_s))
    together = -torch.xlogy(joint, joint.abs()).sum(dim=(1, 2))
    information = torch.where(entropies > 0, 2 * (entropies - together) / entropies, 0)
    return torch.where((f == s).all(dim=1), 1, information)


def _as_distribution(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows (N, 9, L) as distributions over nine places: density, cumulative; deviation; whether it is even."""
    low, high = x.aminmax(dim=1, keepdim=True)
    flat = low == high
    x = torch.where(flat, 1, (x - low) / (high - low))
    pdf, place = x / x.sum(dim=1, keepdim=True), torch.arange(9, device=x.device, dtype=x.dtype)[:, None]
    variance = (pdf * place**2).sum(dim=1) - (pdf * place).sum(dim=1) ** 2
    return pdf, pdf.cumsum(dim=1), variance.clamp(min=0).sqrt(), flat[:, 0]


@register_metric("Nabf", lower_is_better=True)
def fusion_artefacts(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Nabf (Petrovic 2007, as modified by Shreyamsha Kumar 2013), lower is better: edges of F that no source has.

    Over pixels where F's edge is stronger than those of both sources, the sum of (1 - Q(A, F)) wA + (1 - Q(B, F)) wB,
    over the sum of wA + wB at all pixels. Q as in Qabf with constants of its own, Sobel / 8 with a reflected border,
    w = strength^1.5 where that is 2 or more, else 0.001. Rewards an F without noise, rings and halos.
    """

    def edges(x: Tensor) -> tuple[Tensor, Tensor]:
        sx, sy = (derivative / 8 for derivative in sobel(x, border="reflect"))
        return torch.hypot(sx, sy), torch.atan(sx / sy).nan_to_num(nan=0)

    if min(fused.shape[-2:]) < 2:
        return fused.new_full((len(fused),), math.nan)
    (source, angle), (target, target_angle) = map(edges, _layers(fused, image_a, image_b))
    ratio = torch.minimum(source, target) / torch.maximum(source, target).clamp(min=1e-30)
    agreement = ((angle - target_angle).abs() - math.pi / 2).abs() * 2 / math.pi
    kept_strength = 0.9999 / (1 + torch.exp(-19 * (ratio - 0.5)))
    kept_angle = 0.9995 / (1 + torch.exp(-22 * (agreement - 0.5)))
    lost = 1 - (kept_strength * kept_angle).sqrt()
    weight = torch.where(source >= 2, source**1.5, 0.001)
    new = target > source.amax(dim=0, keepdim=True)
    return (new * lost * weight).sum(dim=(0, 2, 3)) / weight.sum(dim=(0, 2, 3))


@register_metric("EI")
def edge_intensity(fused: Tensor, image_a: Tensor | None = None, image_b: Tensor | None = None) -> Tensor:
    """EI: mean Sobel magnitude of F, replicated border."""
    return _mean(torch.hypot(*sobel(fused, border="replicate")))


def _stretch(x: Tensor) -> Tensor:
    """Every (H, W) to 0..255 by its own range, rounded half up; a black one stays, another constant one is NaN."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    return torch.where(high == 0, x, ((x - low) * 255 / (high - low) + 0.5).floor())


def _in_frequency(x: Tensor, sensitivity: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    """Filter periodic images by `sensitivity` of the radius r = |(2 u W, 2 v H)| / scale, u and v in cycles a pixel."""
    h, w = x.shape[-2:]
    v = torch.fft.fftfreq(h, dtype=x.dtype, device=x.device)[:, None] * (2 * h / scale)
    u = torch.fft.rfftfreq(w, dtype=x.dtype, device=x.device) * (2 * w / scale)
    return torch.fft.irfft2(torch.fft.rfft2(x) * sensitivity(torch.hypot(u, v)), s=(h, w))


@register_metric("Qcv", lower_is_better=True)
def chen_varshney(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Qcv (Chen and Varshney 2007), lower is better: squared differences that the eye sees, where a source is salient.

    The differences source - F of the stretched images are filtered by a contrast sensitivity and averaged
    over blocks of 16 x 16; the weight of a block is the sum of the source's Sobel strength to the fifth.
    """
    side = 16
    sources, target = map(_stretch, _layers(fused, image_a, image_b))
    seen = _in_frequency(
        sources - target, lambda r: 2.6 * (0.0192 + 0.144 * r) * torch.exp(-((0.144 * r) ** 1.1)), scale=8
    )
    gx, gy = sobel(sources)
    padding = (0, -fused.shape[3] % side, 0, -fused.shape[2] % side)  # the last blocks are filled up with zeros
    strength, difference = (F.avg_pool2d(F.pad(x, padding), side) for x in ((gx**2 + gy**2) ** 2.5, seen**2))
    weighted = (strength * difference).sum(dim=(2, 3)).sum(dim=0)
    return weighted / strength.sum(dim=(2, 3)).sum(dim=0)


@register_metric("Qcb")
def chen_blum(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """Qcb (Chen and Blum 2009): how much of the sources' local contrast, as the eye sees it, F keeps, in [0, 1].

    Computed in float64 always. Deep inside a large black area the definition compares rounding errors, so
    there even two correct programs differ, by some 0.01 on a medical image.
    """
    half = 15

    def contrast(x: Tensor) -> Tensor:
        seen = _in_frequency(
            _stretch(x.double()),
            lambda r: torch.exp(-((r / 15.3870) ** 2)) - 0.7622 * torch.exp(-((r / 1.3456) ** 2)),
            scale=30,
        )
        narrow, wide = (
            filter_windows(
                F.pad(seen, (half,) * 4),
                [math.exp(-(t**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma) for t in range(-half, half + 1)],
            )
            for sigma in (2, 4)
        )
        contrast = (narrow / wide - 1).abs()
        return contrast**3 / (contrast**2 + 1e-4)

    source, target = map(contrast, _layers(fused, image_a, image_b))
    kept = torch.minimum(source, target) / torch.maximum(source, target)
    kept = (source**2 * kept).sum(dim=0) / (source**2).sum(dim=0)
    return kept.mean(dim=(1, 2)).to(fused.dtype)


def _exposure_similarity(fused: Tensor, image_a: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (N, H, W) of MEFSSIM: the similarity of contrast and structure, and that of luminance."""
    sources, target = (F.pad(x / 255, (5,) * 4) for x in _layers(fused, image_a, image_b))  # a border of zeros
    window = [weight * math.sqrt(MEFSSIM_MASS) for weight in gaussian_window(11, 11 / 6)]
    (mean, variance), ((mean_f,), (variance_f,)), covariance = local_moments(sources, target, window)
    c1, c2 = 0.01**2, 0.03**2

    of_a = variance[0] >= variance[1]  # A is the reference
    structure = (2 * torch.where(of_a, *covariance) + c2) / (variance_f + torch.where(of_a, *variance) + c2)

    overall = mean.mean(dim=(2, 3), keepdim=True)
    exposedness = torch.exp(-((mean - 0.5) ** 2 + (overall - 0.5) ** 2) / 0.08)
    expected = (exposedness * mean).sum(dim=0) / exposedness.sum(dim=0)
    luminance = (2 * mean_f * expected + c1) / (mean_f**2 + expected**2 + c1)
    return structure, luminance


@register_metric("MEFSSIM")
def exposure_fusion_similarity(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """MEFSSIM (Ma, Zeng and Wang 2015), as MEF-Net's authors train with it: how much structure F keeps, in [-1, 1].

    Mean over all pixels of (2 cov(F, R) + C2) / (var F + var R + C2), where R is the source with the larger variance
    at that pixel (A where they are equal). Images in 0..1, Gaussian window 11 x 11, sigma 11/6, zero border, one
    scale, C2 = 0.03^2. 1 for A = B = F, flat ones too. Differentiable, so that a training can maximise it. Meant for
    exposures and test.stretch=clamp: a stretch to the full range changes what is measured.
    """
    return _exposure_similarity(fused, image_a, image_b)[0].mean(dim=(1, 2))


@register_metric("MEFSSIMl")
def exposure_fusion_similarity_with_luminance(fused: Tensor, image_a: Tensor, image_b: Tensor) -> Tensor:
    """MEFSSIMl: MEFSSIM with the local luminance, in [-1, 1].

    Each pixel's term is times (2 mF mY + C1) / (mF^2 + mY^2 + C1), C1 = 0.01^2. mF is F's local mean; mY weights
    those of the sources by exp(-(m - 0.5)^2 / 0.08) exp(-(M - 0.5)^2 / 0.08), M the mean of m over the image: how
    well exposed a source is there, and as a whole. The rest is as in MEFSSIM.
    """
    structure, luminance = _exposure_similarity(fused, image_a, image_b)
    return (structure * luminance).mean(dim=(1, 2))


@register_metric("TC", infrared_only=True)
def target_contrast(fused: Tensor, image_a: Tensor, image_b: Tensor | None = None) -> Tensor:
    """TC, for an infrared source A: how much of what is warm survives in F, in [-1, 1.5].

    The contrast of a target of A (see `targets`) is its mean less that of its ring; those of A's own contrast of 15
    levels or less do not count. TC is the mean over the targets of F's contrast in units of A's, each cut to
    [-1, 1.5]: 1 for F = A, 0 where F does not show the target, below 0 where it is darker than what is around it.
    NaN without a target. Found on the CPU and computed in float64 always. Meant for test.stretch=clamp: a stretch
    to the full range raises every contrast of F.
    """
    return torch.stack([kept.mean() for kept in kept_contrast(fused, image_a)]).to(fused.dtype)


@register_metric("TClost", lower_is_better=True, infrared_only=True)
def lost_targets(fused: Tensor, image_a: Tensor, image_b: Tensor | None = None) -> Tensor:
    """TClost, lower is better: the share of A's targets whose contrast F keeps to less than 0.3, in [0, 1].

    Targets and NaN are those of TC. The mean over a set is that of the images' shares, so that an image counts
    once however many targets it has. Exactly 0.3 is not lost, however it is rounded.
    """
    lost = [(kept < 0.3 - 1e-9).double().mean() for kept in kept_contrast(fused, image_a)]
    return torch.stack(lost).to(fused.dtype)


def gradient_deviation(fused: Tensor, truth: Tensor) -> Tensor:
    """GMSD to the truth (Xue et al. 2014), lower is better: the standard deviation of the similarity of gradients.

    Images are halved by means over 2 x 2 pixels first; Prewitt / 3, zero border, constant 170. 0 where F is the truth.
    """
    strength_f, strength_t = (torch.hypot(*prewitt(F.avg_pool2d(x, 2))) / 3 for x in (fused, truth))
    similarity = (2 * strength_f * strength_t + 170) / (strength_f**2 + strength_t**2 + 170)
    return similarity.flatten(1).std(dim=1)


def noise_ratio_to_truth(fused: Tensor, truth: Tensor) -> Tensor:
    """PSNR of F to the truth in dB, peak 255; inf where they are equal."""
    return 10 * (255**2 / _mean((fused - truth) ** 2)).log10()


def similarity_to_truth(fused: Tensor, truth: Tensor) -> Tensor:
    """SSIM of F and the truth, in [-1, 1], as in `structural_similarity`."""
    truth = truth.expand_as(fused)
    return structural_similarity(fused, truth, truth) / 2


TRUTH_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # metric(fused, truth) -> (N,)
    "PSNR_truth": noise_ratio_to_truth,
    "SSIM_truth": similarity_to_truth,
    "GMSD_truth": gradient_deviation,
}
LOWER_IS_BETTER.add("GMSD_truth")


def check_metrics(names: Iterable[str]) -> None:
    """InputError if a name is not in METRICS."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'; {nearest_or_broken(name, METRICS)}")


def measure(
    fused: str | Path | np.ndarray,
    a: str | Path | np.ndarray,
    b: str | Path | np.ndarray,
    metrics: Sequence[str] = PAPER_METRICS,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Measure a fused image as tables do: of gray images in 8 bit, in float64.

    Args:
        fused, a, b: files, or arrays (H, W) gray or (H, W, 3) RGB, of one size; uint8, uint16 or floats in [0, 1],
            which are rounded to 8 bit. `open_images` makes them gray.
        metrics: names in METRICS.

    Returns:
        {metric: value}; NaN where a metric is undefined.

    Raises:
        InputError: an unknown metric, what `open_images` refuses, not enough memory.
    """
    check_metrics(metrics)
    opened = open_images({"fused": fused, "a": a, "b": b}, as_8bit=True)
    fused, a, b = (to_8bit(as_unit(gray), "clamp") for gray, _ in opened)
    return measure_all([fused], a, b, metrics, device)[0]


@torch.inference_mode()
def measure_all(
    fused: Sequence[np.ndarray],
    a: np.ndarray,
    b: np.ndarray,
    metrics: Sequence[str],
    device: str | torch.device = "cpu",
    truth: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """Measure several results of one pair, (H, W) uint8 each: {metric: value} of each.

    Where there is a `truth`, what F should be, TRUTH_METRICS follow. InputError if there is not enough memory.
    """

    def levels(*images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack(images))[:, None].to(device).double()  # (N, 1, H, W)

    task = "compute the metrics of {} x {} pixels".format(*a.shape)
    with enough_memory(task, "leave some out of test.metrics, or use device=cpu"):
        rows = []
        for start in range(0, len(fused), TOGETHER):
            results = levels(*fused[start : start + TOGETHER])
            sources = [levels(source).expand_as(results) for source in (a, b)]
            columns = {metric: METRICS[metric](results, *sources) for metric in metrics}
            if truth is not None:
                columns |= {name: metric(results, levels(truth)) for name, metric in TRUTH_METRICS.items()}
            rows += [dict(zip(columns, row)) for row in torch.stack([*columns.values()], dim=1).tolist()]
    return rows
