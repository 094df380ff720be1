"""MGFusion: infrared-visible fusion guided by CLIP's image encoder (Yang et al., Front. Neurorobot. 2024), section 3.

The file follows Figures 1 to 3: two encoders (IRE, VIE), two information injections (CII), the feature fusion (CFF),
the decoder (FD). CLIP itself is frozen and no part of the network: the network takes its vectors
(utils/guides/clip.py). Sizes are written as N (batch), H x W (image), C (channels), E (width of a CLIP vector). A is
the infrared image, B the visible one.

The paper leaves open, and here are

    C, N (`blocks`), the variant of CLIP   options; 32, 2, ViT-B/32 and so E = 512
    Restormer blocks                       FILM's: 8 `heads`, expansion 4
    LeakyReLU                              PyTorch's slope, 0.01
    Wi                                     a weight for each of the E values, 1/2 at first; A and B have own ones
    adapters, IRA, VIA                     C wide between their two layers, which have no activation between them
    SEP, SAWP                              C wide between their two convolutions, and one channel at the end: one weight
                                           a pixel for all channels
    Sobel                                  |x| + |y|, as in the loss
    Tanh to the range of an image          (x + 1) / 2
    what CLIP sees in training             the whole image, not the augmented crop; clip_input=crop: the crop
    pairs smaller than the crops of 256    continued as by mirrors, train.pad=reflect
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.base import FusionNetwork, register
from net.compute import Strip, by_strips, rows_of
from net.restormer import RestormerBlock
from utils.errors import InputError


class FeatureLayer(nn.Sequential):
    """Convolution 3x3, batch normalisation, LeakyReLU: (N, in_channels, H, W) -> (N, C, H, W)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU())


class Adapter(nn.Sequential):
    """Two linear layers: CLIP vectors (N, E) -> channel weights (N, C, 1, 1), broadcast over the image."""

    def __init__(self, clip_dim: int, channels: int):
        super().__init__(nn.Linear(clip_dim, channels), nn.Linear(channels, channels), nn.Unflatten(1, (-1, 1, 1)))


class WeightPrediction(nn.Sequential):
    """SEP and SAWP: two convolutions 3x3 with a ReLU between, sigmoid; (N, in, H, W) -> (N, 1, H, W) in [0, 1]."""

    reach = 2  # rows around a row that its weight depends on

    def __init__(self, in_channels: int, channels: int):
        first, last = nn.Conv2d(in_channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)
        super().__init__(first, nn.ReLU(), last, nn.Sigmoid())


class Encoder(nn.Module):
    """IRE and VIE: two feature layers, N Restormer blocks; image (N, 1, H, W) -> features (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, blocks: int):
        super().__init__()
        self.feature_layers = nn.Sequential(FeatureLayer(1, channels), FeatureLayer(channels, channels))
        self.restormer = nn.Sequential(*(RestormerBlock(channels, heads) for _ in range(blocks)))

    def forward(self, image: Tensor) -> Tensor:
        return self.restormer(self.feature_layers(image))


class InformationInjection(nn.Module):
    """CII (Figure 2) of one source: F' = F + Ws * Adapter(Wi * clip_A + Wv * clip_B), Wv = 1 - Wi.

    Wi (E) is learned and starts at 1/2; Ws = SEP(F) says where in the image the vector goes.
    """

    def __init__(self, clip_dim: int, channels: int):
        super().__init__()
        self.clip_weight = nn.Parameter(torch.full((clip_dim,), 0.5))
        self.adapter = Adapter(clip_dim, channels)
        self.sep = WeightPrediction(channels, channels)

    def forward(self, feature: Tensor, clip: Tensor) -> Tensor:
        """Features (N, C, H, W) and the CLIP vectors of A and B (N, 2, E) -> (N, C, H, W)."""
        semantic = self.adapter(self.clip_weight * clip[:, 0] + (1 - self.clip_weight) * clip[:, 1])  # (N, C, 1, 1)

        def inject(x: Tensor, strip: Strip) -> Tensor:
            return rows_of(x + self.sep(x) * semantic, strip.output_rows)

        return by_strips(inject, feature, halo=self.sep.reach)


class FeatureFusion(nn.Module):
    """CFF (Figure 3): Ff = [IRA(clip_A) * F'A, VIA(clip_B) * F'B], then Ff + Wg * Ff, Wg = SAWP(Sobel(Ff))."""

    def __init__(self, clip_dim: int, channels: int):
        super().__init__()
        self.ira = Adapter(clip_dim, channels)
        self.via = Adapter(clip_dim, channels)
        self.sawp = WeightPrediction(2 * channels, channels)
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack([sobel, sobel.T]), persistent=False)  # in x and in y

    def gradient(self, x: Tensor) -> Tensor:
        """|Sobel_x| + |Sobel_y| of every channel, zero padding: (N, C, H, W) -> (N, C, H, W)."""
        channels = x.shape[1]
        kernels = (kernel.expand(channels, 1, 3, 3) for kernel in self.sobel)
        return sum(F.conv2d(x, kernel, padding=1, groups=channels).abs() for kernel in kernels)

    def forward(self, feature_a: Tensor, feature_b: Tensor, clip: Tensor) -> Tensor:
        """Features (N, C, H, W) of A and B, their CLIP vectors (N, 2, E) -> (N, 2C, H, W)."""
        weight_a, weight_b = self.ira(clip[:, 0]), self.via(clip[:, 1])  # (N, C, 1, 1)

        def fuse(a: Tensor, b: Tensor, strip: Strip) -> Tensor:
            fused = torch.cat([a * weight_a, b * weight_b], dim=1)
            texture = self.sawp(self.gradient(fused))  # (N, 1, h, W)
            return rows_of(fused * (1 + texture), strip.output_rows)

        return by_strips(fuse, feature_a, feature_b, halo=self.sawp.reach + 1)


class FeatureDecoder(nn.Module):
    """FD: N Restormer blocks, a feature layer, a convolution with Tanh; (N, 2C, H, W) -> image (N, 1, H, W)."""

    def __init__(self, channels: int, heads: int, blocks: int):
        super().__init__()
        self.restormer = nn.Sequential(*(RestormerBlock(2 * channels, heads) for _ in range(blocks)))
        self.feature_layer = FeatureLayer(2 * channels, channels)
        self.reconstruction = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        def reconstruct(x: Tensor, strip: Strip) -> Tensor:
            return rows_of(self.reconstruction(self.feature_layer(x)), strip.output_rows)

        return (torch.tanh(by_strips(reconstruct, self.restormer(x), halo=2)) + 1) / 2


@register("mgfusion")
class MGFusion(FusionNetwork):
    """MGFusion.

    Args:
        clip_dim: E, width of a CLIP vector (ViT-B/32 and ViT-B/16: 512, ViT-L/14: 768).
        channels: C.
        heads: attention heads of the Restormer blocks.
        blocks: N, Restormer blocks in each encoder and in the decoder.
        without: ablations of section 4.5: "cii" feeds the encoders' features to CFF as they are, "cff" concatenates
            them. Without both the network takes no CLIP vectors.
    """

    label = "MGFusion"
    inputs = ("clip",)

    def __init__(
        self, clip_dim: int = 512, channels: int = 32, heads: int = 8, blocks: int = 2, without: tuple[str, ...] = ()
    ):
        super().__init__()
        if min(clip_dim, channels, heads, blocks) < 1 or channels % heads or blocks > 100:
            raise InputError(
                "the sizes under net must all be at least 1, net.blocks at most 100, and net.channels a multiple of "
                "net.heads"
            )
        if not set(without) <= {"cii", "cff"}:
            raise InputError(f"net.without={[*without]} may name cii and cff only")
        if {"cii", "cff"} <= set(without):
            self.inputs = ()
        self.label = " ".join([self.label, *(f"w/o {part.upper()}" for part in sorted(set(without)))])
        self.ire = Encoder(channels, heads, blocks)
        self.vie = Encoder(channels, heads, blocks)
        self.cii_a = None if "cii" in without else InformationInjection(clip_dim, channels)
        self.cii_b = None if "cii" in without else InformationInjection(clip_dim, channels)
        self.cff = None if "cff" in without else FeatureFusion(clip_dim, channels)
        self.decoder = FeatureDecoder(channels, heads, blocks)

    def forward(self, image_a: Tensor, image_b: Tensor, clip: Tensor | None = None) -> Tensor:
        """Images (N, 1, H, W) in [0, 1], any H and W, and their CLIP vectors (N, 2, E) -> fused (N, 1, H, W)."""
        a, b = self.ire(image_a), self.vie(image_b)  # (N, C, H, W)
        if self.cii_a:
            a, b = self.cii_a(a, clip), self.cii_b(b, clip)
        fused = self.cff(a, b, clip) if self.cff else torch.cat([a, b], dim=1)  # (N, 2C, H, W)
        return self.decoder(fused)
