"""FILM blend that reads instructions: what to follow, to restore, to bring out. docs/instructions.md has the idea.

FILM's gate leaves the text no way to change an image by more than a fraction of a gray level, so instructions
come in by a way of their own, and the paragraphs keep theirs:

    instruction ──► Reader ──► strengths s (K) ──► x (1 + gamma s) + beta s    after each branch, in the decoder
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.film_blend import FILMBlend
from net.registry import register
from utils.errors import InputError


class Reader(nn.Module):
    """How strongly a text asks for each of K instructions: learned queries attend to its tokens.

    Args:
        dim: width of a token.
        instructions: K.
        queries: places of the text that are looked at, each in its own way.
        width: values that are taken from each place.
    """

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


class Modulation(nn.Module):
    """x (1 + gamma s) + beta s, per channel and the same at all places; no change at the start, nor where s = 0."""

    REACH = 10  # times what is learned: Adam's steps are equally small for all weights, and these have a long way

    def __init__(self, instructions: int, channels: int):
        super().__init__()
        self.gain_and_offset = nn.Linear(instructions, 2 * channels, bias=False)
        nn.init.zeros_(self.gain_and_offset.weight)

    def forward(self, x: Tensor, strengths: Tensor) -> Tensor:
        """Map (N, C, H, W) and strengths (N, K) -> (N, C, H, W)."""
        gain, offset = self.gain_and_offset(self.REACH * strengths)[..., None, None].chunk(2, dim=1)  # (N, C, 1, 1)
        return torch.addcmul(offset, x, 1 + gain)


@register("film_instructed")
class FILMInstructed(FILMBlend):
    """FILM blend, modulated by instructions; without one it is FILM blend.

    Args:
        instructions: K, how many the network can tell apart; which ones, configs/instructions.yaml says.
        instruction_dim: width of a token of an instruction (MiniLM: 384).
        sizes: of FILM.

    Raises:
        InputError: as FILM; instructions or instruction_dim below 1.
    """

    label = "FILM instructed"
    inputs = ("text", "text_mask", "instruction")

    def __init__(self, instructions: int = 7, instruction_dim: int = 384, **sizes):
        super().__init__(**sizes)
        if min(instructions, instruction_dim) < 1:
            raise InputError("net.instructions and net.instruction_dim must be at least 1")
        channels = self.options["channels"]
        self.reader = Reader(instruction_dim, instructions)
        self.in_stages = nn.ModuleList(
            nn.ModuleDict({source: Modulation(instructions, channels) for source in "ab"}) for _ in self.stages
        )
        self.in_decoder = nn.ModuleList(Modulation(instructions, channels) for _ in range(3))

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

        `strengths` (N, K) in [0, 1] are obeyed in place of what the reader makes of an instruction.
        """
        if strengths is None:
            if instruction is None:
                return super().forward(image_a, image_b, text, text_mask)
            strengths = self.reader(instruction).sigmoid()
        text = self.text_projection(text)
        a, b = image_a, image_b
        for stage, modulate in zip(self.stages, self.in_stages):
            a = modulate["a"](stage.a(a, text, text_mask), strengths)  # (N, C, H, W)
            b = modulate["b"](stage.b(b, text, text_mask), strengths)
        x = self.decoder.reduce(self.decoder.restormer1(torch.cat([a, b], dim=1)))
        del a, b
        for modulate, layer in zip(
            self.in_decoder, (self.decoder.restormer2, self.decoder.restormer3, self.decoder.output)
        ):
            x = layer(modulate(x, strengths))
        return self.blend(image_a, image_b, x)

    def arguments(self, batch: dict[str, Any]) -> list[Tensor]:
        """As the base class says. In training strengths are given, so that it can obey before it can read.

        Raises:
            InputError: another number of strengths than the network has instructions.
        """
        if "strengths" not in batch:
            return super().arguments(batch)
        count = batch["strengths"].shape[1]
        if count != self.options["instructions"]:
            raise InputError(f"there are {count} instructions to train with; set net.instructions={count}")
        return [*super().arguments(batch), batch["strengths"]]

    def readings(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What it understands of the texts to practise reading with: logits (N, P, K)."""
        return {"reading": self.reader(batch["practice"].flatten(0, 1)).unflatten(0, (len(batch["practice"]), -1))}
