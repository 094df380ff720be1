"""Restormer block: multi-Dconv head transposed attention and gated-Dconv feed-forward network.

Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022,
section 3 and figure 2. All maps are (N, C, H, W); H and W are free. net/compute.py runs the same sums over strips of
rows where no gradients are wanted, and tests/literal.py has the literal form.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from net.compute import (
    ALL,
    GROUP,
    autocast,
    depthwise,
    gelu,
    is_whole,
    pointwise,
    restormer_by_strips,
    rows_of,
    run_whole,
)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention (section 3.1): attention across channels.

    softmax(q k^T * temperature) of one head is C/heads x C/heads whatever the image size. With the output projection
    it is one matrix C x C for an image, `mixing`, so v is multiplied once. It needs only sums over the pixels: `sums`
    over any parts of the image, added, give it, and `mix` applies it to any part.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.qk, self.v = heads, slice(2 * channels), slice(2 * channels, None)  # parts of the 3C channels
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.expand(x)  # (N, 3C, H, W)
        qk, v = qkv[:, self.qk], qkv[:, self.v]  # (N, 2C, H, W), (N, C, H, W)
        mixing = self.mixing(*self.sums(qk))  # (N, C, C)
        return self.mix(v, mixing)  # (N, C, H, W)

    def expand(self, x: Tensor, part: slice = ALL) -> Tensor:
        """q, k and v of x (N, C, H, W), or `part` of their 3C channels: (N, 3C, H, W)."""
        return depthwise(pointwise(x, self.qkv.weight[part]), self.qkv_depthwise.weight[part])

    def sums(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        """q k^T (N, C, C) and the squared norms of q and k (N, 2C), over the pixels of qk (N, 2C, h, W)."""
        qk = qk.flatten(2)
        q, k = qk.chunk(2, dim=1)
        return q @ k.transpose(1, 2), qk.square().sum(dim=2)

    def mixing(self, products: Tensor, squares: Tensor) -> Tensor:
        """Project(softmax(normalised q k^T * temperature)) as one matrix (N, C, C), from the `sums` of an image."""
        # (N, C) each, at least 1e-12 as in F.normalize; clamped before the root, whose gradient at 0 is none
        norm_q, norm_k = squares.clamp_min(1e-24).sqrt().chunk(2, dim=-1)
        scores = products / norm_q[:, :, None] / norm_k[:, None, :]
        scores = rearrange(scores, "n (a i) (b j) -> n i j a b", a=self.heads, b=self.heads)
        scores = rearrange(scores.diagonal(dim1=-2, dim2=-1), "n i j head -> n head i j")  # each head with itself
        attention = (scores * self.temperature).softmax(dim=-1)
        project = rearrange(self.project.weight, "o (head i) 1 1 -> head o i", head=self.heads)
        return rearrange(project @ attention, "n head o j -> n o (head j)")

    def mix(self, v: Tensor, mixing: Tensor) -> Tensor:
        """Apply `mixing` (N, C, C) to values (N, C, h, W)."""
        mixed = v.flatten(2).transpose(1, 2) @ mixing.transpose(1, 2)  # (N, hW, C), channels last as v is
        return mixed.transpose(1, 2).view(v.shape)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (section 3.2): project(gelu(a) * b), a and b the halves of the hidden map.

    It is a sum over the hidden channels, and on a CPU it runs over groups of them, whose maps fit the cache.
    """

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        self.hidden = channels * expansion
        self.expand = nn.Conv2d(channels, 2 * self.hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * self.hidden, 2 * self.hidden, 3, padding=1, groups=2 * self.hidden, bias=False)
        self.project = nn.Conv2d(self.hidden, channels, 1, bias=False)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """Maps (N, C, H, W) -> (N, C, H, W), or `rows` of it."""
        if x.device.type == "cpu":
            return self.by_groups(x, rows)
        with autocast(x):
            hidden = depthwise(pointwise(x, self.expand.weight), self.depthwise.weight)  # (N, 2 * hidden, H, W)
            a, b = rows_of(hidden, rows).chunk(2, dim=1)  # (N, hidden, H, W) each
            return pointwise(gelu(a) * b, self.project.weight).to(x.dtype)  # (N, C, H, W)

    def by_groups(self, x: Tensor, rows: slice) -> Tensor:
        """`forward`, added up over GROUP hidden channels at a time."""
        out = None
        for first in range(0, self.hidden, GROUP):
            last = min(first + GROUP, self.hidden)
            with autocast(x):
                halves = (slice(i + first, i + last) for i in (0, self.hidden))
                a, b = (
                    rows_of(depthwise(pointwise(x, self.expand.weight[half]), self.depthwise.weight[half]), rows)
                    for half in halves
                )
                part = pointwise(gelu(a) * b, self.project.weight[:, first:last])
            out = part.to(x.dtype) if out is None else out.add_(part)
        return out


class RestormerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C, a multiple of `heads`.
        heads: attention heads (FILM: 8).
        expansion: width of the feed-forward network in units of C (FILM: 4).
    """

    def __init__(self, channels: int, heads: int = 8, expansion: int = 4):
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attention = MDTA(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.feed_forward = GDFN(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        if is_whole(x):
            return run_whole(RestormerBlock.plain, self, x)
        return self.by_strips(x)

    def plain(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (N, C, H, W)
        return x + self.feed_forward(self.norm2(x))  # (N, C, H, W)

    def by_strips(self, *maps: Tensor, then: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """then(forward(concatenation of maps)), strip by strip, where neither is ever whole."""
        return restormer_by_strips(self, *maps, then=then)
