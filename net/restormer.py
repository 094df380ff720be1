"""Restormer block: multi-Dconv head transposed attention and gated-Dconv feed-forward network.

Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022,
section 3 and figure 2. All maps are (N, C, H, W); H and W are free.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention (Restormer, section 3.1): attention across channels.

    The map of one head is C/heads x C/heads whatever the image size, and is global over the pixels.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        qkv = self.qkv_depthwise(self.qkv(x))  # (N, 3C, H, W)
        q, k, v = rearrange(qkv, "n (three head c) h w -> three n head c (h w)", three=3, head=self.heads)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (N, heads, C/heads, C/heads)
        out = (scores * self.temperature).softmax(dim=-1) @ v  # (N, heads, C/heads, HW)
        return self.project(rearrange(out, "n head c (h w) -> n (head c) h w", h=h, w=w))


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (Restormer, section 3.2): gelu(a) * b between 1x1 convolutions."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depthwise(self.expand(x)).chunk(2, dim=1)  # (N, C * expansion, H, W) each
        return self.project(F.gelu(a) * b)


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
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))
