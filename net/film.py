"""FILM: Image Fusion via Vision-Language Model (Zhao et al., ICML 2024, arXiv 2402.02235), section 3.

The forward pass is in `FILM.logits`: text projection, text-guided stages, decoder. Sizes are written as N (batch),
H x W (image), C (channels), L (text tokens), D (hidden width), T (image tokens). The published code departs from
the published figure, and this file follows the code, whose weights it opens:

    the paper's figure                 here                                in the published code
    ---------------------------------  ----------------------------------  ------------------------------------------
    text encoder of BLIP-2, frozen     utils/guides/text.py                features from files; the texts of A and B
                                                                           are one sequence for both sources
    -                                  FILM.text_projection                linear, 768 -> D
    image encoder                      Branch.embed, Branch.restormer      one in every stage, not one before all
    cross-attention, text as query     TextGuidance                        averaged over the text: one vector, not L
    feed forward                       TextGuidedBranch: gate and merge    the vector multiplies the tokens (a gate),
                                                                           then 1x1 convolutions; no feed forward
    (cross-attention, feed forward)    FILM.stages, Stage                  M = 3 stages; A and B have own weights
      x M
    concatenation                      Decoder.join                        after the last stage
    (Restormer + CNN) x N              Decoder                             3 Restormers, 1x1 convolutions, sigmoid
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from net.base import FusionNetwork, register
from net.compute import Strip, autocast, by_strips, pointwise, recomputed, rows_of, run_block
from net.restormer import RestormerBlock
from utils.errors import InputError


class TextGuidance(nn.Module):
    """Cross-attention of the text (query) over the image tokens (key, value), averaged over the text.

    The published network projects the values of all T tokens and averages the L outputs afterwards.
    With attention weights w[l, t], head values V(x) = Wv x + bv and output projection O, its result is

        mean_l O(sum_t w[l, t] V(x_t)) = O(Wv (sum_t mean_l w[l, t] x_t) + bv)      as sum_t w[l, t] = 1,

    so the weights are averaged over the text first, the raw tokens are pooled once per head, and only
    one vector is projected. tests/literal.py has the literal form.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dim, 3 * dim)  # query, key, value
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, text: Tensor, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Text (N, L, D), tokens (N, T, D), mask (N, L, True = a token) -> (N, 1, D) with L1 norm 1."""
        (wq, wk, wv), (bq, bk, bv) = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q = rearrange(F.linear(text, wq, bq), "n l (head d) -> n head l d", head=self.heads)
        k = rearrange(F.linear(tokens, wk, bk), "n t (head d) -> n head d t", head=self.heads)
        weights = self.mean_weights(q, k, text_mask)  # (N, heads, T)
        pooled = weights @ tokens  # (N, heads, D)
        wv = rearrange(wv, "(head d) c -> head d c", head=self.heads)
        value = rearrange(torch.einsum("nhc,hdc->nhd", pooled, wv), "n head d -> n 1 (head d)") + bv  # (N, 1, D)
        return F.normalize(self.out_proj(value).to(text.dtype), p=1, dim=-1)

    def mean_weights(self, q: Tensor, k: Tensor, text_mask: Tensor | None) -> Tensor:
        """softmax(q k / sqrt(d)) of q (N, heads, L, d), k (N, heads, d, T), mean over the L tokens -> (N, heads, T)."""
        share = token_share(q[:, 0], text_mask)[:, None]  # (N, 1, 1, L)
        step = 1 if q.device.type == "cpu" and not torch.compiler.is_exporting() else self.heads  # heads at a time
        parts = zip((q * q.shape[-1] ** -0.5).split(step, dim=1), k.split(step, dim=1))

        def of_some_heads(q: Tensor, k: Tensor) -> Tensor:
            return share @ (q @ k).softmax(dim=-1)  # (N, step, 1, T)

        return torch.cat([recomputed(of_some_heads, *part) for part in parts], dim=1).squeeze(2)


class MeanText(nn.Module):
    """An ablation of TextGuidance: O(mean of the text tokens), so that the vector knows the text and no image token."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, text: Tensor, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """As TextGuidance: text (N, L, D), tokens (N, T, D), mask (N, L) -> (N, 1, D) with L1 norm 1."""
        mean = token_share(text, text_mask) @ text  # (N, 1, D)
        return F.normalize(self.out_proj(mean).to(text.dtype), p=1, dim=-1)


def token_share(text: Tensor, text_mask: Tensor | None) -> Tensor:
    """Weights (N, 1, L) of a mean over the tokens of `text` (N, L, D) that are there: padding changes nothing."""
    mask = torch.ones_like(text[:, :, 0]) if text_mask is None else text_mask.to(text.dtype)
    return (mask / mask.sum(dim=1, keepdim=True))[:, None]


class Branch(nn.Module):
    """One source in one stage: convolution (`embed`), Restormer, text guidance (`guide`).

    Subclass this and implement `guide`. A stage passes channels, heads, blocks, block_class, hidden_dim and
    token_grid; take those that you do not use by `**sizes`, and pass them on.

    `in_channels` is 1 in the first stage (the image itself), C (`channels`) after. Each of the `blocks` is a
    `block_class`, called with (channels, heads).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        heads: int,
        blocks: int,
        block_class: type[nn.Module] = RestormerBlock,
        **sizes,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.act_in = nn.PReLU()
        self.restormer = nn.Sequential(*(block_class(channels, heads) for _ in range(blocks)))

    def embed(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) -> (N, C, H, W), before the Restormer."""
        return by_strips(lambda x, strip: rows_of(self.act_in(self.conv_in(x)), strip.output_rows), x, halo=1)

    def guide(self, feature: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """Features (N, C, H, W), text (N, L, D) and its mask (N, L, True = a token; None: all are) -> (N, C, H, W)."""
        raise NotImplementedError


class TextGuidedBranch(Branch):
    """FILM's branch: image tokens, their cross-attention with the text, text gate, stage output.

    A variant may replace a part of it: the class `guidance_class`, or the method `merge`.

    Args:
        hidden_dim: D, width of a token.
        heads: of both attentions.
        token_grid: (H, W) that the feature map is resized to before it is cut into tokens. The
            published weights depend on it (288, 384): a token is a run of D consecutive values of the
            flattened (C, H, W) map, not a pixel, so the grid fixes what a token means and T = C*H*W/D.
        sizes: of `Branch`.
    """

    guidance_class: type[nn.Module] = TextGuidance  # built and called as TextGuidance is
    halo = 0  # rows around a row that `merge` looks at: 1 for a 3x3 convolution

    def __init__(
        self, in_channels: int, channels: int, hidden_dim: int, heads: int, token_grid: tuple[int, int], **sizes
    ):
        super().__init__(in_channels, channels, heads, **sizes)
        self.hidden_dim, self.token_grid = hidden_dim, token_grid
        self.to_tokens = nn.Conv2d(channels, channels, 1)
        self.guidance = self.guidance_class(hidden_dim, heads)
        self.conv_gate = nn.Conv2d(channels, channels, 1)
        self.act_gate = nn.PReLU()
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)
        self.act_out = nn.PReLU()

    def guide(self, feature: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        grid = self.resized_tokens(feature)  # (N, C, 288, 384)
        tokens = grid.flatten(1).unflatten(1, (-1, self.hidden_dim))  # (N, T, D)
        with autocast(text):
            weights = self.guidance(text, tokens, text_mask)  # (N, 1, D)
        gated = (tokens * weights).view(grid.shape)  # (N, C, 288, 384): every token by the same D weights
        # the resize of the gate to H x W: columns at once, rows strip by strip, so that it is never whole
        gate = resize_nearest(gated, (grid.shape[2], feature.shape[3]))  # (N, C, 288, W)
        row = nearest_index(grid.shape[2], feature.shape[2], feature.device)  # of the gate, for each row of the image

        def merge_strip(feature: Tensor, strip: Strip) -> Tensor:
            return rows_of(self.merge(feature, gate.index_select(2, row[strip.input_rows])), strip.output_rows)

        return by_strips(merge_strip, feature, halo=self.halo)  # (N, C, H, W)

    def resized_tokens(self, feature: Tensor) -> Tensor:
        """to_tokens and the resize to the grid, which commute: first the one that leaves less to do."""
        weight, bias = self.to_tokens.weight.flatten(1), self.to_tokens.bias[:, None]
        shrink = torch.compiler.is_exporting() or feature[0, 0].numel() > math.prod(self.token_grid)
        if shrink:
            feature = resize_nearest(feature, self.token_grid)
        # channel-major at once, as tokens are cut
        x = torch.baddbmm(bias, weight.expand(feature.shape[0], -1, -1), feature.flatten(2)).view(feature.shape)
        return x if shrink else resize_nearest(x, self.token_grid)

    def merge(self, feature: Tensor, gate: Tensor) -> Tensor:
        """act(conv(concat(f, act(conv(gate)) + f))) of some rows, (N, C, h, W) each -> stage output (N, C, h, W)."""
        guided = self.act_gate(pointwise(gate, self.conv_gate.weight, self.conv_gate.bias))
        of_feature, of_guided = self.conv_out.weight.chunk(2, dim=1)  # of concat(feature, guided + feature)
        out = pointwise(feature, of_feature + of_guided, self.conv_out.bias)
        out += pointwise(guided, of_guided)
        return self.act_out(out)


class MeanTextBranch(TextGuidedBranch):
    """FILM's branch with the mean of the text in place of the cross-attention."""

    guidance_class = MeanText


class UnguidedBranch(Branch):
    """FILM's branch without a gate, and so without text: act(conv(f)), as `merge` gives where the gate adds nothing."""

    def __init__(self, in_channels: int, channels: int, **sizes):
        super().__init__(in_channels, channels, **sizes)
        self.conv_out = nn.Conv2d(channels, channels, 1)
        self.act_out = nn.PReLU()

    def guide(self, feature: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
        return self.act_out(pointwise(feature, self.conv_out.weight, self.conv_out.bias))


ABLATIONS = {"mean": (MeanTextBranch, "mean text"), "none": (UnguidedBranch, "no gate")}  # in place of FILM's branch


class Stage(nn.Module):
    """One stage of both sources: two branches of the same kind with weights of their own."""

    def __init__(self, branch_class: type[Branch], in_channels: int, **sizes):
        super().__init__()
        self.a = branch_class(in_channels, **sizes)
        self.b = branch_class(in_channels, **sizes)


class Decoder(nn.Module):
    """Both sources' features (N, C, H, W) -> the fused image before the sigmoid, (N, outputs, H, W).

    Call `join(a, b)`, then `forward` on its result; in two steps, so that the caller can free a and b. Sizes are as of
    `Branch`.
    """

    def __init__(self, channels: int, heads: int, blocks: int, outputs: int, block_class: type[nn.Module]):
        super().__init__()

        def restormer(width: int) -> nn.Sequential:
            return nn.Sequential(*(block_class(width, heads) for _ in range(blocks)))

        self.restormer1 = restormer(2 * channels)
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.restormer2 = restormer(channels)
        self.restormer3 = restormer(channels)
        self.output = nn.Conv2d(channels, outputs, 1)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """reduce(restormer1(concat(a, b))): (N, C, H, W) x 2 -> (N, C, H, W), where no map of 2C channels is whole."""
        maps, last = (a, b), len(self.restormer1) - 1
        for i, block in enumerate(self.restormer1):
            maps = (run_block(block, *maps, then=self.reduce if i == last else nn.Identity()),)
        return maps[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.restormer2(x)  # (N, C, H, W)
        x = self.restormer3(x)  # (N, C, H, W)
        return self.output(x)  # (N, outputs, H, W)


@register("film")
class FILM(FusionNetwork):
    """FILM with the sizes of the published network as defaults (2,070,235 parameters).

    A variant derives from it: it names another `branch_class`, `block_class` or `decoder_class`, or ends in another
    way than `forward`.

    Args:
        text_dim: width of a text token (BLIP-2: 768, MiniLM: 384).
        hidden_dim: D, width that text and image tokens share.
        channels: C.
        heads: attention heads, in the Restormer blocks and in the cross-attention.
        blocks: Restormer blocks wherever the figure has one Restormer.
        stages: text-guided stages.
        token_grid: (H, W) of the map that tokens are cut from, see TextGuidedBranch.
        guidance: "attention", by `branch_class`; in its place the ablations "mean", MeanTextBranch, and "none",
            UnguidedBranch, with which the network takes no text.

    Raises:
        InputError: sizes that do not divide: D and C by the heads, C*H*W of the token grid by D.
    """

    label = "FILM"
    inputs = ("text", "text_mask")
    branch_class: type[Branch] = TextGuidedBranch
    block_class: type[nn.Module] = RestormerBlock  # built with (channels, heads); (N, C, H, W) -> (N, C, H, W)
    decoder_class: type[nn.Module] = Decoder  # built and called as Decoder is
    image_channels = 1  # of what the first stage takes of a source
    outputs = 1  # maps that the decoder ends in

    def __init__(
        self,
        text_dim: int = 768,
        hidden_dim: int = 256,
        channels: int = 32,
        heads: int = 8,
        blocks: int = 1,
        stages: int = 3,
        token_grid: tuple[int, int] = (288, 384),
        guidance: Literal["attention", "mean", "none"] = "attention",
    ):
        super().__init__()
        if min(text_dim, hidden_dim, channels, heads, blocks, stages, *token_grid) < 1 or max(blocks, stages) > 100:
            raise InputError("the sizes under net must all be at least 1, net.blocks and net.stages at most 100")
        if channels % heads or hidden_dim % heads:
            raise InputError(
                f"net.channels ({channels}) and net.hidden_dim ({hidden_dim}) must be multiples of net.heads ({heads})"
            )
        if channels * token_grid[0] * token_grid[1] % hidden_dim:
            raise InputError(
                f"net.channels * net.token_grid ({channels} * {token_grid[0]} * {token_grid[1]}) must be "
                f"a multiple of net.hidden_dim ({hidden_dim})"
            )
        sizes = dict(channels=channels, heads=heads, blocks=blocks, block_class=self.block_class)
        guidance_sizes = dict(hidden_dim=hidden_dim, token_grid=tuple(token_grid))
        branch_class = self.branch_class
        if guidance != "attention":
            branch_class, words = ABLATIONS[guidance]
            self.label += f", {words}"
        if guidance == "none":
            self.inputs = ()
        self.text_projection = nn.Linear(text_dim, hidden_dim) if self.inputs else None
        self.stages = nn.ModuleList(
            Stage(branch_class, channels if i else self.image_channels, **sizes, **guidance_sizes)
            for i in range(stages)
        )
        self.decoder = self.decoder_class(outputs=self.outputs, **sizes)

    def forward(
        self, image_a: Tensor, image_b: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Fuse image_a and image_b, (N, 1, H, W) in [0, 1], guided by text (N, L, text_dim); None without a gate.

        `text_mask` (N, L) is True where there is a token; None means everywhere. Returns the fused
        image (N, 1, H, W) in [0, 1]. Any H and W.
        """
        return torch.sigmoid(self.logits(image_a, image_b, text, text_mask))

    def logits(self, a: Tensor, b: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
        """All of `forward` before the sigmoid, (N, outputs, H, W), so that a variant can end in another way."""
        if self.text_projection is not None:
            text = self.text_projection(text)  # (N, L, text_dim) -> (N, L, D)
        for stage in self.stages:  # step by step: so each map is freed as soon as the next one is there
            a = stage.a.embed(a)  # (N, C, H, W)
            a = stage.a.restormer(a)  # (N, C, H, W)
            a = stage.a.guide(a, text, text_mask)  # (N, C, H, W)
            b = stage.b.embed(b)
            b = stage.b.restormer(b)
            b = stage.b.guide(b, text, text_mask)
        x = self.decoder.join(a, b)  # (N, C, H, W)
        del a, b
        return self.decoder(x)  # (N, outputs, H, W)


def resize_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of (N, C, H, W) to `size` = (H, W); a map of that size is returned as it is."""
    if torch.compiler.is_exporting():  # the size is not known yet
        for dim, length in zip((-2, -1), size):
            x = x.index_select(dim, nearest_index(x.shape[dim], length, x.device))
        return x
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode="nearest")


def nearest_index(source: int, size: int, device: torch.device) -> Tensor:
    """Which of `source` places each of `size` places takes in a nearest-neighbour resize, (size)."""
    places = torch.arange(size, dtype=torch.float32, device=device)
    return (places * (source / size)).long().clamp(max=source - 1)
