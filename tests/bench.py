"""Our code against the literal form, interleaved in one process: medians and their ratio.

    python -m tests.bench

These numbers depend on the machine and on what else it does; the ratio is what to read.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from tests import literal
from utils.metrics import METRICS


def interleave(ours: Callable, theirs: Callable, rounds: int) -> tuple[float, float]:
    """Median seconds of both, called in turn so that both meet the same disturbances."""
    times: tuple[list, list] = ([], [])
    for _ in range(rounds):
        for function, record in zip((ours, theirs), times):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def bench_metrics(names: list[str], height: int = 480, width: int = 640, rounds: int = 5) -> tuple[float, float]:
    """Seconds of `names` on one triple of images, ours (float64, as test.py runs them) and NumPy/SciPy."""
    rng = np.random.default_rng(0)
    base = np.cumsum(rng.normal(0, 4, (height, width)), axis=1)  # smooth along rows, as pictures are
    images = [np.clip(128 + base + rng.normal(0, 8, (height, width)), 0, 255).round() for _ in range(3)]
    tensors = [torch.from_numpy(image)[None, None] for image in images]
    ours = {name: METRICS[name](*tensors).item() for name in names}
    theirs = {name: literal.METRICS[name](*images) for name in names}
    worst = max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in names)
    fast, slow = interleave(
        lambda: [METRICS[name](*tensors) for name in names],
        lambda: [literal.METRICS[name](*images) for name in names],
        rounds,
    )
    print(
        f"{'+'.join(names)} at {height} x {width}, float64, {torch.get_num_threads()} threads: "
        f"{fast * 1e3:.0f} ms, literal {slow * 1e3:.0f} ms, ratio {slow / fast:.1f}, "
        f"largest relative difference {worst:.1e}"
    )
    return fast, slow


if __name__ == "__main__":
    bench_metrics(["VIFF", "Qabf"])
    bench_metrics(["EN", "SD", "SF", "AG", "VIFF", "Qabf"])
