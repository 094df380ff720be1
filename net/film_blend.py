"""A variant as a worked example: FILM that blends its sources and learns what to add."""

import torch
from torch import Tensor

from net.base import register
from net.film import FILM


@register("film_blend")
class FILMBlend(FILM):
    """sigmoid(logit(w A + (1 - w) B) + d), where FILM's decoder gives w (before its sigmoid) and d of every pixel.

    A source can be taken over as it is, which plain FILM has to learn; training starts at the mean.
    """

    label = "FILM blend"
    outputs = 2

    def forward(
        self, image_a: Tensor, image_b: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        share, detail = self.logits(image_a, image_b, text, text_mask).chunk(2, dim=1)  # (N, 1, H, W) each
        blend = torch.lerp(image_b, image_a, share.sigmoid()).clamp(1 / 512, 1 - 1 / 512)  # finite logits
        return torch.sigmoid(torch.logit(blend) + detail)
