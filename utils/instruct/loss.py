"""The loss that trains a network to read instructions and to obey them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.filters import sobel
from utils.loss import Loss, register_loss
from utils.targets import TARGET


@register_loss("instructed")
class InstructedLoss(Loss):
    """How far edited sources E are from those that an instruction asks for, W, and whether the network reads it.

    The total is the mean over the samples of weight x the sum over both sources of mean v |E - W| + grad_weight x
    mean |dE - dW|, d the Sobel derivatives, and reading_weight times the mean cross-entropy between what texts ask for
    and what the network reads in them. v is 1, and 1 + target_weight on warm targets: they are few pixels, and where
    they count no more than others, to leave them as they are is nearly right.
    """

    maps = ("warm",)

    def __init__(self, grad_weight: float = 0.25, reading_weight: float = 0.1, target_weight: float = 3):
        super().__init__()
        self.grad_weight, self.reading_weight, self.target_weight = grad_weight, reading_weight, target_weight

    def forward(
        self,
        edited: Tensor,
        image_a: Tensor,
        image_b: Tensor,
        wanted_a: Tensor,
        wanted_b: Tensor,
        warm: Tensor,
        weight: Tensor,
        reading: Tensor,
        asked: Tensor,
        **batch,
    ) -> dict[str, Tensor]:
        """Edited sources (N, 2, H, W), weights (N), logits and what is asked for (N, P, K)."""
        wanted = torch.cat([wanted_a, wanted_b], dim=1)
        derivatives = (torch.cat(sobel(x, border="replicate"), dim=1) for x in (edited, wanted))
        emphasis = 1 + self.target_weight * (warm > TARGET)
        intensity = 2 * (emphasis * (edited - wanted).abs()).mean(dim=(1, 2, 3))
        gradient = 2 * torch.sub(*derivatives).abs().mean(dim=(1, 2, 3))
        misread = F.binary_cross_entropy_with_logits(reading, asked)
        total = (weight * (intensity + self.grad_weight * gradient)).mean() + self.reading_weight * misread
        return {"total": total, "intensity": intensity.mean(), "gradient": gradient.mean(), "misread": misread}
