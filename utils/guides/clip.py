"""CLIP's image encoder, frozen, as the guide of MGFusion (section 3.2).

It is no part of a network: a network takes its vectors, from an H5 file or computed here, and a
checkpoint records which CLIP they came from.
"""

import functools
import hashlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError

if TYPE_CHECKING:
    from utils.data.pairs import PairDataset

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
RANDOM = "random"  # ViT-B/32 with random weights of a fixed seed, to try things without CLIP's


class ClipEncoder:
    """A frozen CLIP image encoder with its preprocessing.

    Args:
        path: hub name or local folder of a CLIP model of transformers, or "random".
        device: where to run.

    Attributes:
        dim: E, width of a vector.
        identity: `name`, the path given, and `revision`, a digest of the weights: that has to be the same.

    Raises:
        InputError: weights that cannot be had.
    """

    def __init__(self, path: str = DEFAULT_CLIP, device: str | torch.device = "cpu"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # seconds to import
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        if path == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = CLIPVisionModelWithProjection(CLIPVisionConfig())
        else:
            try:
                model, report = CLIPVisionModelWithProjection.from_pretrained(path, output_loading_info=True)
            except Exception as error:  # damaged files and unreachable hubs raise many kinds
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise self._unusable(path, reason) from error
            if report["missing_keys"] or report["mismatched_keys"]:
                raise self._unusable(path, "its weights are not those of a CLIP image encoder")
        model = model.float().eval().requires_grad_(False)
        digest = hashlib.sha256()
        for name, weight in sorted(model.state_dict().items()):
            digest.update(name.encode() + weight.contiguous().numpy().tobytes())
        self.identity = {"name": path, "revision": digest.hexdigest()[:16]}
        self.model, self.dim = model.to(device), model.config.projection_dim
        self.side = model.config.image_size
        self.mean, self.std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )

    @staticmethod
    def _unusable(path: str, reason: str) -> InputError:
        return InputError(
            f"CLIP cannot be loaded from '{path}' ({reason}); fetch it where there is a connection with "
            f"`hf download {DEFAULT_CLIP} --local-dir models/clip` and set clip=models/clip, use H5 files that hold "
            "CLIP vectors, or try things out with clip=random"
        )

    @torch.no_grad()
    def __call__(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [0, 1] -> their CLIP vectors (N, 2, E), without gradients."""
        images = self.preprocess(torch.cat([image_a, image_b]).to(self.mean.device))
        return torch.stack(self.model(pixel_values=images).image_embeds.chunk(2), dim=1)

    def preprocess(self, images: Tensor) -> Tensor:
        """As CLIP's own: the shorter side to its size (bicubic), the centre square, mean and std; gray three times."""
        shorter = min(images.shape[-2:])
        size = [side * self.side // shorter for side in images.shape[-2:]]
        for each in ((images.shape[-2], size[1]), size):  # columns, then rows, each cut to the range of an image
            images = F.interpolate(images, size=each, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - self.side) // 2 for side in size)
        images = images[..., top : top + self.side, left : left + self.side]
        return (images - self.mean) / self.std


load_clip = functools.cache(ClipEncoder)  # several test sets load it once


def open_clip(
    path: str | None, model: nn.Module, datasets: list["PairDataset"], device: str | torch.device
) -> ClipEncoder | None:
    """The CLIP that computes what a network takes and the sets do not hold; None where nothing is missing.

    Sets `model.clip`, the identity of the CLIP, where it is not known from a checkpoint.

    Args:
        path: hub name, local folder or "random"; None: the one the network was trained with, else the default.

    Raises:
        InputError: weights that cannot be had; a CLIP or H5 file other than the network was trained with.
    """
    if "clip" not in model.inputs:
        return None
    missing = not datasets or any(dataset.clip is None for dataset in datasets)
    found = [(dataset.samples[0][0], dataset.clip) for dataset in datasets if dataset.clip]
    encoder = None
    if missing or (path and any(clip["name"] != path for _, clip in found)):  # the same CLIP may have another name
        encoder = load_clip(path or (model.clip or {}).get("name", DEFAULT_CLIP), device)
        found.append((f"clip={encoder.identity['name']}", encoder.identity))
        if encoder.dim != model.config.get("clip_dim", encoder.dim):
            raise InputError(
                f"{encoder.identity['name']} gives vectors {encoder.dim} wide and the network takes "
                f"{model.config['clip_dim']}; set net.clip_dim={encoder.dim} and train"
            )
    wanted = model.clip or found[-1][1]
    for where, clip in found:
        if clip["revision"] != wanted["revision"]:
            raise InputError(
                f"{where} has the CLIP {clip['name']} ({clip['revision']}), and {wanted['name']} "
                f"({wanted['revision']}) is wanted; set clip= to the one of the network, or make the H5 again with it"
            )
    model.clip = wanted
    return encoder if missing else None


def describe_clip(clip: dict[str, str]) -> str:
    """The identity of a CLIP in words, with a warning where its weights are random, which every output has to say."""
    return f"CLIP {clip['name']}" + " (random weights)" * (clip["name"] == RANDOM)


def label_of(model: nn.Module) -> str:
    """What tables and pictures call a network, with the same warning."""
    return f"{model.label} (random CLIP)" if model.clip and model.clip["name"] == RANDOM else model.label
