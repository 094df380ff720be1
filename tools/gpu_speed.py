"""What `python -m tools.gpu` measures, section by section; as tools/gpu_checks.py, whose helpers it uses."""

import json
import math
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import cv2
import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from net import build_model
from tests.toy import FAST, ROOT
from tools.bench import (
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
)
from tools.gpu_checks import (
    STEPS,
    VARIANTS,
    Check,
    Machine,
    Row,
    agreement,
    aim,
    at_most,
    configure,
    example,
    generated_set,
    label,
    launch,
    open_network,
    peak,
    run_folder,
    seconds,
    sizes,
    told,
    trained,
    training_step,
    weights,
)
from utils.config import load_config
from utils.data.images import read_image
from utils.loss import build_loss
from utils.metrics import measure_all
from utils.process import set_up_process
from utils.results.evaluate import to_device

# --- what the machine can do ------------------------------------------------------------------------


@cache
def product_rate(m: Machine, precision: str, side: int) -> float:
    """TFLOP/s of a matrix product, side x side."""
    set_up_process(precision)
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


# --- the cases of tools/bench.py against the literal form ---------------------------------------------


GRID = dict(grid=(24, 32))  # of a rehearsal


def cases(m: Machine) -> dict[str, dict]:
    """Options of FILMCase by the name of the case."""
    real = {name: options for name, (options, _) in FILM.items()}
    rehearsed = {"inference-12x16": dict(size=(12, 16)), "training-2x6x8": dict(size=(6, 8), batch=2, train=True)}
    return m.pick(real, {name: options | GRID for name, options in rehearsed.items()})


def bench_args(m: Machine, precision: str = "fp32", **options) -> Namespace:
    return Namespace(device=str(m.device), precision=precision, **dict(compile=False, checkpointing=False) | options)


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
    options, flops = cases(m)[name], work(m, name)
    train = "train" in options
    case = FILMCase(bench_args(m, precision, compile=compile), **options)
    set_up_process(precision)
    difference = case.difference()  # and a warm-up
    ours, literal = interleave(case.ours, case.theirs, m.pick(5, 1))
    rate = flops / ours
    ratio = told("literal / ours", literal / ours)
    if precision == "fp32" or (compile and not train):
        ratio = aim("literal / ours", literal / ours, "", least=8 if compile else 4)
    return [
        told("ours", 1000 * ours, "ms"),
        told("literal", 1000 * literal, "ms"),
        ratio,
        at_most("difference", difference, (STEPS if train else VARIANTS)[precision][1]),
        told("rate", rate, "TFLOP/s"),
        told(f"of the ceiling in {precision}", 100 * rate / ceiling(m, precision), "%"),
    ]


def other_case(function: Callable[..., tuple[float, ...]], names: tuple[str, str], *args, **options) -> list[Row]:
    """A case of tools/bench.py that is not FILM against its literal form; `names` of what is timed."""
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
    model.to(m.device).train()
    configure(precision, compile=compile)
    criterion = build_loss(config.loss).to(m.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.train.lr, fused=True)

    def one_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(model(*model.forward_args(batch)), **batch, progress=0.5)["total"].backward()
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


def recipe_as_run(m: Machine) -> list[Row]:
    """What train.py reports with its loader, in the last of its log lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count, size, dim, tokens = m.pick((80, (288, 384), 768, TEXT_TOKENS), (4, (40, 48), 12, 5))
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
            configure(precision, tile=64)
        found[form] = peak(m, case.theirs if form == "literal" else case.ours)
        del case
    rows = [told(form, value, "GiB") for form, value in found.items()]
    if max(found["ours"], found["literal"]) == math.inf:
        return rows
    ratio = found["literal"] / max(found["ours"], 1e-9)
    return [*rows, aim("literal / ours", ratio, "", least) if least else told("literal / ours", ratio)]


def memory(m: Machine) -> Iterator[Check]:
    grid = m.pick({}, GRID)
    for height, width in m.pick([(480, 640), (1024, 1280), (2160, 3840)], [(12, 16)]):
        yield f"inference {height} x {width}", partial(memory_of, m, dict(size=(height, width), **grid), None)
    height, width = m.pick((288, 384), (6, 8))
    options = dict(size=(height, width), batch=2, train=True, **grid)
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
        results, reading, start = {}, 0.0, time.perf_counter()
        for i in range(count):
            began = time.perf_counter()
            images = [read_image(Path(folder, f"{i}_{k}.png"))[0] for k in range(3)]
            reading += time.perf_counter() - began
            (results[str(i)],) = measure_all(images[:1], *images[1:], SIX, m.device)
        total = time.perf_counter() - start
    if len(results) != count or not all(math.isfinite(v) for row in results.values() for v in row.values()):
        raise ValueError("a value is missing")
    return [aim("all", total, "s", most=10), told("of it reading", reading, "s")]


def files(m: Machine) -> Iterator[Check]:
    yield "six metrics of 361 triples", partial(six_metrics, m)


# --- torch.compile ------------------------------------------------------------------------------------


def graphs(m: Machine) -> list[Row]:
    """How many graphs images of several sizes need."""
    torch.compiler.reset()
    model, found = open_network("film").to(m.device), []
    configure(compile=True)
    for size in sizes(m) + sizes(m, odd=True):
        before = counters["stats"]["unique_graphs"]
        with torch.inference_mode():
            model(*model.forward_args(to_device(example(model, size), m.device, {})))
        found.append(counters["stats"]["unique_graphs"] - before)
    return [
        told("graphs for the first size", found[0]),
        told("more for the second", found[1]),
        at_most("more for the others", sum(found[2:]), 0),
    ]


def compiled(m: Machine) -> Iterator[Check]:
    if m.rehearsal:  # it would take minutes
        return
    for source in [*trained(), *weights(m)]:
        yield label(source), partial(agreement, m, source, 1e-4, compile=True)
    yield "film, several sizes", partial(graphs, m)
    yield "film, training step", partial(training_step, m, "film", 1e-3, compile=True)
    for name in cases(m):
        yield f"{name}, bf16 + compile", partial(film_case, m, name, "bf16", compile=True)
    yield "film_ivf, bf16 + compile", partial(recipe_rate, m, "bf16", compile=True)


# --- the layout of maps -------------------------------------------------------------------------------


def layout_times(m: Machine, precision: str) -> list[Row]:
    """FILM with its maps in both layouts."""
    configure(precision)
    model = build_model("film", **m.pick({}, {"token_grid": [24, 32]})).to(m.device).eval()
    images = torch.rand(2, 1, 1, *m.pick((480, 640), (12, 16)), device=m.device)
    text = torch.randn(1, TEXT_TOKENS, 768, device=m.device)
    copies = [deepcopy(model).to(memory_format=form) for form in (torch.contiguous_format, torch.channels_last)]
    calls = [torch.inference_mode()(partial(each, *images, text)) for each in copies]
    calls[0](), calls[1]()
    times = interleave(*calls, m.pick(10, 1))
    rows = [told(name, 1000 * time, "ms") for name, time in zip(("NCHW", "channels_last"), times)]
    return [*rows, told("NCHW / channels_last", times[0] / times[1])]


def layout(m: Machine) -> Iterator[Check]:
    for precision in m.pick(("fp32", "bf16"), ("fp32",)):
        yield f"film, {precision}", partial(layout_times, m, precision)
