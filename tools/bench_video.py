"""Frames per second of the weights that ship, in PyTorch and in ONNX Runtime: python -m tools.bench video.

All forms of one size are called in turn, so that they meet the same disturbances. A frame is one pair: the network
alone, with its default text, in batches of one; reading and writing a video comes on top.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from net import configure_compute, load_model
from tests.toy import ROOT
from utils.config import load_config
from utils.export import export_program

WEIGHTS = ("IVF", "IVF_fast")  # MIF, MEF and MFF have the sizes of IVF
SIZES = ((256, 320), (480, 640), (720, 1280))
FORMS = ("fp32", "bf16", "ONNX")
ROUNDS = 3
PATIENCE = 15.0  # seconds: a form whose calls took so long is called no more at this size


def in_pytorch(weights: Path, precision: str, device: str) -> Callable[[torch.Tensor], object]:
    """What fuses images (2, 1, 1, H, W)."""
    model = load_model(weights, device)
    configure_compute(precision)
    text = default_text(model, device)

    @torch.inference_mode()
    def fuse(images: torch.Tensor) -> torch.Tensor:
        return model(*images.to(device), text).cpu()

    return fuse


def in_onnx(weights: Path, threads: int) -> Callable[[torch.Tensor], object]:
    """As `in_pytorch`, on the CPU."""
    import onnxruntime

    model = load_model(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the cores from PyTorch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_program(path, model, load_config(None, [f"ckpt={weights}"]))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, dict(zip(("image_a", "image_b"), images.numpy())))


def default_text(model: torch.nn.Module, device: str) -> torch.Tensor:
    """The network's default text (1, L, dim)."""
    return model.provenance.guides["text"].default[None].to(device)


def bench_video(device: str) -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    files = [ROOT / "models" / f"{name}.safetensors" for name in WEIGHTS]
    calls = {
        file.stem: [in_pytorch(file, "fp32", device), in_pytorch(file, "bf16", device), in_onnx(file, threads)]
        for file in files
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for size in SIZES:
        images = torch.rand(2, 1, 1, *size)
        seconds = {(name, form): [] for name in calls for form in range(len(FORMS))}
        for _ in tqdm(range(1 + ROUNDS), desc="{} x {}".format(*size), leave=False):
            for (name, form), record in seconds.items():
                if sum(record) < PATIENCE:
                    start = time.perf_counter()
                    calls[name][form](images)
                    record.append(time.perf_counter() - start)
        for (name, _), record in seconds.items():
            rates[name].append(1 / statistics.median(record[1:] or record))  # the first call is a warm-up
    print(f"{'frames per second':<20}" + "".join(f"{f'{h} x {w}':>27}" for h, w in SIZES))
    print(f"{'':<20}" + "".join(f"{form:>9}" for form in FORMS) * len(SIZES))
    for name, row in rates.items():
        print(f"{name:<20}" + "".join(f"{rate:>9.2f}" for rate in row))
