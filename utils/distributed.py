"""One process or several: torchrun's variables decide. Every helper works without torchrun, too."""

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from utils.errors import InputError
from utils.process import pick_device

PATIENCE = timedelta(days=30)  # the first rank may be writing texts for a whole set while the others wait


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
            f"the loss does not depend on {len(unused)} parameters, {unused[0]} among them, and several processes "
            "would wait for their gradients; take them out of the network, or train with one process"
        )


def random_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The states of the random number generators of all ranks: "cpu", and "cuda" where this is the device."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return gather({"cpu": torch.get_rng_state()} | cuda)


def restore_random_states(states: list, device: torch.device) -> None:
    """Take up what `random_states` gave, or the states of CPUs alone, as checkpoints had them until November 2026."""
    state = states[place()[0] % len(states)]
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


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def one_voice() -> Iterator[None]:
    """A block that all ranks end together: the first one prints, and says what is wrong, whichever rank found it.

    An InputError of one rank reaches the others where they wait, in `exchange`, or look, in `listen`. The first rank
    raises it and ends with status 1; the others end quietly with 0, so that torchrun kills none that still cleans up.

    Raises:
        InputError: that of the first rank that has one.
    """
    rank, ranks = place()
    if ranks == 1:
        yield
        return
    _patient_group()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank else nullcontext(), _together():
            yield
    except _Heard:
        stop()
        if rank:
            raise SystemExit from None
        raise
    stop()


class _Heard(InputError):
    """Why a rank has failed, where all ranks know it."""


class _Elsewhere(InputError):
    """Another rank has failed, and why is not known yet."""


@contextmanager
def _together() -> Iterator[None]:
    """A block that no rank leaves before all have ended it; if one has failed, all of them raise its InputError."""
    try:
        yield
        exchange()
    except _Heard:
        raise
    except (InputError, OSError) as error:
        if dist.is_initialized():
            _store().set(_failed(), "")
            exchange(problem=None if isinstance(error, _Elsewhere) else str(error))
        raise


def exchange(value: Any = None, problem: str | None = None) -> list:
    """The values of all ranks, as `gather`, within `one_voice`; the ranks wait for the slowest as long as it takes.

    Args:
        value: is pickled: keep it small.
        problem: why this rank fails, if it does.

    Raises:
        InputError: a rank has failed.
    """
    if not dist.is_initialized():
        return [value]
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, (problem, value), group=_patient_group())
    for problem, _ in answers:
        if problem is not None:
            raise _Heard(problem)
    return [value for _, value in answers]


def listen() -> None:
    """Do not go on if another rank has failed, within `one_voice`; takes a tenth of a millisecond.

    Raises:
        InputError: a rank has failed.
    """
    if dist.is_initialized() and _store().check([_failed()]):
        raise _Elsewhere


@contextmanager
def opened_by_first(context: AbstractContextManager) -> Iterator[Any]:
    """A context that the first rank enters, e.g. a folder that is renamed at the end; the others get what it gives.

    The first rank leaves it when all ranks have ended the block, whether it went well or not. Within `one_voice`.

    Args:
        context: of the first rank; those of the others are not entered.

    Raises:
        InputError: a rank has failed.
    """
    rank, _ = place()
    with nullcontext() if rank else context as given:
        of_first = exchange(given)[0]
        with _together():
            yield of_first if rank else given


@functools.cache
def _patient_group() -> dist.ProcessGroup:
    """All ranks, for values on the CPU; NCCL's own limit for a wait is ten minutes."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


@functools.cache
def _store() -> dist.Store:
    """Where ranks leave words for others."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False)


def _failed() -> str:
    """The word of a rank that has failed; torchrun may start the ranks again, with the same store."""
    return f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
