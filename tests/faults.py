"""Scripts killed at random moments, many times: what is left is whole, and the next run goes on to the right end.

    python -m tests.faults [data_process 50] [train 15] [test 20]

Every kill is a SIGKILL to a script and all its workers. After each, everything that a reader would open is opened.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from tqdm import tqdm

from net.checkpoint import read_checkpoint
from tests.toy import CONFIG, FAST, ROOT, make_pairs

EPOCHS = 16


class Script:
    """A script with its arguments, run in a process group of its own."""

    def __init__(self, *words: str):
        self.words = [sys.executable, *words]

    def start(self) -> subprocess.Popen:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.words, cwd=ROOT, env=env, start_new_session=True, **quiet)

    def finish(self) -> float:
        """Run it undisturbed; returns how many seconds it took."""
        began = time.monotonic()
        if self.start().wait():
            sys.exit(f"{' '.join(self.words)} fails by itself")
        return time.monotonic() - began

    def kill(self, when: Callable[[], bool]) -> bool:
        """Kill it as soon as `when()` is true; False if it ended before."""
        process = self.start()
        while process.poll() is None:
            if when():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.0005)
        if process.returncode:
            sys.exit(f"{' '.join(self.words)} fails after a kill")
        return False


def moments(rng: np.random.Generator, whole: float, folder: Path) -> Iterator[Callable[[], bool]]:
    """When to kill: in turn after a random part of a run's time, and while a file is being written."""
    while True:
        yield after(rng.uniform(0.2, 0.9) * whole)
        yield in_a_write(folder, rng.integers(1, 8))


def after(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def in_a_write(folder: Path, looks: int) -> Callable[[], bool]:
    """True once something half-written was seen so many times."""
    left = iter(range(looks))
    return lambda: half_written(folder) and next(left, None) is None


def half_written(folder: Path) -> bool:
    return any(True for _ in folder.rglob(".*.tmp"))


def arguments(root: Path) -> list[str]:
    """A toy set, large enough that writing takes a while, and what every script needs to use it."""
    make_pairs(root / "VLF", [f"a{i}" for i in range(24)], "train", size=(480, 640))
    make_pairs(root / "VLF", [f"b{i}" for i in range(6)], "test", size=(90, 120))
    (root / "datasets.yaml").write_text("Toy: {task: IVF, a: IR, b: VI, color: [VI]}\n")
    words = [f"data.root={root}/VLF", f"data.h5={root}/h5", f"data.datasets={root}/datasets.yaml", "data.resize=null"]
    return [*CONFIG, *words, "data.train=[Toy_train]", "data.test=[Toy_test]", "device=cpu"]


def content(path: Path) -> dict[str, bytes]:
    """All datasets of an H5 file."""
    found: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()} if hasattr(item, "dtype") else {}))
    return found


def data_process(root: Path, count: int, rng: np.random.Generator) -> str:
    """The H5 is whole or not there after every kill, and right when a run gets to its end."""
    make, target = Script("data_process.py", *arguments(root), "Toy_train"), root / "h5" / "Toy_train.h5"
    whole, expected = make.finish(), content(target)
    there, half, times = 0, 0, moments(rng, whole, root / "h5")
    for _ in tqdm(range(count), desc="data_process.py", unit="kill"):
        if rng.random() < 0.7:
            target.unlink(missing_ok=True)
        while not make.kill(next(times)):
            assert content(target) == expected
        half += half_written(root / "h5")
        if target.exists():
            there += 1
            assert content(target) == expected
        assert not [path for path in target.parent.glob("*.h5") if path != target]
    make.finish()
    assert content(target) == expected
    left = [path.name for path in target.parent.iterdir() if path != target]
    assert not left, left
    return (
        f"data_process.py: {count} kills, {half} in a write; {there} times the H5 was there, and whole; it was right "
        "in the end, and nothing else left"
    )


def train(root: Path, count: int, rng: np.random.Generator) -> str:
    """Checkpoints are whole after every kill; resumed, the run ends as the one that nobody killed."""
    words = ["train.py", *arguments(root), *FAST, f"train.epochs={EPOCHS}", "train.batch_size=4", "train.save_every=2"]
    words += ["train.num_workers=1", "net.channels=48"]  # checkpoints of some size
    Script("data_process.py", *arguments(root)).finish()
    whole = Script(*words, f"train.exp={root}/whole").finish()
    (last,) = (root / "whole").glob("*/model/last.pth")
    expected = read_checkpoint(last)
    killed, half, resumed, runs = 0, 0, 0, 0
    bar = tqdm(total=count, desc="train.py", unit="kill")
    while killed < count:
        exp = root / f"exp{runs}"
        times = moments(rng, whole, exp)
        while not (ended := [path for path in checkpoints(exp, "last") if read_checkpoint(path)["epoch"] == EPOCHS]):
            resume = [f"train.resume={path}" for path in checkpoints(exp, "last")]
            resumed += len(resume)
            if Script(*words, f"train.exp={exp}", *resume).kill(next(times) if killed < count else lambda: False):
                killed, half = killed + 1, half + half_written(exp)
                bar.update()
            for path in checkpoints(exp, "*"):
                read_checkpoint(path)
        compare(expected, ended[0])
        runs += 1
    return (
        f"train.py: {killed} kills, {half} in a write, {resumed} resumes; {runs} runs came to their end, each with the "
        "checkpoint of the one that nobody killed"
    )


def checkpoints(exp: Path, name: str) -> list[Path]:
    return list(exp.glob(f"*/model/{name}.pth"))


def compare(expected: dict, last: Path) -> None:
    """Weights, optimiser and what was logged are those of the undisturbed run."""
    ended = read_checkpoint(last)
    for part in ("model", "optimizer", "scheduler", "rng", "step", "best"):
        for (where, one), (_, other) in zip(leaves(expected[part]), leaves(ended[part]), strict=True):
            assert torch.equal(one, other) if torch.is_tensor(one) else one == other, f"{part}{where}"
    lines = [json.loads(line) for line in (last.parent.parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, ended["step"] + 1)), steps


def leaves(value: object, where: str = "") -> Iterator[tuple[str, object]]:
    """All values in nested dicts and lists, with where they are."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{where}.{key}")
    else:
        yield where, value


def test(root: Path, count: int, rng: np.random.Generator) -> str:
    """Two networks test into one folder in turn: no half image, and no table of the one beside images of the other."""
    words = ["test.py", *arguments(root), "ckpt=null", f"test.output={root}/out"]
    Script("data_process.py", *arguments(root), "Toy_test").finish()
    runs = {rule: Script(*words, f"net={{name: {rule}}}", "--report") for rule in ("mean", "max")}
    whole = max(run.finish() for run in runs.values())
    out, report = root / "out" / "Toy", root / "out" / "report" / "index.html"
    expected = {}
    for rule, run in runs.items():
        run.finish()
        expected[rule] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    times, tables, half = moments(rng, whole, root / "out"), 0, 0
    for i in tqdm(range(count), desc="test.py", unit="kill"):
        while not runs["mean" if i % 2 else "max"].kill(next(times)):
            pass
        half += half_written(root / "out")
        there = [path for path in out.rglob("*.*") if path.is_file()]
        for path in there:
            assert path.read_bytes() in [files[path.relative_to(out)] for files in expected.values()], path
        if (out / "metrics.json").exists():
            tables += 1
            network = json.loads((out / "metrics.json").read_text())["network"]
            assert all(path.read_bytes() == expected[network][path.relative_to(out)] for path in there), network
        page = report.read_text()
        shown = re.findall(r'"(images-\d+/[^"]+\.png)"', page)
        assert page.rstrip().endswith("</html>") and len(shown) == 6 * 6
        assert all(cv2.imread(str(report.parent / path)) is not None for path in shown)
    return (
        f"test.py: {count} kills, {half} in a write, no half image; {tables} times a table was there, of the images "
        "beside it"
    )


if __name__ == "__main__":
    words = sys.argv[1:] or ["data_process", "50", "train", "15", "test", "20"]
    for name, count in zip(words[::2], words[1::2]):
        with tempfile.TemporaryDirectory() as folder:
            print(globals()[name](Path(folder), int(count), np.random.default_rng(0)), flush=True)
