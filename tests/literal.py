"""Slow literal forms, kept as oracles: what the formulas say, before any rewriting.

LiteralFILM carries the published names in the published order, so the published state dict loads into it as it is.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, correlate, label
from scipy.signal import convolve2d
from torch import Tensor, nn

# metrics of utils/metrics.py that have no form in METRICS below; a metric must be here or there

# --- FILM ---------------------------------------------------------------------------------------


class WithBiasLayerNorm(nn.Module):
    """Layer normalisation over channels by mean and variance of (N, HW, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(dim))
        self.body.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / torch.sqrt(variance + 1e-5) * self.body.weight + self.body.bias
        return x.transpose(1, 2).reshape(n, c, h, w)


class Restormer(nn.Module):
    def __init__(self, dim: int, heads: int = 8, expansion: int = 4):
        super().__init__()
        self.heads = heads
        hidden = dim * expansion
        self.norm1, self.attn = WithBiasLayerNorm(dim), nn.Module()
        self.attn.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.attn.qkv = nn.Conv2d(dim, dim * 3, 1, bias=False)
        self.attn.qkv_dwconv = nn.Conv2d(dim * 3, dim * 3, 3, padding=1, groups=dim * 3, bias=False)
        self.attn.project_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm2, self.ffn = WithBiasLayerNorm(dim), nn.Module()
        self.ffn.project_in = nn.Conv2d(dim, hidden * 2, 1, bias=False)
        self.ffn.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=False)
        self.ffn.project_out = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.attn.qkv_dwconv(self.attn.qkv(self.norm1(x))).chunk(3, dim=1)
        q, k, v = (t.reshape(n, self.heads, c // self.heads, h * w) for t in (q, k, v))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.attn.temperature).softmax(dim=-1)
        x = x + self.attn.project_out((attention @ v).reshape(n, c, h, w))
        a, b = self.ffn.dwconv(self.ffn.project_in(self.norm2(x))).chunk(2, dim=1)
        return x + self.ffn.project_out(F.gelu(a) * b)


class Stage(nn.Module):
    """A and B written out under the published names."""

    def __init__(self, in_channels: int, dim: int = 32, hidden: int = 256, grid=(288, 384)):
        super().__init__()
        self.grid, self.hidden = grid, hidden
        for source in "AB":
            setattr(self, f"conv{source}1", nn.Conv2d(in_channels, dim, 3, padding=1, bias=False))
            setattr(self, f"prelu{source}1", nn.PReLU())
            setattr(self, f"conv{source}2", nn.Conv2d(dim, dim, 1))
            setattr(self, f"prelu{source}2", nn.PReLU())
            setattr(self, f"conv{source}3", nn.Conv2d(2 * dim, dim, 1))
            setattr(self, f"prelu{source}3", nn.PReLU())
        self.restormerA1, self.restormerB1 = Restormer(dim), Restormer(dim)
        for attention in ("cross_attentionA1", "cross_attentionA2"):  # of A and of B
            setattr(self, attention, nn.Module())
            getattr(self, attention).multihead_attn = nn.MultiheadAttention(hidden, 8, batch_first=True)
        for source in "AB":
            setattr(self, f"imagef2textf{source}1", nn.Module())
            getattr(self, f"imagef2textf{source}1").conv = nn.Conv2d(dim, dim, 1)

    def one(self, x: Tensor, text: Tensor, source: str, attention: str) -> Tensor:
        feature = getattr(self, f"restormer{source}1")(
            getattr(self, f"prelu{source}1")(getattr(self, f"conv{source}1")(x))
        )
        grid = F.interpolate(getattr(self, f"imagef2textf{source}1").conv(feature), self.grid, mode="nearest")
        tokens = grid.contiguous().view(len(x), -1, self.hidden)
        out, _ = getattr(self, attention).multihead_attn(text, tokens, tokens)  # weights returned, unused
        pooled = F.normalize(out.mean(dim=1, keepdim=True), p=1, dim=2)
        gate = F.interpolate((tokens * pooled).view(grid.shape), feature.shape[-2:], mode="nearest")
        guided = getattr(self, f"prelu{source}2")(getattr(self, f"conv{source}2")(gate)) + feature
        both = torch.cat((feature, guided), 1)
        return getattr(self, f"prelu{source}3")(getattr(self, f"conv{source}3")(both))

    def forward(self, a: Tensor, b: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(a, text, "A", "cross_attentionA1"), self.one(b, text, "B", "cross_attentionA2")


class LiteralFILM(nn.Module):
    """The published network, value projection over all tokens and resizes that do nothing included."""

    def __init__(self, grid=(288, 384)):
        super().__init__()
        self.text_process = nn.Module()
        self.text_process.conv = nn.Conv1d(768, 256, 1)
        self.restormerca1, self.restormerca2, self.restormerca3 = (Stage(n, grid=grid) for n in (1, 32, 32))
        self.restormer1, self.restormer2, self.restormer3 = Restormer(64), Restormer(32), Restormer(32)
        self.conv1, self.conv2 = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 1, 1)

    def forward(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        text = self.text_process.conv(text.transpose(1, 2)).transpose(1, 2)
        for stage in (self.restormerca1, self.restormerca2, self.restormerca3):
            a, b = stage(a, b, text)
        x = self.conv1(self.restormer1(torch.cat((a, b), 1)))
        return torch.sigmoid(self.conv2(self.restormer3(self.restormer2(x))))


def published_checkpoint() -> dict:
    """A checkpoint as FILM's authors save it, with the random weights of reference/film_forward.npz."""
    noise = torch.Generator().manual_seed(8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = LiteralFILM()
    with torch.no_grad():
        for weight in model.parameters():
            weight += (0.15 if weight.ndim > 1 else 0.05) * torch.randn(weight.shape, generator=noise)
    return {"model": {f"module.{name}": weight for name, weight in model.state_dict().items()}, "epoch": 0, "step": 0}


# --- MGFusion (section 3), equation by equation on a state dict of ours -----------------------------


def mgfusion(state, a, b, clip, restormer):
    """The fused image in eval mode. `restormer(prefix, x)` runs the Restormer blocks of that name."""

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def feature_layer(name, x):
        x = conv(f"{name}.0", x)
        mean, var, weight, bias = (
            state[f"{name}.1.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.01 * x)

    def adapter(name, vector):
        return linear(f"{name}.1", linear(f"{name}.0", vector))[:, :, None, None]

    def weight_prediction(name, x):
        return torch.sigmoid(conv(f"{name}.2", conv(f"{name}.0", x).clamp(min=0)))

    def encoder(name, image):
        x = feature_layer(f"{name}.feature_layers.1", feature_layer(f"{name}.feature_layers.0", image))
        return restormer(f"{name}.restormer", x)

    def cii(name, x):
        w_i = state[f"{name}.clip_weight"]
        integrated = w_i * clip_i + (1 - w_i) * clip_v
        return x + weight_prediction(f"{name}.sep", x) * adapter(f"{name}.adapter", integrated)

    def sobel(x):
        padded, (h, w) = F.pad(x, (1, 1, 1, 1)), x.shape[2:]

        def moved(dy, dx):
            return padded[:, :, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]

        gx = sum(k * (moved(d, 1) - moved(d, -1)) for d, k in ((-1, 1), (0, 2), (1, 1)))
        gy = sum(k * (moved(1, d) - moved(-1, d)) for d, k in ((-1, 1), (0, 2), (1, 1)))
        return gx.abs() + gy.abs()

    clip_i, clip_v = clip[:, 0], clip[:, 1]
    f_i, f_v = cii("cii_a", encoder("ire", a)), cii("cii_b", encoder("vie", b))
    f = torch.cat([adapter("cff.ira", clip_i) * f_i, adapter("cff.via", clip_v) * f_v], dim=1)
    f = f + weight_prediction("cff.sawp", sobel(f)) * f
    f = feature_layer("decoder.feature_layer", restormer("decoder.restormer", f))
    return (torch.tanh(conv("decoder.reconstruction", f)) + 1) / 2


# --- metrics, (H, W) float64 NumPy arrays in 0..255 -------------------------------------------------


def entropy(f, a, b):
    levels = np.rint(f).astype(np.uint8)
    p = np.bincount(levels.ravel(), minlength=256) / levels.size
    return -sum(q * math.log2(q) for q in p if q > 0)


def standard_deviation(f, a, b):
    return math.sqrt(((f - f.mean()) ** 2).mean())


def spatial_frequency(f, a, b):
    return math.sqrt(((f[:, 1:] - f[:, :-1]) ** 2).mean() + ((f[1:] - f[:-1]) ** 2).mean())


def average_gradient(f, a, b):
    gy, gx = np.gradient(f)
    return np.sqrt((gx**2 + gy**2) / 2).mean()


def mutual_information(f, a, b):
    def information(x, y):
        pairs, counts = np.unique(np.stack([x.ravel(), y.ravel()]), axis=1, return_counts=True)
        px, py = (dict(zip(*np.unique(z, return_counts=True))) for z in (x, y))
        n = x.size
        return sum(c / n * math.log(c * n / (px[u] * py[v])) for (u, v), c in zip(pairs.T, counts))

    return information(f, a) + information(f, b)


def mean_squared_error(f, a, b):
    return (((a - f) ** 2).mean() + ((b - f) ** 2).mean()) / 2


def peak_signal_to_noise(f, a, b):
    return 10 * math.log10(f.max() ** 2 / mean_squared_error(f, a, b))


def correlation_coefficient(f, a, b):
    return (np.corrcoef(a.ravel(), f.ravel())[0, 1] + np.corrcoef(b.ravel(), f.ravel())[0, 1]) / 2


def sum_of_correlations_of_differences(f, a, b):
    return np.corrcoef(a.ravel(), (f - b).ravel())[0, 1] + np.corrcoef(b.ravel(), (f - a).ravel())[0, 1]


def vifp(reference, distorted):
    numerator = denominator = 0.0
    eps, noise = 1e-10, 2
    for scale in range(1, 5):
        size = 2 ** (4 - scale + 1) + 1
        y, x = np.mgrid[:size, :size] - size // 2
        window = np.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2))
        window /= window.sum()

        def blur(image, window=window):
            return convolve2d(image, window, mode="valid")

        if scale > 1:
            reference, distorted = blur(reference)[::2, ::2], blur(distorted)[::2, ::2]
        mu1, mu2 = blur(reference), blur(distorted)
        s1, s2 = blur(reference**2) - mu1**2, blur(distorted**2) - mu2**2
        s12 = blur(reference * distorted) - mu1 * mu2
        s1[s1 < 0] = 0
        s2[s2 < 0] = 0
        g = s12 / (s1 + eps)
        sv = s2 - g * s12
        g[s1 < eps] = 0
        sv[s1 < eps] = s2[s1 < eps]
        s1[s1 < eps] = 0
        g[s2 < eps] = 0
        sv[s2 < eps] = 0
        sv[g < 0] = s2[g < 0]
        g[g < 0] = 0
        sv[sv <= eps] = eps
        numerator += np.log10(1 + g**2 * s1 / (sv + noise)).sum()
        denominator += np.log10(1 + s1 / noise).sum()
    return numerator / denominator if denominator else 1.0


def visual_information_fidelity(f, a, b):
    return vifp(a, f) + vifp(b, f)


def edge_preservation(f, a, b):
    horizontal = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)
    vertical = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], float)

    def edges(image):
        # convolve2d flips its kernel: flip it first
        sx = convolve2d(image, horizontal[::-1, ::-1], mode="same")
        sy = convolve2d(image, vertical[::-1, ::-1], mode="same")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.hypot(sx, sy), np.where(sx == 0, math.pi / 2, np.arctan(sy / sx))

    gf, af = edges(f)
    numerator = denominator = 0
    for source in (a, b):
        gs, angle = edges(source)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(gs > gf, gf / gs, np.where(gs == gf, gf, gs / gf))
        alignment = 1 - np.abs(angle - af) / (math.pi / 2)
        strength = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        orientation = 0.9879 / (1 + np.exp(-22 * (alignment - 0.8)))
        numerator += (strength * orientation * gs).sum()
        denominator += gs.sum()
    return numerator / denominator


def structural_similarity(f, a, b):
    from skimage.metrics import structural_similarity as ssim

    return ssim(f, a, data_range=255) + ssim(f, b, data_range=255)


def cross_entropy(f, a, b):
    def one(source):
        p, q = (np.bincount(np.rint(x).astype(np.uint8).ravel(), minlength=256) / x.size for x in (source, f))
        return sum(p[i] * math.log2(p[i] / q[i]) for i in range(256) if p[i] > 0 and q[i] > 0)

    return (one(a) + one(b)) / 2


def sobel_strength(image, mode):
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)
    gx, gy = (correlate(image, k, mode=mode) for k in (kernel, kernel.T))
    return np.sqrt(gx**2 + gy**2)


def edge_intensity(f, a, b):
    return sobel_strength(f, "nearest").mean()


def stretched(image):
    if not image.any():
        return image
    return np.floor(255 * (image - image.min()) / (image.max() - image.min()) + 0.5)


def frequency_filtered(image, sensitivity, scale):
    h, w = image.shape
    u, v = np.meshgrid(2 * np.fft.fftfreq(w), 2 * np.fft.fftfreq(h))
    r = np.sqrt((u * w / scale) ** 2 + (v * h / scale) ** 2)
    return np.real(np.fft.ifft2(np.fft.fft2(image) * sensitivity(r)))


def chen_varshney(f, a, b):
    f, a, b = map(stretched, (f, a, b))
    h, w = f.shape
    numerator = denominator = 0.0
    for source in (a, b):
        strength = sobel_strength(source, "constant")
        seen = frequency_filtered(
            source - f, lambda r: 2.6 * (0.0192 + 0.144 * r) * np.exp(-((0.144 * r) ** 1.1)), scale=8
        )
        for top in range(0, h, 16):
            for left in range(0, w, 16):
                block = np.s_[top : top + 16, left : left + 16]
                saliency = (strength[block] ** 5).sum()
                numerator += saliency * (seen[block] ** 2).sum() / 256  # outside the image it is 0, and counts
                denominator += saliency
    return numerator / denominator


def chen_blum(f, a, b):
    y, x = np.mgrid[-15:16, -15:16]

    def contrast(image):
        seen = frequency_filtered(
            stretched(image), lambda r: np.exp(-((r / 15.387) ** 2)) - 0.7622 * np.exp(-((r / 1.3456) ** 2)), scale=30
        )
        g2, g4 = (
            convolve2d(seen, np.exp(-(x**2 + y**2) / (2 * s**2)) / (2 * math.pi * s**2), mode="same") for s in (2, 4)
        )
        c = np.abs(g2 / g4 - 1)
        return c**3 / (c**2 + 1e-4)

    f, a, b = map(contrast, (f, a, b))
    qa, qb = (np.minimum(source, f) / np.maximum(source, f) for source in (a, b))
    weight = a**2 / (a**2 + b**2)
    return (weight * qa + (1 - weight) * qb).mean()


def exposure_fusion_maps(f, a, b):
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * (11 / 6) ** 2)).astype(np.float32)  # as the authors have it
    line /= np.float32(line.sum(dtype=np.float64))
    window = np.outer(line, line).astype(float)

    def blur(image):
        return convolve2d(image, window, mode="same")

    f, a, b = f / 255, a / 255, b / 255
    mf, ma, mb = blur(f), blur(a), blur(b)
    vf, va, vb = blur(f**2) - mf**2, blur(a**2) - ma**2, blur(b**2) - mb**2
    covariance = np.where(va >= vb, blur(f * a) - mf * ma, blur(f * b) - mf * mb)
    cs = (2 * covariance + 0.03**2) / (vf + np.maximum(va, vb) + 0.03**2)
    wa, wb = (np.exp(-((m - 0.5) ** 2) / 0.08) * np.exp(-((m.mean() - 0.5) ** 2) / 0.08) for m in (ma, mb))
    my = (wa * ma + wb * mb) / (wa + wb)
    return cs, (2 * mf * my + 0.01**2) / (mf**2 + my**2 + 0.01**2)


def exposure_fusion_similarity(f, a, b):
    return exposure_fusion_maps(f, a, b)[0].mean()


def exposure_fusion_similarity_with_luminance(f, a, b):
    cs, luminance = exposure_fusion_maps(f, a, b)
    return (cs * luminance).mean()


def kept_contrast(f, a):
    """Kept contrast of every target, none dilated within a window of its own."""
    a32 = a.astype(np.float32)
    local = a32 - cv2.GaussianBlur(a32, (0, 0), 0.06 * max(a.shape))  # the spec's own rounding
    regions, count = label(local > 25, structure=np.ones((3, 3)))
    kept = []
    for i in range(1, count + 1):
        target = regions == i
        if target.sum() < 40 or target.sum() > 0.03 * a.size:
            continue
        near, far = (binary_dilation(target, np.ones((side, side))) for side in (7, 31))
        ring = far & ~near & (local < 10)
        if ring.sum() <= 30:
            continue
        contrast = a[target].mean() - a[ring].mean()
        if contrast > 15:
            kept.append(np.clip((f[target].mean() - f[ring].mean()) / contrast, -1, 1.5))
    return np.array(kept)


def target_contrast(f, a, b):
    kept = kept_contrast(f, a)
    return kept.mean() if len(kept) else math.nan


def lost_targets(f, a, b):
    kept = kept_contrast(f, a)
    return (kept < 0.3).mean() if len(kept) else math.nan


def multi_scale_similarity(f, a, b):
    from skimage.metrics import structural_similarity as ssim

    if min(f.shape) < 176:
        return math.nan

    def one(x, y):
        weights, product = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333], 1.0
        for scale, weight in enumerate(weights):
            if scale:
                x, y = (z[: len(z) // 2 * 2, : z.shape[1] // 2 * 2] for z in (x, y))
                x, y = ((z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4 for z in (x, y))
            options = dict(gaussian_weights=True, sigma=1.5, truncate=3.4, use_sample_covariance=False)
            whole = ssim(x, y, data_range=255, full=True, **options)[1]
            mx, my = (gaussian(z) for z in (x, y))
            luminance = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
            last = scale == len(weights) - 1
            product *= max((whole if last else whole / luminance)[5:-5, 5:-5].mean(), 0) ** weight
        return product

    def gaussian(z):
        line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        return correlate(z, np.outer(line, line) / line.sum() ** 2)

    return one(a, f) + one(b, f)


def weighted_fusion_quality(f, a, b):
    def quality(x, y):
        vx, vy, mx, my = x.var(), y.var(), x.mean(), y.mean()
        structure = 2 * ((x - mx) * (y - my)).mean() / (vx + vy) if vx + vy else 1
        return structure * (2 * mx * my / (mx**2 + my**2) if mx or my else 1)

    total = weights = 0.0
    for i in range(f.shape[0] - 7):
        for j in range(f.shape[1] - 7):
            wf, wa, wb = (x[i : i + 8, j : j + 8] for x in (f, a, b))
            if wa.var() + wb.var() > 0:
                share, weight = wa.var() / (wa.var() + wb.var()), max(wa.var(), wb.var())
                total += weight * (share * quality(wa, wf) + (1 - share) * quality(wb, wf))
                weights += weight
    return total / weights if weights else math.nan


def edge_fusion_quality(f, a, b):
    kernel = np.array([[1, 0, -1]] * 3, float)

    def edges(x):
        return np.sqrt(correlate(x, kernel, mode="constant") ** 2 + correlate(x, kernel.T, mode="constant") ** 2)

    return weighted_fusion_quality(f, a, b) * weighted_fusion_quality(*map(edges, (f, a, b)))


def fusion_artefacts(f, a, b):
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float) / 8

    def edges(x):
        gv, gh = correlate(x, kernel, mode="mirror"), correlate(x, kernel.T, mode="mirror")
        return np.hypot(gv, gh), np.arctan2(gv, gh)

    (gf, af), *found = map(edges, (f, a, b))
    numerator = denominator = 0.0
    for i, j in np.ndindex(*f.shape):
        lost, weights = 0.0, 0.0
        for g, angle in found:
            g, angle, direction = g[i, j], angle[i, j], af[i, j]
            # angles are those of lines: modulo pi, in (-pi/2, pi/2]
            angle, direction = (math.atan(math.tan(z)) for z in (angle, direction))
            ratio = min(g, gf[i, j]) / max(g, gf[i, j]) if g and gf[i, j] else 0
            kept = 0.9999 / (1 + math.exp(-19 * (ratio - 0.5)))
            kept *= 0.9995 / (1 + math.exp(-22 * (abs(abs(angle - direction) - math.pi / 2) * 2 / math.pi - 0.5)))
            weight = g**1.5 if g >= 2 else 0.001
            lost, weights = lost + (1 - math.sqrt(kept)) * weight, weights + weight
        numerator += lost * all(gf[i, j] > g[i, j] for g, _ in found)
        denominator += weights
    return numerator / denominator


def feature_mutual_information(f, a, b):
    """Window by window, the places of one in the order of columns."""

    def entropy_of(p):
        p = p[p != 0]
        return -(p * np.log2(np.abs(p))).sum()

    def shared(x, y):
        if np.array_equal(x, y):
            return 1.0
        flat = np.ptp(x) == 0 or np.ptp(y) == 0
        p, q = (np.ones(9) if np.ptp(z) == 0 else (z - z.min()) / np.ptp(z) for z in (x, y))
        p, q = p / p.sum(), q / q.sum()
        c = 0.0 if flat else np.corrcoef(p, q)[0, 1]
        places = np.arange(1, 10)
        sd = [math.sqrt(max(0.0, (z * places**2).sum() - (z * places).sum() ** 2)) for z in (p, q)]
        cp, cq = np.cumsum(p), np.cumsum(q)
        bound = np.zeros((10, 10))
        bound[1:, 1:] = np.minimum.outer(cp, cq) if c >= 0 else np.maximum(np.add.outer(cp, cq) - 1, 0)
        covariance = (bound[1:, 1:] - np.outer(cp, cq)).sum()
        share = 0.0 if abs(covariance) < 1e-12 else c / (covariance / (sd[0] * sd[1]))
        joint = share * np.diff(np.diff(bound, axis=0), axis=1) + (1 - share) * np.outer(p, q)
        both = entropy_of(p) + entropy_of(q)
        return 2 * (both - entropy_of(joint)) / both if both else 0.0

    gf, *sources = (np.gradient(x, axis=1) for x in (f, a, b))
    windows = [np.s_[i : i + 3, j : j + 3] for i, j in np.ndindex(f.shape[0] - 2, f.shape[1] - 2)]
    return np.mean([shared(gf[w].T.ravel(), g[w].T.ravel()) for w in windows for g in sources])


def gradient_deviation(f, truth):
    kernel = np.array([[1, 0, -1]] * 3) / 3

    def strength(x):
        x = x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2]
        x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
        return np.hypot(correlate(x, kernel, mode="constant"), correlate(x, kernel.T, mode="constant"))

    x, y = strength(f), strength(truth)
    return ((2 * x * y + 170) / (x**2 + y**2 + 170)).std(ddof=1)


METRICS = {
    "EN": entropy,
    "SD": standard_deviation,
    "SF": spatial_frequency,
    "AG": average_gradient,
    "VIFF": visual_information_fidelity,
    "Qabf": edge_preservation,
    "MI": mutual_information,
    "MSE": mean_squared_error,
    "CC": correlation_coefficient,
    "PSNR": peak_signal_to_noise,
    "SCD": sum_of_correlations_of_differences,
    "SSIM": structural_similarity,
    "Qcv": chen_varshney,
    "Qcb": chen_blum,
    "CE": cross_entropy,
    "EI": edge_intensity,
    "MEFSSIM": exposure_fusion_similarity,
    "MEFSSIMl": exposure_fusion_similarity_with_luminance,
    "MSSSIM": multi_scale_similarity,
    "QW": weighted_fusion_quality,
    "QE": edge_fusion_quality,
    "FMI": feature_mutual_information,
    "Nabf": fusion_artefacts,
    "TC": target_contrast,
    "TClost": lost_targets,
}
