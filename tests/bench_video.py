"""Frames per second of the weights that ship, in PyTorch and ONNX Runtime: python -m tests.bench video."""

from collections.abc import Callable

import torch

from net import load_model, prepare
from tests.toy import ROOT

WEIGHTS = ("IVF", "IVF_fast", "MGFusion_IVF")
SIZES = ((256, 320), (480, 640), (720, 1280))
ROUNDS = 5


def pytorch(name: str, precision: str, device: str) -> Callable:
    """Fuse images (1, 1, H, W) with shipped weights and their default features."""
    model = load_model(ROOT / "models" / f"{name}.safetensors", device)
    prepare(model, precision)
    features = [
        record.default[None].to(device) for kind, record in model.provenance.guides.items() if kind in model.inputs
    ]

    @torch.inference_mode()
    def fuse(images: torch.Tensor) -> None:
        model(*images.to(device), *features).cpu()

    return fuse
