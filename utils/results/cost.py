"""What a network costs: parameters, FLOPs, seconds and memory at three sizes, as a table and a row of LaTeX."""

import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from net import FusionNetwork, configure_compute
from utils.config import Config
from utils.data.features import collate_features, features_of
from utils.errors import enough_memory
from utils.guides import image_encoders
from utils.results.table import escape_latex

SIZES = ((288, 384), (480, 640), (1024, 1280))  # (H, W)
TOKENS = 120  # of a text, about as many as both paragraphs of a pair have
RUNS = 5  # of which the median counts
NOTE = """FLOPs: convolutions and matrix products of one pair computed whole; a multiplication and an addition are two.
Seconds: the median of {} runs. MiB: the most memory that a run takes beyond weights and images, of the {}."""


def print_cost(model: FusionNetwork, config: Config) -> None:
    """Print what a network in eval mode costs, a line for each of SIZES as soon as it is measured.

    Its guides give zeros, which ask an instructed network for nothing; the cost of an encoder is not counted.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else f"a CPU by {torch.get_num_threads()} threads"
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = f" of {config.ckpt}" if config.ckpt else ""
    print(f"{model.label}{weights}: {count:,} parameters; on {where}, {config.precision}")
    print(f"{'size':<14}{'FLOPs (G)':>10}{'seconds':>10}{'MiB':>8}")
    cells = [escape_latex(model.label), f"{count:,}"]
    for height, width in SIZES:
        with enough_memory(f"fuse {height} x {width} pixels", "lower the sizes under net, or use another device=..."):
            flops, seconds, memory = cost_at(model, config, device, height, width)
        values = [f"{flops / 1e9:.2f}", f"{seconds:.3f}", "-" if math.isnan(memory) else f"{memory / 2**20:.0f}"]
        print(f"{f'{height} x {width}':<14}{values[0]:>10}{values[1]:>10}{values[2]:>8}", flush=True)
        cells += values
    print(NOTE.format(RUNS, "GPU" if on_gpu else "process, on Linux alone"))
    print("% network & parameters, then FLOPs (G), seconds and MiB at each size\n" + " & ".join(cells) + r" \\")


@torch.inference_mode()
def cost_at(
    model: FusionNetwork, config: Config, device: torch.device, height: int, width: int
) -> tuple[int, float, float]:
    """FLOPs, seconds and bytes of memory for one pair of height x width pixels."""
    image_a, image_b = torch.rand(2, 1, 1, height, width, device=device)
    batch = {"image_a": image_a, "image_b": image_b}
    encoders = image_encoders(model.inputs, config, device)
    batch |= {name: encoder(image_a, image_b) for name, encoder in encoders.items()}
    for feature in features_of(model.inputs):
        if feature.name in batch:
            continue
        zeros = torch.zeros(feature.rows or TOKENS, model.options[f"{feature.name}_dim"], device=device)
        batch |= {key: value.to(device) for key, value in collate_features(feature.name, [zeros]).items()}
    arguments = model.forward_args(batch)
    configure_compute(tile=height)  # in strips, as on a CPU, rows where two strips touch are computed twice
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    configure_compute(config.precision, config.test.tile, compile=config.compile)

    def run() -> None:
        model(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()  # compiled code and kernels are made the first time
    memory = peak_memory(run, device)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return counter.get_total_flops(), statistics.median(times), memory


def peak_memory(run: Callable[[], None], device: torch.device) -> float:
    """The most bytes that a run takes beyond what is there: on the GPU, or resident on Linux; NaN elsewhere."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed would serve this one
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before
    except (OSError, AttributeError, TypeError):  # another system
        return math.nan


def resident(key: str) -> int:
    """A number of bytes that Linux keeps of this process."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024
