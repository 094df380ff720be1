"""One process or several: torchrun's variables decide. Every helper works without torchrun, too."""

import os
from typing import Any

import torch
import torch.distributed as dist


def start(device: torch.device) -> tuple[int, int, torch.device]:
    """Join the group that torchrun started, if it did: (rank, number of processes, this process's device)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), world, device


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: Any) -> list:
    """The values of all ranks, in the order of the ranks, on every rank. Values are pickled: keep them small."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor of equal shape everywhere."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values
