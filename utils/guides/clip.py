"""CLIP's image encoder, frozen, as the guide of MGFusion (section 3.2).

It is no part of a network: a network takes its vectors, from an H5 file or computed here, and a
checkpoint records which CLIP they came from.
"""

import functools
import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config import Config
from utils.data.make import FeatureMaker
from utils.data.pairs import PairDataset
from utils.data.sources import Source
from utils.errors import InputError
from utils.guides.guidance import Guidance
from utils.guides.pretrained import load_whole, loading
from utils.process import pick_device
from utils.provenance import GuideRecord

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
RANDOM = "random"  # ViT-B/32 with random weights of a fixed seed, to try things without CLIP's
ADVICE = (
    f"fetch it where there is a connection with `hf download {DEFAULT_CLIP} --local-dir models/clip` and set "
    "clip=models/clip, use H5 files that hold CLIP vectors, or try things out with clip=random"
)


class ClipEncoder:
    """A frozen CLIP image encoder with its preprocessing; `path`: a hub name, a local folder, or "random".

    Attributes:
        dim: E, width of a vector.
        record: the path given as its name, and a digest of the weights as its revision: that has to be the same.
    """

    def __init__(self, path: str = DEFAULT_CLIP, device: str | torch.device = "cpu"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # seconds to import
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        if path == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = CLIPVisionModelWithProjection(CLIPVisionConfig())
        else:
            with loading(f"CLIP cannot be loaded from '{path}'", ADVICE):
                model = load_whole(CLIPVisionModelWithProjection, path)
        model = model.float().eval().requires_grad_(False)
        digest = hashlib.sha256()
        for name, weight in sorted(model.state_dict().items()):
            digest.update(name.encode() + weight.contiguous().numpy().tobytes())
        self.record = GuideRecord(path, digest.hexdigest()[:16])
        self.model, self.dim = model.to(device), model.config.projection_dim
        self.side = model.config.image_size
        self.mean = torch.tensor(OPENAI_CLIP_MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(OPENAI_CLIP_STD, device=device).view(3, 1, 1)

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


load_clip = functools.cache(ClipEncoder)  # several sets load it once


def make_clip(
    config: Config, record: GuideRecord | None, source: Source, names: list[str], problems: list[str]
) -> FeatureMaker:
    """CLIP for the whole images of the pairs of a set; see `Guide`."""
    encoder = load_clip(config.clip or (record.name if record else DEFAULT_CLIP), str(pick_device(config.device)))
    print(f"vectors by {in_words(encoder.record)}")

    def vectors(name: str, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray:
        tensors = (torch.from_numpy(image)[None, None] for image in (image_a, image_b))
        return encoder(*tensors)[0].numpy(force=True)

    return FeatureMaker(encoder.record, vectors)


def open_clip(
    config: Config,
    record: GuideRecord | None,
    dim: int | None,
    datasets: list[PairDataset],
    device: torch.device,
    training: bool,
) -> Guidance:
    """CLIP's vectors from the sets, and the encoder where they lack them, see `Guide`; InputError for another CLIP."""
    crops = bool(training and config.train.crop)
    ignore = crops and config.clip_input == "crop"  # CLIP sees what the network sees
    if crops and not ignore and datasets[0].features["clip"].lacking:
        raise InputError(
            "clip_input=image needs CLIP vectors in the H5; make it with this config, or set clip_input=crop"
        )
    stored = [dataset.features["clip"] for dataset in datasets[ignore:]]
    missing = ignore or not datasets or any(feature.lacking for feature in stored)
    found = [item for feature in stored if not feature.lacking for item in feature.records.items()]
    encoder = None
    if missing or (config.clip and any(vectors and vectors.name != config.clip for _, vectors in found)):
        encoder = load_clip(config.clip or (record.name if record else DEFAULT_CLIP), str(device))
        found.insert(0, (f"clip={encoder.record.name}", encoder.record))
        if encoder.dim != (dim or encoder.dim):
            raise InputError(
                f"{encoder.record.name} gives vectors {encoder.dim} wide and the network takes {dim}; set "
                f"net.clip_dim={encoder.dim} and train"
            )
    wanted = record or found[0][1]
    for place, vectors in found:
        if not (vectors and vectors.revision):
            raise InputError(f"{place} does not say which CLIP its vectors are of; make it again with data_process.py")
        if vectors.revision != wanted.revision:  # the same CLIP may have another name
            raise InputError(
                f"{place} has the CLIP {vectors.name} ({vectors.revision}), and {wanted.name} ({wanted.revision}) is "
                "wanted; set clip= to the one of the network, or make the H5 again with it"
            )
    remark = "random CLIP" if wanted.name == RANDOM else ""
    return Guidance(wanted, encoder if missing else None, ignore=ignore, words=in_words(wanted), remark=remark)


def in_words(record: GuideRecord) -> str:
    """What logs call a CLIP."""
    return f"CLIP {record.name}{' (random weights)' if record.name == RANDOM else ''}"
