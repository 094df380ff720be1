"""One process or several: torchrun's variables decide. Every helper works without torchrun, too."""

import os
from typing import Any

import torch
import torch.distributed as dist

from utils.config import pick_device
from utils.errors import InputError


def start(device: str) -> tuple[int, int, torch.device]:
    """Join the group that torchrun started, if it did: (rank, number of processes, this process's device).

    Raises:
        InputError: a device that is not here, e.g. for more processes than there are GPUs; one GPU for all processes.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, pick_device(device)
    if device.startswith("cuda:"):
        raise InputError(f"device={device} is one GPU for {world} processes; use device=cuda, and each takes its own")
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


def check_gradients(model: torch.nn.Module) -> None:
    """InputError if the loss does not depend on a parameter that is to be trained: several processes wait for it."""
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if dist.is_initialized() and unused:
        raise InputError(
            f"the loss does not depend on {', '.join(unused[:3])}{' ...' * (len(unused) > 3)}, and several processes "
            "would wait for its gradient; take it out of the network, or train with one process"
        )


def random_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The states of the random number generators of all ranks: "cpu", and "cuda" where this is the device."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return gather({"cpu": torch.get_rng_state()} | cuda)


def restore_random_states(states: list, device: torch.device) -> None:
    """Take up what `random_states` gave, or the states of CPUs alone, as checkpoints had them until November 2026."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    state = states[rank % len(states)]
    state = state if isinstance(state, dict) else {"cpu": state}
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor of equal shape everywhere."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values
