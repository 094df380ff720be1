"""A faster FILM blend: it sees images at half their size, with squares of 2 x 2 pixels as channels."""

import torch.nn.functional as F
from torch import Tensor

from net.base import register
from net.compute import even, with_size
from net.film_blend import FILMBlend


@register("film_blend_half")
class FILMBlendHalf(FILMBlend):
    """FILM blend whose features are a quarter as many (FFDNet, Zhang et al. 2018, section 3.1).

    The blend itself is of all pixels: the decoder gives share and detail for each of the four of a square. The last row
    and column count twice where H and W are odd.
    """

    label = "FILM blend half"
    image_channels = 4
    outputs = 2 * 4

    def logits(self, image_a: Tensor, image_b: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
        height, width = image_a.shape[-2:]
        squares = (F.pixel_unshuffle(even(image), 2) for image in (image_a, image_b))  # (N, 4, H/2, W/2) each
        return with_size(F.pixel_shuffle(super().logits(*squares, text, text_mask), 2), height, width)
