"""Our code against the literal form, interleaved in one process.

    python -m tools.bench                                   every case
    python -m tools.bench inference-288x384 metrics         some of them
    python -m tools.bench --device cuda --precision bf16 --compile

A row is a case: median seconds of both forms and their ratio, the most memory that each takes beyond
what holds its weights and inputs (of a fresh process on the CPU; of tensors on a GPU) and their ratio,
and the largest difference of the results. Seconds depend on the machine and on what else it does: the
ratio is what to read. The row mgfusion has the whole network under "ours" and its Restormer blocks alone
under "literal"; the rows instruction have a fusion with an instruction under "ours" and one without under
"literal"; the row small has the size of the networks that ship under "ours", and nothing under "literal".
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from net import build_model, configure_compute
from net.published import translate
from tests import literal
from tools.bench_video import bench_video
from utils.data.h5 import write_sample
from utils.data.pairs import PairDataset
from utils.loss import FusionLoss
from utils.metrics import measure_all
from utils.process import set_up_process

TEXT_TOKENS = 120  # about as many as both paragraphs of a RoadScene pair have
SHIPPED = dict(text_dim=384, hidden_dim=64, channels=16, heads=4, stages=2, token_grid=[36, 48])  # models/IVF*
SIX = ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]


def interleave(
    ours: Callable, theirs: Callable, rounds: int, title: str = "", clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Median seconds of both, called in turn so that both meet the same disturbances."""
    times: tuple[list, list] = ([], [])
    for _ in tqdm(range(rounds), desc=title, leave=False, disable=not title):
        for function, record in zip((ours, theirs), times):
            synchronize()
            start = clock()
            function()
            synchronize()
            record.append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def synchronize() -> None:
    """Wait for the GPU, where one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class FILMCase:
    """Both forms of FILM with the same weights and inputs: inference, or a training step with the loss.

    `ours` and `theirs` run once and return what is compared: the fused image, or the network with its gradients.
    """

    def __init__(self, args, size: tuple[int, int], batch: int = 1, train: bool = False, grid=(288, 384), **sizes):
        torch.manual_seed(0)
        self.args, self.train = args, train
        self.literal = literal.LiteralFILM(grid).to(args.device)
        self.model = build_model("film", **{"token_grid": list(grid)} | sizes).to(args.device)
        if not sizes:  # the literal form has the published ones
            self.model.load_state_dict(translate(self.literal.state_dict()))
        configure_compute(args.precision, checkpointing=args.checkpointing, compile=args.compile)
        self.images = torch.rand(2, batch, 1, *size).to(args.device)
        self.text = torch.randn(batch, TEXT_TOKENS, self.model.options["text_dim"]).to(args.device)
        self.criterion = FusionLoss().to(args.device)

    def step(self, model: torch.nn.Module) -> object:
        with torch.inference_mode(not self.train):
            fused = model(*self.images, self.text)
        if not self.train:
            return fused
        model.zero_grad(set_to_none=True)
        self.criterion(fused, *self.images)["total"].backward()
        return model

    def ours(self) -> object:
        return self.step(self.model)

    def theirs(self) -> object:
        return self.step(self.literal)

    def difference(self) -> float:
        """Largest difference of the fused images, or of the gradients relative to the largest."""
        ours, theirs = self.ours(), self.theirs()
        if not self.train:
            return (ours - theirs).abs().max().item()
        expected = translate({name: p.grad for name, p in theirs.named_parameters()})
        largest = max(grad.abs().max() for grad in expected.values())
        return max((p.grad - expected[name]).abs().max() / largest for name, p in ours.named_parameters()).item()


FILM = {
    "inference-288x384": (dict(size=(288, 384)), 5),
    "inference-480x640": (dict(size=(480, 640)), 3),
    "inference-1024x1280": (dict(size=(1024, 1280)), 1),
    "training-2x128x128": (dict(size=(128, 128), batch=2, train=True), 5),
    "training-2x288x384": (dict(size=(288, 384), batch=2, train=True), 1),
}
SMALL = {"small-3000x4000": dict(size=(3000, 4000), **SHIPPED)}


def bench_film(name: str, args) -> tuple[float, ...]:
    """Ours, theirs (seconds), difference, memory of ours, of theirs (bytes)."""
    options, rounds = FILM[name]
    memory = [peak_memory(name, form, args) for form in ("ours", "theirs")]
    case = FILMCase(args, **options)
    difference = case.difference()  # and a warm-up
    return *interleave(case.ours, case.theirs, rounds, name), difference, *memory


def bench_small(name: str, args) -> tuple[float, ...]:
    """As `bench_film`, of ours alone."""
    case = FILMCase(args, **SMALL[name])
    seconds, _ = interleave(case.ours, lambda: None, 1, name)
    return seconds, math.nan, math.nan, peak_memory(name, "ours", args), math.nan


def peak_memory(name: str, form: str, args) -> int:
    """Bytes that one call takes beyond weights and inputs, in a process of its own."""
    command = [sys.executable, "-m", "tools.bench", name, "--peak", form, "--device", args.device]
    command += ["--precision", args.precision, *(["--compile"] * args.compile)]
    command += ["--checkpointing"] * args.checkpointing
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(name: str, args) -> None:
    """What `peak_memory` asks a fresh process for."""
    case = FILMCase(args, **(SMALL.get(name) or FILM[name][0]))

    def used(what: str) -> int:
        if args.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return int(Path("/proc/self/status").read_text().partition(what)[2].split()[0]) * 1024

    if args.device == "cuda":  # start the peak anew
        torch.cuda.reset_peak_memory_stats()
    else:  # VmHWM, on Linux
        Path("/proc/self/clear_refs").write_text("5")
    before = used("VmRSS:")
    getattr(case, args.peak)()
    synchronize()
    print(used("VmHWM:") - before)


def bench_mgfusion(args, size: tuple[int, int] = (480, 640), rounds: int = 5) -> tuple[float, ...]:
    """The whole MGFusion without CLIP, and its Restormer blocks alone."""
    model = build_model("mgfusion").to(args.device).eval()
    configure_compute(args.precision, compile=args.compile)
    image_a, image_b = torch.rand(2, 1, 1, *size, device=args.device)
    clip = torch.randn(1, 2, model.config["clip_dim"], device=args.device)

    @torch.inference_mode()
    def whole() -> None:
        model(image_a, image_b, clip)

    with torch.inference_mode():
        a, b = model.ire.feature_layers(image_a), model.vie.feature_layers(image_b)
        fused = torch.cat([a, b], dim=1)

    @torch.inference_mode()
    def blocks() -> None:
        model.ire.restormer(a), model.vie.restormer(b), model.decoder.restormer(fused)

    whole(), blocks()
    return *interleave(whole, blocks, rounds, "mgfusion"), math.nan


def bench_instruction(args, size: tuple[int, int] = (480, 640), rounds: int = 5, **sizes) -> tuple[float, ...]:
    """FILM with an instruction and without one."""
    model = build_model("film_instructed", **sizes).to(args.device).eval()
    configure_compute(args.precision, compile=args.compile)
    with torch.no_grad():
        model.reader.output.bias.fill_(-9)[0] = 9  # whatever the text, it reads that one thing is asked for
    images = torch.rand(2, 1, 1, *size, device=args.device)
    text = torch.randn(1, TEXT_TOKENS, model.config["text_dim"], device=args.device)
    instruction = torch.randn(1, 12, model.config["instruction_dim"], device=args.device)

    @torch.inference_mode()
    def asked() -> None:
        model(*images, text, None, instruction)

    @torch.inference_mode()
    def unasked() -> None:
        model(*images, text)

    asked(), unasked()
    return *interleave(asked, unasked, rounds, "instruction"), math.nan


def pictures(count: int, height: int = 480, width: int = 640) -> list[np.ndarray]:
    """Random 8-bit images (height, width), smooth along rows as pictures are."""
    rng = np.random.default_rng(0)
    base = np.cumsum(rng.normal(0, 4, (height, width)), axis=1)
    noise = rng.normal(0, 8, (count, height, width))
    return list(np.clip(128 + base + noise, 0, 255).round().astype(np.uint8))


def bench_metrics(
    names: list[str], images: int, rounds: int, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """`names` on `images` triples of 480 x 640: as test.py computes them (float64), and NumPy/SciPy."""
    every = pictures(images + 2)
    triples = [every[i : i + 3] for i in range(images)]

    def ours() -> dict:
        return {str(i): measure_all([f], a, b, names, device)[0] for i, (f, a, b) in enumerate(triples)}

    def theirs() -> dict:
        return {
            str(i): {name: literal.METRICS[name](*(image.astype(float) for image in triple)) for name in names}
            for i, triple in enumerate(triples)
        }

    expected, results = theirs(), ours()
    pairs = [(results[i][name], expected[i][name]) for i in expected for name in names]
    difference = max(abs(value - reference) / abs(reference) for value, reference in pairs)
    return *interleave(ours, theirs, rounds, "metrics", clock), difference


def bench_loader(rounds: int = 5, samples: int = 1083, read: int = 64) -> tuple[float, ...]:
    """Samples in random order from an H5 of as many pairs as MSRS has; theirs opens and lists the file each time."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        published, own = Path(folder) / "published.h5", Path(folder) / "own.h5"
        image, text = rng.integers(0, 256, (1, 288, 384), np.uint8), np.ones((TEXT_TOKENS, 768), np.float32)
        for path in (published, own):
            with h5py.File(path, "w") as file:
                if path == own:
                    write_sample(file, "00000", {"imageA": image, "imageB": image}, {"text": text})
                else:
                    file["text/00000"] = text
                    file["imageA/00000"] = file["imageB/00000"] = np.float32(image / 255)
                for key in ("imageA", "imageB", "text"):
                    for i in range(1, samples):
                        file[key][f"{i:05}"] = file[key]["00000"]  # a link: the names count here, not the pixels
        order = rng.permutation(samples)[:read]
        dataset = PairDataset([own])

        def ours() -> Iterator[dict]:
            return (dataset[i] for i in order)

        def theirs() -> Iterator[dict]:
            for i in order:
                with h5py.File(published, "r") as file:
                    key = list(file["imageA"].keys())[i]
                    a, b, text = (torch.from_numpy(file[group][key][()]) for group in ("imageA", "imageB", "text"))
                yield {"image_a": a, "image_b": b, "text": text}

        pairs = zip(ours(), theirs())
        difference = max((one[key] - two[key]).abs().max().item() for one, two in pairs for key in two)
        forms = (lambda: deque(ours(), maxlen=0), lambda: deque(theirs(), maxlen=0))  # no sample is kept
        return *interleave(*forms, rounds, "loader"), difference


def row(name: str, ours: float, theirs: float, difference: float, *memory: int) -> str:
    """One line of the table."""
    line = f"{name:<22}{ours:>9.3f}{theirs:>9.3f}{theirs / ours:>8.2f}"
    sizes = [f"{size / 2**20:>9.0f}" for size in memory] + [f"{memory[1] / memory[0]:>8.2f}"] if memory else []
    return line + ("".join(sizes) or f"{'-':>9}{'-':>9}{'-':>8}") + f"{difference:>11.1e}"


def main() -> None:
    cases = {name: lambda args, name=name: bench_film(name, args) for name in FILM} | {
        **{name: lambda args, name=name: bench_small(name, args) for name in SMALL},
        "mgfusion-480x640": bench_mgfusion,
        "instruction": bench_instruction,
        "instruction-small": lambda args: bench_instruction(args, **SHIPPED),
        "metrics": lambda args: bench_metrics(SIX, 20, 3, args.device),
        "metrics-VIFF-Qabf": lambda args: bench_metrics(["VIFF", "Qabf"], 5, 5, args.device),
        "loader": lambda args: bench_loader(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*cases, "video", []], help="all if none is named")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours; literal is fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--checkpointing", action="store_true", help="train.checkpointing for ours")
    parser.add_argument("--peak", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    set_up_process(args.precision)
    if args.peak:
        return print_peak(args.cases[0], args)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, ours {args.precision}")
    print(f"{'':<22}{'seconds':>18}{'':>8}{'MiB':>18}{'':>8}{'largest':>11}")
    columns = f"{'ours':>9}{'literal':>9}{'ratio':>8}"
    print(f"{'case':<22}{columns}{columns}{'difference':>11}")
    for name in args.cases or [*cases, "video"]:
        if name == "video":
            bench_video(args.device)
        else:
            print(row(name, *cases[name](args)), flush=True)


if __name__ == "__main__":
    main()
