"""How networks compute: in strips of rows, in groups of channels, in bf16, compiled, with activation checkpointing.

net/restormer.py, net/film.py and net/mgfusion.py say what is computed; this file keeps it small and fast. But for
rounding and `precision` nothing here changes a result, and tests/test_net.py holds that.

Almost all of the time goes to maps that are many times wider than C and leave every cache. So without gradients, on a
CPU or with a tile, layers run over strips of rows, and no map wider than C is ever whole: memory is bounded at any
image size. Everywhere else they run once, over the whole map. Maps are (N, C, H, W), channels last in memory.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

STRIP_PIXELS = 32768  # of a strip on the CPU: its widest map fits the cache
STRIP_ROWS = 16  # at least, or the halo costs more than the cache gives
GROUP = 64  # hidden channels of the feed-forward network at a time, on the CPU


@dataclass
class Compute:
    """How all networks of this process compute; `configure_compute` sets it.

    Attributes:
        bf16: the feed-forward networks, most of a block's work, and FILM's cross-attention multiply in bfloat16. All
            else stays float32: sums over the image and residual sums let the error of bf16 add up.
        tile: rows that are computed at a time without gradients; None: as many as the cache of a CPU likes, all on a
            GPU.
        checkpointing: in training, compute the inside of every Restormer block again in the backward pass.
        compile: torch.compile every Restormer block: nearly all of the time, one graph for all of equal width (and,
            without gradients, for images of any size).
    """

    bf16: bool = False
    tile: int | None = None
    checkpointing: bool = False
    compile: bool = False


COMPUTE = Compute()


def configure_compute(
    precision: str = "fp32", tile: int | None = None, checkpointing: bool = False, compile: bool = False
) -> None:
    """Set how all networks in this process compute, see `Compute`; InputError if there is no compiler.

    Precision "tf32" is float32 here: utils/process.py says how GPUs multiply it.
    """
    if compile and not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl")):
        raise InputError("compile=true needs a C++ compiler such as g++; install one, or use compile=false")
    COMPUTE.bf16, COMPUTE.tile = precision == "bf16", tile
    COMPUTE.checkpointing, COMPUTE.compile = checkpointing, compile


def autocast(x: Tensor) -> AbstractContextManager:
    """The context of matrix products that may be in bf16, on the device of x."""
    return torch.autocast(x.device.type, torch.bfloat16) if COMPUTE.bf16 else nullcontext()


# ---- layers as functions of their weights, so that a part of the channels can be computed


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
    """GELU of a map (N, C, H, W), in NHWC, where F.gelu is twice as fast."""
    return F.gelu(x) if torch.onnx.is_in_onnx_export() else F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def concat(maps: tuple[Tensor, ...]) -> Tensor:
    """Maps (N, C_i, H, W) as one of all channels; a single one is returned as it is."""
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


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


# ---- strips of rows


class Strip(NamedTuple):
    """Some rows of a map that are computed at a time."""

    rows: slice  # where they are in the map
    input_rows: slice  # the same rows with their halo, in the map
    output_rows: slice  # where the rows are within the input rows


ALL = slice(None)
WHOLE = Strip(ALL, ALL, ALL)


def rows_of(x: Tensor, rows: slice) -> Tensor:
    """Some rows of x (N, C, H, W), a view; x as it is for ALL, so that nothing of it is in an exported network."""
    return x if rows == ALL else x[:, :, rows]


def is_whole(x: Tensor) -> bool:
    """True if x (N, C, H, W) is computed at once: with gradients, for export, and on a GPU without a tile."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return True
    return COMPUTE.tile is None and x.device.type != "cpu"


def strips(x: Tensor, halo: int) -> list[Strip]:
    """The strips of x (N, C, H, W); one of all rows where it is computed at once.

    A function that sees up to `halo` rows around a row is exact on a strip once the halo is cut off: at
    an inner edge the rows that saw zero padding are cut, at the border of the map there is none to cut.
    """
    if is_whole(x):
        return [WHOLE]
    n, _, height, width = x.shape
    found = []
    count = COMPUTE.tile or max(STRIP_ROWS, STRIP_PIXELS // (max(n, 1) * width))
    for top in range(0, height, count):
        bottom, first = min(top + count, height), max(top - halo, 0)
        found.append(Strip(slice(top, bottom), slice(first, bottom + halo), slice(top - first, bottom - first)))
    return found


def by_strips(function: Callable[..., Tensor], *maps: Tensor, halo: int = 0) -> Tensor:
    """function(*maps), computed strip by strip.

    Args:
        function: called with the input rows of every map, and the `Strip`; returns the result on its output rows.
        maps: (N, C, H, W) of equal H.
        halo: rows around a row that its result depends on.
    """
    out, parts = None, strips(maps[0], halo)
    for strip in parts:
        part = function(*(rows_of(x, strip.input_rows) for x in maps), strip)
        if len(parts) == 1:
            return part
        if out is None:
            size = (*part.shape[:2], maps[0].shape[2], part.shape[3])
            out = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        out[:, :, strip.rows] = part
    return out


# ---- Restormer blocks


def recomputed(function: Callable[..., Tensor], *args) -> Tensor:
    """function(*args); the backward pass computes it again instead of keeping its maps (activation checkpointing)."""
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


@cache
def compiled(function: Callable, gradients: bool) -> Callable:
    """torch.compile of a function, once for all blocks.

    Without gradients it is for any size of image. A backward pass is compiled for each size anew, of which a training
    has few: PyTorch 2.14 cannot compile it for any size.
    """
    return torch.compile(function, dynamic=not gradients)


def as_configured(function: Callable) -> Callable:
    """A function of a block and its maps, compiled if COMPUTE says so."""
    return compiled(function, torch.is_grad_enabled()) if COMPUTE.compile else function


def run_whole(function: Callable[[nn.Module, Tensor], Tensor], block: nn.Module, x: Tensor) -> Tensor:
    """function(block, x), compiled and with checkpointing if COMPUTE says so."""
    function = as_configured(function)
    return recomputed(function, block, x) if COMPUTE.checkpointing else function(block, x)


def run_block(block: nn.Module, *maps: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    """then(block(concat(maps))), `then` a function of each pixel; in strips neither is ever whole.

    A block that offers no `by_strips`, as RestormerBlock does, is called as any module.
    """
    if is_whole(maps[0]) or not hasattr(block, "by_strips"):
        return then(block(concat(maps)))
    return block.by_strips(*maps, then=then)


def restormer_by_strips(block: nn.Module, *maps: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    """`run_block` of a RestormerBlock: once over the strips for the sums of its attention, once for the rest."""
    sums, local = as_configured(strip_sums), as_configured(strip_output)
    parts = [sums(block, concat(tuple(rows_of(x, s.input_rows) for x in maps)), s) for s in strips(maps[0], halo=1)]
    mixing = block.attention.mixing(*(torch.stack(part).sum(dim=0) for part in zip(*parts)))
    return by_strips(lambda *rows: then(local(block, mixing, concat(rows[:-1]), rows[-1])), *maps, halo=2)


def strip_sums(block: nn.Module, x: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
    """What the attention needs of the whole image, of a strip of x: one row around it counts."""
    attention = block.attention
    return attention.sums(rows_of(attention.expand(block.norm1(x), attention.qk), strip.output_rows))


def strip_output(block: nn.Module, mixing: Tensor, x: Tensor, strip: Strip) -> Tensor:
    """The block's output on a strip of x, which needs two rows around it."""
    x = x + block.attention.mix(block.attention.expand(block.norm1(x), block.attention.v), mixing)
    return rows_of(x, strip.output_rows) + block.feed_forward(block.norm2(x), strip.output_rows)
