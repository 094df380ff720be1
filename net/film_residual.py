"""A variant as a worked example: FILM that learns what to change of the brighter source."""

import torch
from torch import Tensor

from net.film import FILM
from net.registry import register


@register("film_residual")
class FILMResidual(FILM):
    """sigmoid(logit(max(A, B)) + FILM's decoder): the rule `max` is where training starts from."""

    label = "FILM residual"

    def forward(self, image_a: Tensor, image_b: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        brighter = torch.maximum(image_a, image_b).clamp(1 / 512, 1 - 1 / 512)  # finite logits
        return torch.sigmoid(torch.logit(brighter) + self.logits(image_a, image_b, text, text_mask))
