"""What tests/gpu.py checks and measures, section by section.

A section is a function that lists its checks, `(title, function)`, and does nothing else: tests/gpu.py calls the
functions. A check returns its rows, and may raise what it likes.
"""

import gc
import json
import math
import os
import platform
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from net import NETWORKS, FusionNetwork, build_model, load_model, prepare
from tests.bench import (
    FILM,
    SHIPPED,
    SIX,
    TEXT_TOKENS,
    FILMCase,
    bench_instruction,
    bench_metrics,
    bench_mgfusion,
    interleave,
    pictures,
    synchronize,
)
from tests.conftest import CONFIG, FAST, ROOT, make_pairs, process, script
from tests.literal import LiteralFILM
from utils.config import load_config
from utils.data.images import read_image
from utils.files import commit
from utils.guides import GUIDES, guides_of
from utils.loss import build_loss
from utils.metrics import METRICS
from utils.results.evaluate import Evaluator, split_batch, to_device


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


# how float32 is rounded in convolutions and in matrix products, before anything here changes it
PRECISION_AT_START = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

Check = tuple[str, Callable[[], Sequence[Row]]]


# --- what differs between a GPU and the CPU in its place --------------------------------------------


def facts(m: Machine) -> dict[str, object]:
    """The machine and the versions, by name."""
    gpu = {}
    if m.device.type == "cuda":
        found = torch.cuda.get_device_properties(m.device)
        gpu = {"device": found.name, "memory": found.total_memory / 2**30, "processors": found.multi_processor_count}
        gpu |= {"compute capability": f"{found.major}.{found.minor}", "bf16": str(torch.cuda.is_bf16_supported())}
    return gpu | {
        "commit": (commit() or "none")[:12],
        "python": platform.python_version(),
        "CPU cores": os.cpu_count(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "convolutions in fp32": PRECISION_AT_START[0],
        "matrix products in fp32": PRECISION_AT_START[1],
    }


def free_memory() -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak(m: Machine, call: Callable[[], object]) -> float:
    """GiB that a call takes beyond what is there before; inf if that is more than there is."""
    free_memory()
    if m.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:  # of the whole process, as a stand-in
        import resource

        before, most = 0, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        call()
        synchronize()
    except torch.OutOfMemoryError:
        return math.inf
    return (most() - before) / 2**30


def tf32(on: bool) -> None:
    """TF32 in convolutions and matrix products.

    By these two names, as every way of asking for the state works after them, in torch.compile too; after
    `fp32_precision` some raise.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, warmed up."""
    call()
    return interleave(call, lambda: None, rounds)[0]


# --- the device -------------------------------------------------------------------------------------


def device_facts(m: Machine) -> Iterator[Check]:
    yield "facts", lambda: [told(name, value, "GiB" if name == "memory" else "") for name, value in facts(m).items()]


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
    for guide in guides_of(model.inputs):
        lengths = [2] * n if guide.name == "clip" else [5 + i for i in range(n)]
        features = [torch.randn(length, model.options[f"{guide.name}_dim"]) for length in lengths]
        batch |= GUIDES[guide.name].collate(features)
    return batch


def prepare_on(m: Machine, model: nn.Module, precision: str = "fp32", **options) -> nn.Module:
    """Move a network to the device, to compute as `prepare` and `tf32` say."""
    prepare(model.to(m.device), precision, **options)
    tf32(precision == "tf32")
    return model


def agreement(m: Machine, source: str | Path, limit: float, odd: bool = False, **options) -> list[Row]:
    """Fused images of the device against those of the CPU in float32, both of the same weights and inputs.

    Args:
        odd: odd sizes.
        options: of `prepare_on`.
    """
    model = open_network(source)
    batches = [example(model, size) for size in sizes(m, odd)]
    with torch.inference_mode():
        expected = [model(*model.arguments(batch)) for batch in batches]
        prepare_on(m, model, **options)
        fused = [model(*model.arguments(to_device(batch, m.device, {}))).cpu() for batch in batches]
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
        terms = criterion(model(*model.arguments(part)), **part, **model.readings(part))
        (terms["total"] / parts).backward()
        losses.append(terms["total"].detach())
    return torch.stack(losses).mean().cpu()


def training_step(m: Machine, source: str, limit: float, parts: int = 1, **options) -> list[Row]:
    """Loss and gradients on the device, in `parts`, against those of the CPU in float32; `options` of `prepare_on`."""
    model = open_network(source).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and parts > 1:
            module.eval()  # the statistics of a part are not those of the whole
    criterion = build_loss({"name": "instructed"} if "instruction" in model.inputs else EVERY_TERM)
    batch = training_batch(model, *m.pick(((48, 64), 4), ((44, 44), 2)))  # the loss takes 41 pixels or more
    expected_loss = step(model, criterion, batch, torch.device("cpu"), 1)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    prepare_on(m, model, **options)
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


def metric(m: Machine, name: str) -> list[Row]:
    images = [torch.from_numpy(image)[:, None].double() for image in triples(3)]
    expected = METRICS[name](*images)
    values = METRICS[name](*(image.to(m.device) for image in images))
    return [at_most("difference", relative(values.tolist(), expected.tolist()), 1e-9, "relative")]


def mixed_sizes(m: Machine) -> list[Row]:
    """The Evaluator, whose batches on a GPU are of one size each, against the CPU, one by one."""
    sizes = [(120, 160), (90, 140), (120, 160), (101, 133), (90, 140), (120, 160)]
    results = []
    for device in (torch.device("cpu"), m.device):
        evaluator = Evaluator(list(METRICS), device)
        for i, size in enumerate(sizes):
            evaluator.add(str(i), *(image[0] for image in triples(1, size)))
        results.append(evaluator.results())
    expected, values = ([value for row in each.values() for value in row.values()] for each in results)
    if list(results[0]) != list(results[1]):
        raise ValueError(f"images in another order: {list(results[1])}")
    return [at_most("difference", relative(values, expected), 1e-9, "relative")]


def metrics(m: Machine) -> Iterator[Check]:
    for name in METRICS:
        yield name, partial(metric, m, name)
    yield "Evaluator, mixed sizes", partial(mixed_sizes, m)


# --- what the machine can do ------------------------------------------------------------------------


@cache
def product_rate(m: Machine, precision: str, side: int) -> float:
    """TFLOP/s of a matrix product, side x side."""
    tf32(precision == "tf32")
    a, b = torch.randn(2, side, side, device=m.device, dtype=torch.bfloat16 if precision == "bf16" else None)
    return 2 * side**3 / seconds(lambda: a @ b, m.pick(10, 1)) / 1e12


def ceiling(m: Machine, precision: str) -> float:
    """The best rate of `product_rate`."""
    return max(product_rate(m, precision, side) for side in m.pick((4096, 6144, 8192), (64, 96, 128)))


def copy_rate(m: Machine, source: str) -> list[Row]:
    count = m.pick(2**28, 2**16)  # 1 GiB
    x = torch.zeros(count, device=m.device) if source == "device" else torch.zeros(count, pin_memory=not m.rehearsal)
    y = torch.zeros(count, device=m.device)
    moved = (2 if source == "device" else 1) * 4 * count  # read and written
    return [told("rate", moved / seconds(lambda: y.copy_(x, non_blocking=True), m.pick(5, 1)) / 1e9, "GB/s")]


def ceilings(m: Machine) -> Iterator[Check]:
    for precision in ("fp32", "tf32", "bf16"):
        for side in m.pick((4096, 6144, 8192), (64, 96, 128)):
            call = partial(product_rate, m, precision, side)
            yield f"product of {side}, {precision}", lambda call=call: [told("rate", call(), "TFLOP/s")]
    yield "copy on the device", partial(copy_rate, m, "device")
    yield "copy to the device", partial(copy_rate, m, "host")


# --- the cases of tests/bench.py against the literal form ---------------------------------------------


def cases(m: Machine) -> dict[str, dict]:
    """Options of FILMCase by the name of the case."""
    paper = {"training-2x288x384": dict(size=(288, 384), batch=2, train=True)}
    real = {name: options for name, (options, _) in FILM.items()} | paper
    rehearsed = {"inference-12x16": dict(size=(12, 16)), "training-2x6x8": dict(size=(6, 8), batch=2, train=True)}
    return m.pick(real, rehearsed)


def bench_args(m: Machine, precision: str = "fp32", compile: bool = False, checkpointing: bool = False) -> Namespace:
    return Namespace(device=str(m.device), precision=precision, compile=compile, checkpointing=checkpointing)


@cache
def work(m: Machine, name: str) -> float:
    """TFLOP of our form of a case."""
    case = FILMCase(bench_args(m), **cases(m)[name])
    with FlopCounterMode(display=False) as counter:
        case.ours()
    return counter.get_total_flops() / 1e12


def film_case(m: Machine, name: str, precision: str, compile: bool = False) -> list[Row]:
    """Ours in some precision against the literal form in fp32; of tf32, both."""
    if compile:
        torch.compiler.reset()  # graphs for this size alone, as in a program that meets no other
    options = cases(m)[name]
    train = "train" in options
    case = FILMCase(bench_args(m, precision, compile), **options)
    tf32(precision == "tf32")
    start = time.perf_counter()
    difference = case.difference()
    first = time.perf_counter() - start
    ours, literal = interleave(case.ours, case.theirs, m.pick(5, 1))
    start = time.perf_counter()
    case.ours()
    launching = time.perf_counter() - start
    rate = work(m, name) / ours
    ratio = told("literal / ours", literal / ours)
    if precision == "fp32" or (compile and not train):
        ratio = aim("literal / ours", literal / ours, "", least=8 if compile else 4)
    return [
        told("ours", 1000 * ours, "ms"),
        told("ours, until all is launched", 1000 * launching, "ms"),
        told("literal", 1000 * literal, "ms"),
        ratio,
        at_most("difference", difference, (STEPS if train else VARIANTS)[precision][1]),
        told("first call of both", first, "s"),
        told("rate", rate, "TFLOP/s"),
        told(f"of the ceiling in {precision}", 100 * rate / ceiling(m, precision), "%"),
    ]


def other_case(function: Callable[..., tuple[float, ...]], names: tuple[str, str], *args, **options) -> list[Row]:
    """A case of tests/bench.py that is not FILM against its literal form; `names` of what is timed."""
    ours, theirs, difference = function(*args, **options)
    rows = [told(name, 1000 * time, "ms") for name, time in zip(names, (ours, theirs))]
    return rows if math.isnan(difference) else [*rows, at_most("difference", difference, 1e-6, "relative")]


def bench(m: Machine) -> Iterator[Check]:
    for precision in m.pick(("fp32", "tf32", "bf16"), ("fp32",)):  # bf16 is slow on most CPUs
        for name in cases(m):
            yield f"{name}, {precision}", partial(film_case, m, name, precision)
    size, rounds = m.pick(((480, 640), 5), ((24, 32), 1))
    mgfusion, instruction = ("whole", "Restormer blocks alone"), ("with an instruction", "without")
    yield "mgfusion", partial(other_case, bench_mgfusion, mgfusion, bench_args(m), size, rounds)
    call = partial(other_case, bench_instruction, instruction, bench_args(m), size, rounds)
    yield "instruction, small", partial(call, **SHIPPED)
    if not m.rehearsal:
        yield "instruction", call
    names, images = m.pick((SIX, 2), (["SF"], 1))
    yield "metrics", partial(other_case, bench_metrics, ("ours", "literal, CPU"), names, images, 1, str(m.device))


# --- the recipe of the paper --------------------------------------------------------------------------

MSRS_PAIRS = 1083


def recipe_rate(m: Machine, precision: str, compile: bool = False) -> list[Row]:
    """Training steps of film_ivf with the data on the device."""
    config = load_config(ROOT / "configs" / "film_ivf.yaml")
    size, n = m.pick(config.data.resize, (12, 16)), config.train.batch_size
    torch.manual_seed(0)
    model = build_model(**config.net | m.pick({}, {"token_grid": [24, 32]}))
    batch = to_device(example(model, size, n), m.device, {})
    batch["text"] = torch.randn(n, TEXT_TOKENS, model.options["text_dim"], device=m.device)
    batch["text_mask"] = torch.ones(batch["text"].shape[:2], dtype=torch.bool, device=m.device)
    prepare_on(m, model.train(), precision, compile=compile)
    criterion = build_loss(config.loss).to(m.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.train.lr, fused=True)

    def one_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(model(*model.arguments(batch)), **batch)["total"].backward()
        optimizer.step()

    one_step()
    return training_time(n / seconds(one_step, m.pick(20, 1)))


def training_time(pairs_per_second: float) -> list[Row]:
    """The rate, and what it makes of 150 epochs of MSRS."""
    train = load_config(ROOT / "configs" / "film_ivf.yaml").train
    pairs = train.epochs * (MSRS_PAIRS - MSRS_PAIRS % train.batch_size)
    return [
        told("rate", pairs_per_second, "pairs/s"),
        told(f"{train.epochs} epochs of MSRS", pairs / pairs_per_second / 3600, "hours"),
    ]


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


def recipe_as_run(m: Machine) -> list[Row]:
    """What train.py reports with its loader, in the last of its log lines."""
    with tempfile.TemporaryDirectory() as name:
        folder, (count, size, dim, tokens) = (
            Path(name),
            m.pick((80, (288, 384), 768, TEXT_TOKENS), (4, (40, 48), 12, 5)),
        )
        words = generated_set(m, folder, count, size=size, dim=dim, tokens=tokens)
        words += m.pick(["train.log_every=10"], FAST)
        launch(m)("train.py", *words, "train.epochs=1", "train.pictures=0", "name=recipe")
        lines = (run_folder(folder, "recipe") / "metrics.jsonl").read_text().splitlines()
    return training_time([json.loads(line)["pairs_per_s"] for line in lines if '"train"' in line][-1])


def recipe(m: Machine) -> Iterator[Check]:
    for precision in m.pick(("fp32", "tf32", "bf16"), ("fp32",)):
        yield f"film_ivf, {precision}", partial(recipe_rate, m, precision)
    yield "film_ivf by train.py", partial(recipe_as_run, m)


# --- memory -------------------------------------------------------------------------------------------


def memory_of(m: Machine, options: dict, least: float | None) -> list[Row]:
    """Peak memory of a case in several forms, out of memory as a result."""
    found = {}
    for form in ("ours", "ours, bf16", "ours, tile of 64 rows", "ours, checkpointing", "literal"):
        if ("tile" in form and options.get("train")) or ("checkpointing" in form and not options.get("train")):
            continue
        precision = "bf16" if "bf16" in form else "fp32"
        case = FILMCase(bench_args(m, precision, checkpointing="checkpointing" in form), **options)
        if "tile" in form:
            prepare(case.model, precision, tile=64)
        found[form] = peak(m, case.theirs if form == "literal" else case.ours)
        del case
    rows = [told(form, value, "GiB") for form, value in found.items()]
    if max(found["ours"], found["literal"]) == math.inf:
        return rows
    ratio = found["literal"] / found["ours"]
    return [*rows, aim("literal / ours", ratio, "", least) if least else told("literal / ours", ratio)]


def memory(m: Machine) -> Iterator[Check]:
    for height, width in m.pick([(480, 640), (1024, 1280), (2160, 3840)], [(12, 16)]):
        yield f"inference {height} x {width}", partial(memory_of, m, dict(size=(height, width)), None)
    height, width = m.pick((288, 384), (6, 8))
    options = dict(size=(height, width), batch=2, train=True)
    yield f"training 2 x {height} x {width}", partial(memory_of, m, options, 3)


# --- the six metrics of the paper, from files -----------------------------------------------------------


def six_metrics(m: Machine) -> list[Row]:
    """361 triples, as many as the test set of MSRS has, read from PNG files and measured."""
    count, distinct, size = m.pick((361, 19, (480, 640)), (4, 2, (48, 64)))
    coded = [cv2.imencode(".png", image)[1].tobytes() for image in pictures(distinct + 2, *size)]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            for k in range(3):
                Path(folder, f"{i}_{k}.png").write_bytes(coded[i % distinct + k])
        evaluator, reading, start = Evaluator(SIX, m.device), 0.0, time.perf_counter()
        for i in range(count):
            began = time.perf_counter()
            images = [read_image(Path(folder, f"{i}_{k}.png"))[0] for k in range(3)]
            reading += time.perf_counter() - began
            evaluator.add(str(i), *images)
        results = evaluator.results()
        total = time.perf_counter() - start
    if len(results) != count or not all(math.isfinite(v) for row in results.values() for v in row.values()):
        raise ValueError("a value is missing")
    return [aim("all", total, "s", most=10), told("of it reading", reading, "s")]


def files(m: Machine) -> Iterator[Check]:
    yield "six metrics of 361 triples", partial(six_metrics, m)


# --- resume -------------------------------------------------------------------------------------------


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


# --- torch.compile ------------------------------------------------------------------------------------


def graphs(m: Machine) -> list[Row]:
    """How many graphs images of several sizes need."""
    torch.compiler.reset()
    # the strips of rows that a CPU computes at a time depend on the size, and so there are graphs for each
    model = prepare_on(m, open_network("film"), compile=True, tile=m.pick(None, 24))
    found = []
    for size in m.pick(sizes(m) + sizes(m, odd=True), [(24, 32), (24, 27), (24, 20), (24, 25)]):
        before = counters["stats"]["unique_graphs"]
        with torch.inference_mode(), torch.compiler.set_stance("default"):  # in a rehearsal, too
            model(*model.arguments(to_device(example(model, size), m.device, {})))
        found.append(counters["stats"]["unique_graphs"] - before)
    return [
        told("graphs for the first size", found[0]),
        told("more for the second", found[1]),
        at_most("more for the others", sum(found[2:]), 0),
    ]


def compiled(m: Machine) -> Iterator[Check]:
    for source in [*trained(), *weights(m)]:
        yield label(source), partial(agreement, m, source, 1e-4, compile=True)
    yield "film, several sizes", partial(graphs, m)
    yield "film, training step", partial(training_step, m, "film", 1e-3, compile=True)
    precision = m.pick("bf16", "fp32")
    for name in cases(m):
        yield f"{name}, {precision} + compile", partial(film_case, m, name, precision, compile=True)
    yield f"film_ivf, {precision} + compile", partial(recipe_rate, m, precision, compile=True)


# --- the layout of maps -------------------------------------------------------------------------------


def layout_times(m: Machine, run: Callable[[torch.memory_format], Callable[[], object]]) -> list[Row]:
    """Times of a call in both layouts; `run` sets it up in one."""
    formats = torch.contiguous_format, torch.channels_last
    nchw, nhwc = (run(memory_format) for memory_format in formats)
    nchw(), nhwc()
    times = interleave(nchw, nhwc, m.pick(10, 1))
    rows = [told(name, 1000 * time, "ms") for name, time in zip(("NCHW", "channels_last"), times)]
    return [*rows, told("NCHW / channels_last", times[0] / times[1])]


def feed_forward(m: Machine, dtype: torch.dtype, train: bool, whole: bool, memory_format) -> Callable[[], object]:
    """The depthwise convolution of a decoder's feed-forward network, or the `whole` of it."""
    n, c, h, w = m.pick((2, 64, 288, 384) if train else (1, 64, 480, 640), (1, 8, 12, 16))
    wide = 8 * c
    weights = [
        torch.randn(size, device=m.device, dtype=dtype)
        for size in ((wide, c, 1, 1), (wide, 1, 3, 3), (c, wide // 2, 1, 1))
    ]
    x = torch.randn(n, c if whole else wide, h, w, device=m.device, dtype=dtype)
    expand, depthwise, project = (weight.to(memory_format=memory_format).requires_grad_(train) for weight in weights)
    x = x.to(memory_format=memory_format).requires_grad_(train)

    def call() -> None:
        y = F.conv2d(x, expand) if whole else x
        y = F.conv2d(y, depthwise, padding=1, groups=wide)
        if whole:
            a, b = y.chunk(2, dim=1)
            y = F.conv2d(F.gelu(a) * b, project)
        if train:
            torch.autograd.grad(y, [x, expand, depthwise, project] if whole else [x, depthwise], y.detach())

    return call


def literal_network(m: Machine, memory_format) -> Callable[[], object]:
    model = LiteralFILM().to(m.device, memory_format=memory_format)
    images = torch.rand(2, 1, 1, *m.pick((480, 640), (12, 16)), device=m.device)
    text = torch.randn(1, TEXT_TOKENS, 768, device=m.device)
    return torch.inference_mode()(lambda: model(*images, text))


def layout(m: Machine) -> Iterator[Check]:
    for part, whole in (("depthwise", False), ("feed-forward", True)):
        for dtype in (torch.float32, torch.bfloat16):
            for train in (False, True):
                title = f"{part}, {str(dtype)[6:]}, {'training' if train else 'inference'}"
                yield title, partial(layout_times, m, partial(feed_forward, m, dtype, train, whole))
    yield "literal network, float32", partial(layout_times, m, partial(literal_network, m))


# what is worth most comes first: the last ones are not reached where time is short
SECTIONS: dict[str, Callable[[Machine], Iterator[Check]]] = {
    "device": device_facts,
    "networks": networks,
    "training": training,
    "metrics": metrics,
    "ceilings": ceilings,
    "bench": bench,
    "recipe": recipe,
    "memory": memory,
    "files": files,
    "resume": resume,
    "compile": compiled,
    "layout": layout,
}
