"""One process or several: torchrun's variables decide. Every helper works without torchrun, too."""

import os
from typing import Any

import torch
import torch.distributed as dist

from utils.config import pick_device


def start(device: str) -> tuple[int, int, torch.device]:
    """Join the group that torchrun started, if it did: (rank, number of processes, this process's device).

    Raises:
        InputError: a device that is not here, e.g. for more processes than there are GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, pick_device(device)
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return dist.get_rank(), world, chosen


def stop() -> None:
    """Leave the group, all ranks together: one that leaves early can abort another that still writes."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def gather(value: Any) -> list:
    """The values of all ranks, in the order of the ranks, on every rank. Values are pickled: keep them small."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def same_buffers(model: torch.nn.Module) -> None:
    """Give every rank the buffers of the first."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor of equal shape everywhere."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values
