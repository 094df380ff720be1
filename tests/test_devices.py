"""Mistakes of a GPU that can be seen without one: tensors on two devices, and steps that wait for the GPU.

Tensors on "meta", which have no values, take its place. PyTorch refuses tensors of two devices, and whatever has to
know a value.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from net import NETWORKS, FusionNetwork, build_model, configure_compute
from tests.test_net import SIZES, example
from utils.loss import LOSSES, build_loss
from utils.metrics import INFRARED_ONLY, METRICS, measure_all
from utils.results.evaluate import fuse_batch, to_device

META = torch.device("meta")
SMALL, LARGE = (16, 20), (48, 56)  # `visual_information` and the metric VIFF take 41 pixels or more
INSTRUCTIONS = 7
TRAINABLE = sorted(name for name in NETWORKS if next(build_model(name).parameters(), None) is not None)
ALL_TERMS = dict(fidelity_weight=1.0, vif_weight=1.0, contrast_weight=1.0, exposure_weight=1.0)
ALL_TERMS |= dict(gradient="vector", edge_gain=1.1, target_edges=1.0, intensity="exposed")
LOSS_OPTIONS = [*({"name": name} for name in LOSSES), {"intensity": "sharper"}, ALL_TERMS]


def build(name: str) -> FusionNetwork:
    """A small network on the CPU."""
    sizes = SIZES | dict(stages=1, instructions=INSTRUCTIONS)
    return build_model(name, **{key: size for key, size in sizes.items() if key in NETWORKS.defaults(name)})


def loss_batch(size: tuple[int, int]) -> dict[str, Tensor]:
    """What a loss may take beside the fused images, of two pairs."""
    batch = {key: torch.rand(2, 1, *size) for key in ("image_a", "image_b", "warm", "wanted_a", "wanted_b")}
    return batch | {"weight": torch.rand(2), "asked": torch.rand(2, 3, INSTRUCTIONS)}


class Waits(TorchDispatchMode):
    """Collects in `seen` what makes the CPU wait for a GPU, with "meta" in its place; no copies with non_blocking=True.

    What needs a value, as `item`, `nonzero` and an index by a mask do, raises by itself. After a copy to the CPU it
    goes on, with ones.
    """

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = operation.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)
        if copies and args[0].is_meta and kwargs.get("device", META) != META:
            self.seen.append("copy to the CPU")
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = operation(*args, **kwargs)
        # a scalar of the CPU is sent along with an operation
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.ndim]
        if len({x.device for x in tensors}) > 1 and not kwargs.get("non_blocking"):
            self.seen.append(str(operation))
        return out


@pytest.fixture
def waits(monkeypatch) -> Waits:
    """`Waits` that also sees constants that Python makes on the GPU, which are no operation."""
    waits = Waits()

    def watched(make: Callable) -> Callable:
        def made(*args, **kwargs) -> Tensor:
            out = make(*args, **kwargs)
            if out.is_meta:
                waits.seen.append("constant")
            return out

        return made

    for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return waits


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_fuse(name, waits):
    """One copy of the results; and one of the sources, for a rule that OpenCV computes."""
    model = build(name).eval().to(META)
    configure_compute(tile=6)
    batch = example(model, SMALL, n=1) | {"name": ["a"]}
    if "instruction" in batch:  # to obey one takes a look at values: test_no_training_step_waits
        batch["instruction"] = None
    with waits:
        ((fused,),) = fuse_batch([model], batch, META, {})
    assert fused.shape == SMALL and waits.seen.count("copy to the CPU") == (2 if name == "mertens" else 1)
    assert {*waits.seen} <= {"copy to the CPU", "constant", "aten.to.device"}  # no other operation has both devices


@pytest.mark.parametrize("name", sorted(METRICS.keys() - INFRARED_ONLY))  # which look for targets on the CPU
def test_metrics(name, waits):
    with waits:
        value = METRICS[name](*torch.rand(3, 2, 1, *LARGE, dtype=torch.float64, device=META))
    assert (value.shape, value.dtype, value.device) == ((2,), torch.float64, META) and waits.seen == []


def test_the_evaluator_waits_once_an_image(waits):
    with waits:
        for size in (LARGE, LARGE[::-1]):
            rows = measure_all(np.zeros((2, *size), np.uint8), *np.zeros((2, *size), np.uint8), ["EN", "VIFF"], META)
    assert waits.seen.count("copy to the CPU") == 2 and len(rows) == 2


@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=str)
def test_no_loss_waits(options, waits):
    """Late in a training, when all terms count."""
    criterion = build_loss(options)
    batch = to_device(loss_batch(LARGE), META, {})
    images = 2 if options.get("name") == "instructed" else 1  # both sources as edited
    fused = torch.rand(2, images, *LARGE, device=META, requires_grad=True)
    with waits:
        reading = torch.rand(2, 3, INSTRUCTIONS, device=META)
        criterion(fused, **batch, reading=reading, progress=0.9)["total"].backward()
    assert fused.grad.shape == fused.shape and waits.seen == []


@pytest.mark.parametrize("name", TRAINABLE)
def test_no_training_step_waits(name, waits):
    """The step of train.py, between two of its log lines."""
    model = build(name).to(META)
    configure_compute(checkpointing=name in ("film", "mgfusion"))
    criterion = build_loss({"name": "instructed"} if name == "film_instructed" else {})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)  # as on a GPU
    batch = example(model, SMALL, n=2) | loss_batch(SMALL)
    if name == "film_instructed":
        practice = torch.randn(2, 3, 4, SIZES["instruction_dim"])
        batch |= {"strengths": torch.rand(2, INSTRUCTIONS), "practice": practice}
    with waits:
        batch = to_device(batch, META, {})
        terms = criterion(model(*model.forward_args(batch)), **batch, **model.loss_inputs(batch), progress=0.5)
        terms["total"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    assert norm.is_meta and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    # an editor runs for the images that ask for it: one look at the strengths, before all editors
    assert waits.seen == (["copy to the CPU"] if name == "film_instructed" else [])
