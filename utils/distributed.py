"""One process or several: torchrun's variables decide. Every helper works without torchrun, too."""

import logging
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from utils.errors import InputError, shortened
from utils.process import pick_device

PATIENCE = timedelta(days=1)  # the first rank may be encoding the texts of a whole set while the others wait


def start(device: str) -> tuple[int, int, torch.device]:
    """Join torchrun's group, if there is one: the rank, the number of processes, and this process's device.

    Only the first rank prints from now on. InputError for a device that is not here, or one GPU for all processes.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, pick_device(device)
    if int(os.environ["RANK"]):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if device.startswith("cuda:"):
        raise InputError(f"device={device} is one GPU for {world} processes; use device=cuda, and each takes its own")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # objects are gathered on the CPU, gradients where they are
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    return dist.get_rank(), world, chosen


def stop() -> None:
    """Leave the group, all ranks together: one that leaves early can abort another that still writes."""
    if dist.is_initialized():
        gather(None)
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value: Any) -> list:
    """The values of all ranks, in their order, on every rank; waits for all. They are pickled: keep them small."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:  # one of them has ended, and has said why
        sys.exit(f"rank {dist.get_rank()} ends, because another one has ({str(error).splitlines()[0]})")
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor of equal shape everywhere."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def same_buffers(model: torch.nn.Module) -> None:
    """Give every rank the buffers of the first."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def check_gradients(model: torch.nn.Module) -> None:
    """Say which parameters to train get no gradient; InputError with several processes, which would wait for it."""
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        said = f"the loss does not depend on {len(unused)} of the parameters to train: {shortened(unused)}"
        if dist.is_initialized():
            raise InputError(f"{said}; several processes would wait for them: freeze them, or train with one process")
        logging.getLogger("train").info(f"note: {said}")


def random_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The states of the random number generators of all ranks: "cpu", and "cuda" where this is the device."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return gather({"cpu": torch.get_rng_state()} | cuda)


def restore_random_states(states: list[dict[str, torch.Tensor]], device: torch.device) -> None:
    """Take up the states that `random_states` gave, in this rank."""
    state = states[place()[0] % len(states)]
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
