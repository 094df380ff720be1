"""What `python -m tools.gpu` checks, section by section; tools/gpu_speed.py measures, with the same helpers.

A section is a function that lists its checks, `(title, function)`, and does nothing else: tools/gpu.py calls the
functions. A check returns its rows, and may raise what it likes.
"""

import gc
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from net import NETWORKS, FusionNetwork, build_model, configure_compute, load_model
from tests.toy import CONFIG, FAST, ROOT, make_pairs, process, script
from tools.bench import interleave, pictures, synchronize
from utils.data.features import collate_features, features_of
from utils.files import commit
from utils.loss import build_loss
from utils.metrics import METRICS, measure_all
from utils.process import set_up_process
from utils.results.evaluate import split_batch, to_device


class Row(NamedTuple):
    """One line of the table; `told`, `at_most` and `aim` make them."""

    name: str
    value: float | str
    unit: str = ""
    limit: str = ""
    verdict: str = "-"  # ok or FAIL; - where nothing is demanded


def told(name: str, value: float | str, unit: str = "") -> Row:
    """A number to know; inf is what does not fit into memory."""
    return Row(name, "out of memory" if value == math.inf else value, unit)


def at_most(name: str, value: float, limit: float, unit: str = "") -> Row:
    """A number that must not be over a limit, nor NaN."""
    return Row(name, value, unit, f"<= {limit:.2g}", "ok" if value <= limit else "FAIL")


def largest(differences: Iterable[float]) -> float:
    """The largest of some differences; NaN if one is, which Python's max may pass over."""
    return float(np.max([0.0, *differences]))


def aim(name: str, value: float, unit: str, least: float = -math.inf, most: float = math.inf) -> Row:
    """A number that depends on the machine, so that it cannot fail: ok where the aim is reached."""
    text = f"aim {least:g}" if least > -math.inf else f"aim <= {most:g}"
    return Row(name, value, unit, text, "ok" if least <= value <= most else "-")


@dataclass(frozen=True)
class Machine:
    """What is checked: a GPU, or in a rehearsal the CPU in its place, with tiny sizes."""

    device: torch.device
    rehearsal: bool = False

    def pick(self, real, rehearsed):
        return rehearsed if self.rehearsal else real


Check = tuple[str, Callable[[], Sequence[Row]]]


# --- the device -------------------------------------------------------------------------------------


def device_facts(m: Machine) -> Iterator[Check]:
    yield "facts", lambda: [told(name, value, "GiB" if name == "memory" else "") for name, value in facts(m).items()]


def facts(m: Machine) -> dict[str, object]:
    """The machine and the versions, by name."""
    gpu = {}
    if m.device.type == "cuda":
        found = torch.cuda.get_device_properties(m.device)
        gpu = {"device": found.name, "memory": found.total_memory / 2**30, "processors": found.multi_processor_count}
        gpu |= {"compute capability": f"{found.major}.{found.minor}", "bf16": str(torch.cuda.is_bf16_supported())}
    versions = {
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }
    here = {"commit": (commit() or "none")[:12], "python": platform.python_version(), "CPU cores": os.cpu_count()}
    return gpu | versions | here


def free_memory() -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak(m: Machine, call: Callable[[], object]) -> float:
    """GiB of a GPU that a call takes beyond what is there before; inf if that is more than there is, 0 on the CPU."""
    free_memory()
    if m.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        call()
        synchronize()
    except torch.OutOfMemoryError:
        return math.inf
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, warmed up."""
    call()
    return interleave(call, lambda: None, rounds)[0]


# --- networks, CPU against GPU ----------------------------------------------------------------------

SMALL = dict(text_dim=24, clip_dim=24, instruction_dim=24, hidden_dim=32, channels=16, heads=4, stages=2, blocks=1)
SMALL |= dict(token_grid=[12, 16], editor_channels=8, editor_blocks=2)  # of any network, as far as it has the option
VARIANTS = {  # options of `agreement`, and the limit
    "fp32": (dict(), 1e-4),
    "odd sizes": (dict(odd=True), 1e-4),
    "tile": (dict(tile=16), 1e-4),
    "tf32": (dict(precision="tf32"), 1e-2),
    "bf16": (dict(precision="bf16"), 3e-2),
}


def trained() -> list[str]:
    """The registered networks that have weights."""
    return [name for name in NETWORKS if "channels" in NETWORKS.defaults(name)]


def weights(m: Machine) -> list[Path]:
    """The weights that ship."""
    paths = sorted((ROOT / "models").glob("*.safetensors"))
    return m.pick(paths, paths[:2])


def sizes(m: Machine, odd: bool = False) -> list[tuple[int, int]]:
    """Small images, or several of odd sizes."""
    if odd:
        return m.pick([(45, 61), (97, 50), (120, 43), (83, 83)], [(21, 27), (31, 20), (33, 18), (25, 25)])
    return m.pick([(48, 64)], [(24, 32)])


def label(source: str | Path) -> str:
    return source.name if isinstance(source, Path) else source


def open_network(source: str | Path) -> FusionNetwork:
    """A registered network of small sizes with drawn weights, or weights that ship; it obeys every instruction."""
    torch.manual_seed(0)
    if isinstance(source, Path):
        model = load_model(source)
    else:
        known = NETWORKS.defaults(source)
        model = build_model(source, **{key: size for key, size in SMALL.items() if key in known}).eval()
        for parameter in model.parameters():
            if not parameter.any():  # zeros would hide what is before them
                nn.init.normal_(parameter, std=0.1)
    if "instruction" in model.inputs:
        nn.init.constant_(model.reader.output.bias, 9)
    return model


def example(model: FusionNetwork, size: tuple[int, int], n: int = 2) -> dict:
    """A batch of n pairs for a network, as a DataLoader gives it."""
    images = torch.from_numpy(np.stack(pictures(2 * n, *size))).float().div(255).view(2, n, 1, *size)
    batch = {"name": [str(i) for i in range(n)], "image_a": images[0], "image_b": images[1]}
    for feature in features_of(model.inputs):
        lengths = [feature.rows] * n if feature.rows else [5 + i for i in range(n)]
        rows = [torch.randn(length, model.options[f"{feature.name}_dim"]) for length in lengths]
        batch |= collate_features(feature.name, rows)
    return batch


def configure(precision: str = "fp32", **options) -> None:
    """How networks, convolutions and matrix products compute from now on; `options` of `configure_compute`."""
    configure_compute(precision, **options)
    set_up_process(precision)


def agreement(m: Machine, source: str | Path, limit: float, odd: bool = False, **options) -> list[Row]:
    """Fused images of the device against those of the CPU in float32, both of the same weights and inputs.

    Args:
        odd: odd sizes.
        options: of `configure`.
    """
    model = open_network(source)
    batches = [example(model, size) for size in sizes(m, odd)]
    with torch.inference_mode():
        expected = [model(*model.forward_args(batch)) for batch in batches]
        configure(**options)
        model.to(m.device)
        fused = [model(*model.forward_args(to_device(batch, m.device, {}))).cpu() for batch in batches]
    if any(image.std() < 1e-3 for image in expected):
        raise ValueError("the fused image is flat: nothing is compared")
    differences = ((a - b).abs().max().item() for a, b in zip(fused, expected))
    return [at_most("difference", largest(differences), limit)]


def networks(m: Machine) -> Iterator[Check]:
    for source in [*NETWORKS, *weights(m)]:
        for variant, (options, limit) in VARIANTS.items():
            if isinstance(source, Path) or source in trained() or variant in ("fp32", "odd sizes"):
                yield f"{label(source)}, {variant}", partial(agreement, m, source, limit, **options)


# --- a training step, CPU against GPU ---------------------------------------------------------------

EVERY_TERM = dict(vif_weight=0.01, exposure_weight=0.1, contrast_weight=0.1, gradient="vector", target_edges=1.0)
STEPS = {  # options of `training_step`, and the limit of the gradients
    "fp32": (dict(), 1e-3),
    "accumulate": (dict(parts=2), 1e-3),
    "checkpointing": (dict(checkpointing=True), 1e-3),
    "tf32": (dict(precision="tf32"), 5e-2),
    "bf16": (dict(precision="bf16"), 1e-1),
}


def training_batch(model: FusionNetwork, size: tuple[int, int], n: int) -> dict:
    """A batch with all that a loss may ask for."""
    batch = example(model, size, n)
    batch["warm"] = torch.zeros_like(batch["image_a"])
    batch["warm"][:, :, 20:27, 30:38] = 1
    if "instruction" in model.inputs:
        count, dim = model.options["instructions"], model.options["instruction_dim"]
        batch |= {"wanted_a": batch["image_b"], "wanted_b": batch["image_a"], "weight": torch.arange(1.0, n + 1)}
        batch |= {"strengths": torch.rand(n, count), "practice": torch.randn(n, 3, 4, dim)}
        batch |= {"asked": torch.randint(0, 2, (n, 3, count)).float()}
    return batch


def step(model: FusionNetwork, criterion: nn.Module, batch: dict, device: torch.device, parts: int) -> Tensor:
    """The loss of a training step, as train.py computes it, gradients in the network."""
    model.zero_grad(set_to_none=True)
    losses = []
    for part in split_batch(batch, parts):
        part = to_device(part, device, {})
        terms = criterion(model(*model.forward_args(part)), **part, **model.loss_inputs(part), progress=0.5)
        (terms["total"] / parts).backward()
        losses.append(terms["total"].detach())
    return torch.stack(losses).mean().cpu()


def training_step(m: Machine, source: str, limit: float, parts: int = 1, **options) -> list[Row]:
    """Loss and gradients on the device, in `parts`, against those of the CPU in float32; `options` of `configure`."""
    model = open_network(source).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and parts > 1:
            module.eval()  # the statistics of a part are not those of the whole
    criterion = build_loss({"name": "instructed"} if "instruction" in model.inputs else EVERY_TERM)
    batch = training_batch(model, *m.pick(((48, 64), 4), ((44, 44), 2)))  # the loss takes 41 pixels or more
    expected_loss = step(model, criterion, batch, torch.device("cpu"), 1)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    configure(**options)
    model.to(m.device)
    loss = step(model, criterion.to(m.device), batch, m.device, parts)
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    if gradients.keys() != expected.keys():
        raise ValueError(f"gradients of other weights: {gradients.keys() ^ expected.keys()}")
    scale = largest(gradient.abs().max().item() for gradient in expected.values())
    difference = largest((gradients[name] - expected[name]).abs().max().item() / scale for name in expected)
    return [
        at_most("loss", ((loss - expected_loss) / expected_loss).abs().item(), limit, "relative"),
        at_most("gradients", difference, limit, "of largest"),
    ]


def training(m: Machine) -> Iterator[Check]:
    for source in trained():
        for variant, (options, limit) in STEPS.items():
            yield f"{source}, {variant}", partial(training_step, m, source, limit, **options)


# --- metrics, CPU against GPU -----------------------------------------------------------------------


def triples(n: int, size: tuple[int, int] = (120, 160)) -> list[np.ndarray]:
    """F, A, B (n, H, W) uint8; A has two warm targets, of which F keeps some contrast."""
    fused, a, b = np.stack(pictures(3 * n, *size)).reshape(3, n, *size)
    a[:] = cv2.GaussianBlur(a.transpose(1, 2, 0), (0, 0), 3).reshape(*size, n).transpose(2, 0, 1) // 2
    for top, left in ((30, 40), (35, 100)):
        a[:, top : top + 8, left : left + 8], fused[:, top : top + 8, left : left + 8] = 250, 220
    return [fused, a, b]


def relative(values: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference; NaN is equal to NaN, but not everywhere."""
    if not np.isfinite(expected).any():
        raise ValueError("no value is finite: nothing is compared")
    pairs = [(x, y) for x, y in zip(values, expected) if not (math.isnan(x) and math.isnan(y)) and x != y]
    return largest(abs(x - y) / max(abs(y), 1e-300) for x, y in pairs)


def evaluator(m: Machine) -> list[Row]:
    """Every metric of images of several sizes, on the device and on the CPU."""
    images = [[image[0] for image in triples(1, size)] for size in [(120, 160), (90, 140), (200, 233)]]
    found = [[measure_all([f], a, b, [*METRICS], device)[0] for f, a, b in images] for device in (m.device, "cpu")]
    columns = {name: [[row[name] for row in rows] for rows in found] for name in METRICS}
    return [at_most(name, relative(*column), 1e-9, "relative") for name, column in columns.items()]


def metrics(m: Machine) -> Iterator[Check]:
    yield "difference", partial(evaluator, m)


# --- resume -------------------------------------------------------------------------------------------


def launch(m: Machine) -> Callable[..., str]:
    """What runs a script: a process of its own, or, to rehearse, this one, which has imported everything already."""
    return m.pick(process, script)


def generated_set(m: Machine, folder: Path, count: int, **options) -> list[str]:
    """A training set of generated pairs as H5: the words that train.py takes."""
    make_pairs(folder / "VLF", [f"a{i:03}" for i in range(count)], "train", **options)
    (folder / "datasets.yaml").write_text("Toy: {task: IVF, a: IR, b: VI, color: [VI]}\n")
    words = [*CONFIG, f"data.root={folder / 'VLF'}", f"data.h5={folder / 'h5'}", "data.train=[Toy_train]"]
    words += [f"data.datasets={folder / 'datasets.yaml'}", f"train.exp={folder / 'exp'}", f"device={m.device}"]
    words += ["data.resize=null"]
    launch(m)("data_process.py", *words, "Toy_train")
    return words


def run_folder(folder: Path, name: str) -> Path:
    (found,) = (folder / "exp").glob(f"*_{name}")
    return found


def resumed(m: Machine) -> list[Row]:
    """train.py, four epochs at once, again, and two and two: largest differences of the weights to the first run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*generated_set(m, folder, 4), *FAST]
        runs = [["train.epochs=4", "name=whole"], ["train.epochs=4", "name=again"], ["train.epochs=2", "name=parts"]]
        train = partial(launch(m), "train.py", *words)
        with ThreadPoolExecutor(m.pick(3, 1)) as pool:
            list(pool.map(lambda run: train(*run), runs))
        last = {run: run_folder(folder, run) / "model" / "last.pth" for run in ("whole", "again", "parts")}
        train("train.epochs=4", "name=parts", f"train.resume={last['parts']}")
        whole, again, parts = (torch.load(path, map_location="cpu", weights_only=True) for path in last.values())
    if not whole["epoch"] == parts["epoch"] == 4 or whole["step"] != parts["step"]:
        raise ValueError(f"stopped after epoch {parts['epoch']}, step {parts['step']}")
    noise, difference = (
        largest((tensor - other["model"][key]).abs().max().item() for key, tensor in whole["model"].items())
        for other in (again, parts)
    )
    # 0 where the device repeats itself bit for bit; else what its rounding makes of the same training
    return [told("run again: difference", noise), at_most("resumed: difference", difference, 10 * noise)]


def resume(m: Machine) -> Iterator[Check]:
    yield "train.py, 4 epochs against 2 and 2", partial(resumed, m)
