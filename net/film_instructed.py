"""FILM blend that obeys instructions: it edits the sources as they ask, and fuses these. See docs/instructions.md.

instruction ──► Reader ──► strengths of K instructions
                             ▼            ▼
A, B ─────────────────► Editor 1 ──► ... Editor K ──► the sources that are asked for ──► FILM blend ──► F
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import utils.instruct.guide  # registers the guide
import utils.instruct.loss  # noqa: F401  registers the loss
from net.base import register
from net.compute import Strip, by_strips, even, rows_of, strips, with_size
from net.film_blend import FILMBlend
from utils.errors import InputError

ALIKE = 8 / 255  # sources that differ by less on average need no fusion, the less the nearer they are: one was chosen


class Reader(nn.Module):
    """How strongly a text asks for each of K instructions: learned queries take `width` values each from its tokens."""

    def __init__(self, dim: int, instructions: int, queries: int = 8, width: int = 32):
        super().__init__()
        self.key = nn.Linear(dim, queries)
        self.value = nn.Linear(dim, queries * width)
        self.output = nn.Linear(queries * width, instructions)

    def forward(self, tokens: Tensor) -> Tensor:
        """Texts (N, L, dim), padded with zeros -> logits (N, K). A text without any token asks for nothing: -inf."""
        there = tokens.any(dim=2)[..., None]  # (N, L, 1)
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        attention = self.key(tokens).masked_fill(~there, -1e4).softmax(dim=1)  # (N, L, queries)
        value = self.value(tokens).unflatten(2, (attention.shape[2], -1))  # (N, L, queries, width)
        seen = torch.einsum("nlq,nlqw->nqw", attention, value).flatten(1)
        return self.output(F.gelu(seen)).masked_fill(~there.any(dim=1), -torch.inf)


class Overview(nn.Module):
    """Global brightness and contrast statistics, one vector."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv = nn.Conv2d(8, channels, 3, padding=1)
        self.sum_up = nn.Sequential(nn.Linear(3 * channels, width), nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Both images (N, 8, H/2, W/2) -> (N, width), from mean, deviation and maximum of features over the pixels."""
        parts = strips(x, halo=1)
        seen = [rows_of(F.relu(self.conv(rows_of(x, part.input_rows))), part.output_rows) for part in parts]
        count = x.shape[2] * x.shape[3]
        mean = sum(part.sum(dim=(2, 3)) for part in seen) / count
        variance = sum((part - mean[..., None, None]).square().sum(dim=(2, 3)) for part in seen) / count
        top = torch.stack([part.amax(dim=(2, 3)) for part in seen]).amax(dim=0)
        statistics = torch.cat([mean, (variance + 1e-6).sqrt(), top], dim=1)
        return self.sum_up((statistics + 0.01).log())  # in log space a brightness factor is an offset


class Block(nn.Module):
    """x + conv(gelu(conv(x) (1 + gamma) + beta)), 3x3; gamma and beta of each channel follow from the overview.

    The first convolution is dilated: recognising a warm target needs context.
    """

    def __init__(self, overview: int, channels: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.modulation = nn.Linear(overview, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, overview: Tensor) -> Tensor:
        gain, offset = self.modulation(overview)[..., None, None].chunk(2, dim=1)  # (N, C, 1, 1)
        return x + self.conv2(F.gelu(torch.addcmul(offset, self.conv1(x), 1 + gain)))


class Editor(nn.Module):
    """Edits both sources as one instruction asks: each becomes a mixture of both, and convolutions add detail.

    The mixture takes the sources as they are, to choose one, and with mean 0 and deviation 1, to change contrast. The
    convolutions run at half the resolution, with 2 x 2 pixels as channels (FFDNet, Zhang et al. 2018): a wider view for
    a quarter of the work. The overview of the pair modulates them, and weights the mixture.
    """

    def __init__(self, channels: int, blocks: int, overview: int = 24):
        super().__init__()
        self.overview = Overview(channels, overview)
        self.mix = nn.Linear(overview, 2 * 4 + 2)  # of four images for each source, and an offset
        self.conv_in = nn.Conv2d(8, channels, 3, padding=1)
        dilations = [2**i for i in range(blocks)]
        self.blocks = nn.ModuleList(Block(overview, channels, dilation) for dilation in dilations)
        self.conv_out = nn.Conv2d(channels, 2 * 8, 3, padding=1)  # share and detail
        self.halo = sum(dilations) + blocks + 2  # how far the convolutions see
        for layer in (self.mix, self.conv_out):  # training starts at the sources as they are
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """A and B (N, 2, H, W) in [0, 1] -> what to add to them (N, 2, H, W)."""
        height, width = images.shape[-2:]
        x = rearrange(even(images), "n c (h a) (w b) -> n (c a b) h w", a=2, b=2)  # (N, 8, H/2, W/2)
        overview = self.overview(x)
        weights, offset = self.mix(overview).split([8, 2], dim=1)
        centred = images - images.mean(dim=(2, 3), keepdim=True)
        deviation = centred.square().mean(dim=(2, 3), keepdim=True).clamp(min=1e-8).sqrt()  # 0 has no slope
        parts = torch.cat([images, centred / (deviation + 0.01)], dim=1)
        mixture = torch.einsum("nij,njhw->nihw", weights.unflatten(1, (2, 4)), parts) + offset[..., None, None]
        change = by_strips(partial(self.convolve, overview), x, halo=self.halo)
        change = rearrange(change, "n (c a b) h w -> n c h a w b", a=2, b=2).contiguous()  # or it cannot be exported
        change = with_size(change.flatten(4).flatten(2, 3), height, width)
        share, detail = change.chunk(2, dim=1)  # of the other source, and what is in none, for each pixel
        return mixture + share * (images.flip(1) - images) + detail

    def convolve(self, overview: Tensor, x: Tensor, strip: Strip) -> Tensor:
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, overview)
        return rows_of(self.conv_out(x), strip.output_rows)


@register("film_instructed")
class FILMInstructed(FILMBlend):
    """FILM blend of the sources that an instruction asks for; without one it is FILM blend.

    The fusion is trained first, without instructions (train.init), and stays as it is: reader and editors learn. Each
    instruction has an editor of its own, as editors that share weights hinder each other; each edits the result of the
    one before.

    Args:
        instructions: K, those of configs/instructions.yaml, in that order.
        instruction_dim: width of a token of an instruction (MiniLM: 384).
        editor_channels, editor_blocks: of an editor.
        sizes: of FILM.

    Raises:
        InputError: as FILM; one of the other sizes below 1; guidance none.
    """

    label = "FILM instructed"
    inputs = ("text", "text_mask", "instruction")

    def __init__(
        self,
        instructions: int = 7,
        instruction_dim: int = 384,
        editor_channels: int = 32,
        editor_blocks: int = 4,
        **sizes,
    ):
        super().__init__(**sizes)
        if not self.inputs:
            raise InputError("net.guidance=none is for networks that read no instructions")
        if min(instructions, instruction_dim, editor_channels, editor_blocks) < 1:
            raise InputError("the sizes under net must all be at least 1")
        self.requires_grad_(False)
        self.reader = Reader(instruction_dim, instructions)
        self.editors = nn.ModuleList(Editor(editor_channels, editor_blocks) for _ in range(instructions))

    def forward(
        self,
        image_a: Tensor,
        image_b: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        instruction: Tensor | None = None,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """As FILM, and obey `instruction` (N, L, instruction_dim), padded with zeros; None or all zeros: nothing.

        In training `strengths` (N, K) in [0, 1] are given, so that it learns to obey before it can read, and the
        result is what the loss looks at: both sources as it edits them, (N, 2, H, W), perhaps beyond [0, 1].
        """
        if strengths is not None:
            return self.edit(image_a, image_b, strengths)
        if instruction is None:
            return super().forward(image_a, image_b, text, text_mask)
        strengths = self.strengths(instruction)
        return self.fuse_edited(self.edit(image_a, image_b, strengths), strengths, text, text_mask)

    def edit(self, image_a: Tensor, image_b: Tensor, strengths: Tensor) -> Tensor:
        """The sources (N, 1, H, W) as strengths (N, K) ask for them, (N, 2, H, W); as they were where all are 0."""
        if strengths.shape[1] != len(self.editors):
            count = strengths.shape[1]
            raise InputError(f"there are {count} instructions to train with; set net.instructions={count}")
        images = torch.cat([image_a, image_b], dim=1)
        on_cpu = strengths.cpu()  # once, as each look at a GPU waits for it
        for k, editor in enumerate(self.editors):
            asked = on_cpu[:, k].nonzero()[:, 0].to(images.device, non_blocking=True)  # which images
            # in training each editor takes part, if with no image: processes wait for the gradients of all
            if self.training or len(asked):
                change = strengths[asked, k, None, None, None] * editor(images[asked].clamp(0, 1))
                images = images.index_add(0, asked, change)
        return images

    def obey(self, image_a: Tensor, image_b: Tensor, text: Tensor, strengths: list[float]) -> Tensor:
        """`forward` under K strengths that are known beforehand, not all 0, as a program to export needs it."""
        images = torch.cat([image_a, image_b], dim=1)
        for strength, editor in zip(strengths, self.editors):
            if strength:
                images = images + strength * editor(images.clamp(0, 1))
        return self.fuse_edited(images, images.new_tensor([strengths]), text, None)

    def fuse_edited(self, images: Tensor, strengths: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """FILM blend of edited sources (N, 2, H, W); where something was asked for, alike ones are the result."""
        image_a, image_b = images.clamp(0, 1).split(1, dim=1)
        fused = super().forward(image_a, image_b, text, text_mask)
        difference = (image_a - image_b).abs().mean(dim=(1, 2, 3))  # (N,)
        alike = (1 - difference / ALIKE).clamp(min=0) * strengths.any(dim=1)
        return torch.lerp(fused, (image_a + image_b) / 2, alike[:, None, None, None])

    def strengths(self, instruction: Tensor) -> Tensor:
        """How strongly texts (N, L, instruction_dim) ask for each instruction (N, K): 0 or 1 where it is 3/4 sure."""
        return (2 * self.reader(instruction).sigmoid() - 0.5).clamp(0, 1)

    def forward_args(self, batch: dict[str, Any]) -> list[Tensor]:
        """As the base class says, and in training the strengths."""
        return [*super().forward_args(batch), *([batch["strengths"]] if "strengths" in batch else [])]

    def loss_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What it reads in the texts to practise with: logits (N, P, K)."""
        return {"reading": self.reader(batch["practice"].flatten(0, 1)).unflatten(0, batch["practice"].shape[:2])}
