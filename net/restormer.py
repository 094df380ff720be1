"""Restormer block: multi-Dconv head transposed attention and gated-Dconv feed-forward network.

Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022,
section 3 and figure 2. All maps are (N, C, H, W), channels last in memory; H and W are free.

Almost all of the time of a fusion network is spent here, on maps that are many times wider than C and
leave every cache. Three exact rewritings keep them small; tests/literal.py has the literal form:

- Attention across channels is one C x C matrix per image, output projection included, so v is
  multiplied once. The matrix needs only sums over the image (q k^T and |q|^2, |k|^2), added up strip by strip.
- Without gradients, on a CPU or with a tile, a block therefore runs twice over strips of rows, once for the
  sums and once for the rest, and no map wider than C is ever whole: memory is bounded at any image size.
  Everywhere else it runs once, over the whole map.
- The feed-forward network is a sum over its hidden channels, and runs over groups of them.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

STRIP_PIXELS = 32768  # of a strip on the CPU: its widest map fits the cache
STRIP_ROWS = 16  # at least, or the halo costs more than the cache gives
GROUP = 64  # hidden channels of the feed-forward network at a time, on the CPU


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution, (N, C, H, W) -> (N, C', H, W), as a matrix product over the channels of every pixel.

    ONNX Runtime has the channels of a map first in memory, and convolutions that are faster on it.
    """
    if torch.onnx.is_in_onnx_export():
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution of every channel by itself, zero padding, (N, C, H, W) -> (N, C, H, W)."""
    return F.conv2d(x, weight, padding=1, groups=len(weight))


def gelu(x: Tensor) -> Tensor:
    """GELU of a map (N, C, H, W) that is channels last in memory: twice as fast if PyTorch is shown it so."""
    return F.gelu(x) if torch.onnx.is_in_onnx_export() else F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Strip(NamedTuple):
    """Some rows of a map that are computed at a time."""

    rows: slice  # where they are in the map
    seen: slice  # the same rows with their halo, in the map
    inner: slice  # where the rows are within what is seen


ALL = slice(None)
WHOLE = Strip(ALL, ALL, ALL)


def cut(x: Tensor, rows: slice) -> Tensor:
    """Some rows of x (N, C, H, W), a view; x as it is for ALL, so that nothing of it is in an exported network."""
    return x if rows == ALL else x[:, :, rows]


def with_size(x: Tensor, height: int, width: int) -> Tensor:
    """A map (N, C, H, W) cut to `height` rows and `width` columns, or filled up with its last ones."""
    for dim, size in ((2, height), (3, width)):
        places = torch.arange(size, device=x.device).clamp(max=x.shape[dim] - 1)
        x = x.index_select(dim, places)
    return x


def even(x: Tensor) -> Tensor:
    """A map (N, C, H, W) with its last row and column twice where H and W are odd."""
    height, width = x.shape[-2:]
    return with_size(x, 2 * ((height + 1) // 2), 2 * ((width + 1) // 2))


def strips(height: int, rows: int, halo: int) -> Iterator[Strip]:
    """A map of `height` rows as strips of `rows` rows.

    A function that sees up to `halo` rows around a row is exact on a strip once the halo is cut off: at
    an inner edge the rows that saw zero padding are cut, at the border of the map there is none to cut.
    """
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(top - halo, 0)
        yield Strip(slice(top, bottom), slice(first, bottom + halo), slice(top - first, bottom - first))


def recomputed(function: Callable[..., Tensor], *args) -> Tensor:
    """function(*args); the backward pass computes it again instead of keeping its maps."""
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class RowStriped(nn.Module):
    """A module that runs over strips of rows where no gradients are wanted. `prepare` sets its attributes."""

    tile: int | None = None  # rows of a strip; None: by the cache on the CPU, the whole map on the GPU
    checkpointing = False  # a RestormerBlock keeps nothing inside for the backward pass, and computes it again

    def is_whole(self, x: Tensor) -> bool:
        """True if x (N, C, H, W) is computed at once: with gradients, for export, and on a GPU without a tile."""
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return True
        return self.tile is None and x.device.type != "cpu"

    def strips(self, x: Tensor, halo: int) -> list[Strip]:
        """The `strips` of x (N, C, H, W); one of all rows where it is computed at once."""
        if self.is_whole(x):
            return [WHOLE]
        n, _, height, width = x.shape
        return list(strips(height, self.tile or max(STRIP_ROWS, STRIP_PIXELS // (max(n, 1) * width)), halo))

    def by_strips(self, function: Callable[..., Tensor], *maps: Tensor, halo: int = 0) -> Tensor:
        """function(*maps), computed strip by strip.

        Args:
            function: called with what a strip sees of every map, and the `Strip`; returns the result on `strip.inner`.
            maps: (N, C, H, W) of equal H.
            halo: rows around a row that its result depends on.
        """
        out, parts = None, self.strips(maps[0], halo)
        for strip in parts:
            part = function(*(cut(x, strip.seen) for x in maps), strip)
            if len(parts) == 1:
                return part
            if out is None:
                size = (*part.shape[:2], maps[0].shape[2], part.shape[3])
                out = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
            out[:, :, strip.rows] = part
        return out


class MixedPrecision(nn.Module):
    """A module whose matrix products may be in bf16, between float32 in and out. `prepare` sets its attribute."""

    bf16 = False

    def autocast(self, x: Tensor) -> AbstractContextManager:
        """The context to compute in, where x is."""
        return torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def prepare(
    model: nn.Module,
    precision: str = "fp32",
    tile: int | None = None,
    checkpointing: bool = False,
    compile: bool = False,
) -> None:
    """Say how a network made of the modules of this file is to compute.

    But for rounding, only `precision` changes its results.

    Args:
        model: the network.
        precision: "bf16" for the feed-forward networks, most of a block's work, and the text guidance of FILM.
            All else stays float32: sums over the image and residual sums let the error of bf16 add up. "tf32" is
            float32 here: `set_up_process` of utils/process.py says for the whole process how GPUs multiply it.
        tile: rows that are computed at a time without gradients; None: as many as the cache of a CPU
            likes, all on a GPU.
        checkpointing: in training, compute the inside of every block again in the backward pass.
        compile: torch.compile every Restormer block: nearly all of the time, one graph for all of equal width (and,
            without gradients, for images of any size).

    Raises:
        InputError: there is no compiler.
    """
    if compile and not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl")):
        raise InputError("compile=true needs a C++ compiler such as g++; install one, or use compile=false")
    for module in model.modules():
        if isinstance(module, RowStriped):
            module.tile, module.checkpointing = tile, checkpointing
        if isinstance(module, MixedPrecision):
            module.bf16 = precision == "bf16"
        if isinstance(module, RestormerBlock):
            module.compiled = compile


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention (Restormer, section 3.1): attention across channels.

    The map of one head is C/heads x C/heads whatever the image size, and is global over the pixels:
    `sums` over any parts of the image, added, give `mixing`, which `mix` applies to any part.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.qk, self.v = heads, slice(2 * channels), slice(2 * channels, None)  # parts of the 3C channels
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

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


class GDFN(MixedPrecision):
    """Gated-Dconv feed-forward network (Restormer, section 3.2): gelu(a) * b between 1x1 convolutions."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        self.hidden = channels * expansion
        self.expand = nn.Conv2d(channels, 2 * self.hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * self.hidden, 2 * self.hidden, 3, padding=1, groups=2 * self.hidden, bias=False)
        self.project = nn.Conv2d(self.hidden, channels, 1, bias=False)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """The output on `rows` of x (N, C, H, W)."""
        if x.device.type != "cpu":
            with self.autocast(x):
                a, b = cut(self.expanded(x), rows).chunk(2, dim=1)
                return pointwise(gelu(a) * b, self.project.weight).to(x.dtype)
        out = None
        for first in range(0, self.hidden, GROUP):
            last = min(first + GROUP, self.hidden)
            with self.autocast(x):
                a, b = (cut(self.expanded(x, slice(i + first, i + last)), rows) for i in (0, self.hidden))
                part = pointwise(gelu(a) * b, self.project.weight[:, first:last])
            out = part.to(x.dtype) if out is None else out.add_(part)
        return out

    def expanded(self, x: Tensor, channels: slice = ALL) -> Tensor:
        """Some of the 2 * hidden channels before the gate, (N, channels, H, W)."""
        return depthwise(pointwise(x, self.expand.weight[channels]), self.depthwise.weight[channels])


def joined(maps: Iterable[Tensor]) -> Tensor:
    """Maps (N, C_i, H, W) as one of all channels; a single one is returned as it is."""
    maps = tuple(maps)
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


@cache
def compiled(function: Callable, gradients: bool) -> Callable:
    """torch.compile of a function, once for all blocks.

    Without gradients it is for any size of image. A backward pass is compiled for each size anew, of which a training
    has few: PyTorch 2.14 cannot compile it for any size.
    """
    return torch.compile(function, dynamic=not gradients)


class RestormerBlock(RowStriped):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); (N, C, H, W) -> (N, C, H, W).

    `forward(*maps, then)` concatenates several maps first, and applies `then`, a function of each pixel, to the result:
    strip by strip, so that neither is ever whole.

    Args:
        channels: C, a multiple of `heads`.
        heads: attention heads (FILM: 8).
        expansion: width of the feed-forward network in units of C (FILM: 4).
    """

    compiled = False  # `prepare` sets it

    def __init__(self, channels: int, heads: int = 8, expansion: int = 4):
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attention = MDTA(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.feed_forward = GDFN(channels, expansion)

    def forward(self, *maps: Tensor, then: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        whole, sums, local = (self.runnable(part) for part in (self.whole, self.sums, self.local))
        if self.is_whole(maps[0]):
            x = joined(maps)
            return then(recomputed(whole, x) if self.checkpointing else whole(x))
        parts = [sums(joined(cut(x, s.seen) for x in maps), s) for s in self.strips(maps[0], halo=1)]
        mixing = self.attention.mixing(*(torch.stack(part).sum(dim=0) for part in zip(*parts)))
        return self.by_strips(lambda *seen: then(local(mixing, joined(seen[:-1]), seen[-1])), *maps, halo=2)

    def runnable(self, part: Callable) -> Callable:
        """A method of this block, compiled where `prepare` said so."""
        return partial(compiled(part.__func__, torch.is_grad_enabled()), self) if self.compiled else part

    def whole(self, x: Tensor) -> Tensor:
        """The block on all of x at once: nothing is computed twice."""
        qkv = self.attention.expand(self.norm1(x))
        qk, v = qkv[:, self.attention.qk], qkv[:, self.attention.v]
        x = x + self.attention.mix(v, self.attention.mixing(*self.attention.sums(qk)))
        return x + self.feed_forward(self.norm2(x))

    def sums(self, x: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
        """What the attention needs of the whole image, of a strip of x: a row around it counts."""
        return self.attention.sums(cut(self.attention.expand(self.norm1(x), self.attention.qk), strip.inner))

    def local(self, mixing: Tensor, x: Tensor, strip: Strip) -> Tensor:
        """The block's output on a strip of x, which needs no more than two rows around it."""
        x = x + self.attention.mix(self.attention.expand(self.norm1(x), self.attention.v), mixing)
        return cut(x, strip.inner) + self.feed_forward(self.norm2(x), strip.inner)
