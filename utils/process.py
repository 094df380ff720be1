"""Settings of a whole process, and the device that it computes on."""

import ctypes
import os
import sys

import torch

from utils.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # in malloc.h


def set_up_process(precision: str = "fp32") -> None:
    """Say how the process computes and keeps memory. Call it first: threads take over what holds when they start.

    Numbers below 1.2e-38 become 0: gradients are full of them where attention is saturated, and they make matrix
    products on CPUs some ten times slower. With "tf32" NVIDIA GPUs may multiply float32 with mantissas of 10 bits; else
    they keep all 23, also in convolutions, where PyTorch by itself does not.
    """
    torch.set_flush_denormal(True)
    # torch.compile of PyTorch 2.9 to 2.11 fails where the newer setting `fp32_precision` was used instead
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # memory of a strip of rows is kept for the next one, that of whole maps is given back; glibc by itself gives all
    # back and zeroes it anew, or keeps far too much
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # musl has none
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 512 << 20)


def worker_count(wanted: int) -> int:
    """`wanted` processes of a DataLoader, and no more than cores, of which PyTorch warns; results are the same."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, cores)


def pick_device(device: str) -> torch.device:
    """The device "cpu", "cuda" or "cuda:<number>", or for "auto" the GPU, if there is one; InputError if it is not."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda"):  # e.g. mps has no float64, which metrics take
            raise InputError(f"device '{device}' must be cpu, cuda, cuda:<number> or auto")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' is not there; use device=cpu or device=auto") from error
    return chosen
