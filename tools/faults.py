"""Scripts killed at random moments, many times: what is left is whole, and the next run goes on to the right end.

    python -m tools.faults                                    all three, about ten minutes
    python -m tools.faults data_process 50 train 15 test 20   so many kills of each

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
    """A script with its arguments, run in a process group of its own, and where it writes."""

    def __init__(self, folder: Path, *words: str):
        self.folder, self.words = folder, [sys.executable, *words]

    def finish(self) -> float:
        """Run it undisturbed; returns how many seconds it took."""
        began = time.monotonic()
        assert not self.kill(lambda: False)
        return time.monotonic() - began

    def kill(self, when: Callable[[], bool]) -> bool:
        """Kill it as soon as `when()` is true; False if it ended before."""
        quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "env": os.environ | {"OMP_NUM_THREADS": "1"},
        }
        process = subprocess.Popen(self.words, cwd=ROOT, start_new_session=True, **quiet)
        while process.poll() is None:
            if when():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.0005)
        if process.returncode:
            sys.exit(f"{' '.join(self.words)} fails")
        return False

    def moments(self, rng: np.random.Generator, seconds: float) -> Iterator[Callable[[], bool]]:
        """When to kill: in turn after a random part of a run's time, and while a file is being written."""
        while True:
            until = time.monotonic() + rng.uniform(0.2, 0.9) * seconds
            yield lambda until=until: time.monotonic() > until
            looks = iter(range(rng.integers(1, 8)))
            yield lambda looks=looks: self.half_written() and next(looks, None) is None

    def half_written(self) -> bool:
        return any(True for _ in self.folder.rglob(".*.tmp"))


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
    make, target = Script(root / "h5", "data_process.py", *arguments(root), "Toy_train"), root / "h5" / "Toy_train.h5"
    times, expected, there, half = make.moments(rng, make.finish()), content(target), 0, 0
    for _ in tqdm(range(count), desc="data_process.py", unit="kill"):
        if rng.random() < 0.7:
            target.unlink(missing_ok=True)
        while not make.kill(next(times)):
            assert content(target) == expected
        there, half = there + target.exists(), half + make.half_written()
        assert not target.exists() or content(target) == expected
        assert set(target.parent.glob("*.h5")) <= {target}
    make.finish()
    assert content(target) == expected and not make.half_written()
    return f"{count} kills, {half} in a write; {there} times the H5 was there, and whole; it is right in the end"


def train(root: Path, count: int, rng: np.random.Generator) -> str:
    """Checkpoints are whole after every kill; resumed, the run ends as the one that nobody killed."""
    words = ["train.py", *arguments(root), *FAST, f"train.epochs={EPOCHS}", "train.batch_size=4", "train.save_every=2"]
    words += ["train.num_workers=1", "net.channels=48"]  # checkpoints of some size
    Script(root / "h5", "data_process.py", *arguments(root)).finish()
    seconds = Script(root / "whole", *words, f"train.exp={root}/whole").finish()
    (whole,) = (root / "whole").glob("*/model/last.pth")
    killed, half, runs = 0, 0, 0
    with tqdm(total=count, desc="train.py", unit="kill") as bar:
        while killed < count:
            exp = root / f"exp{runs}"
            times = Script(exp).moments(rng, seconds)
            while not (
                ended := [path for path in exp.glob("*/model/last.pth") if read_checkpoint(path)["epoch"] == EPOCHS]
            ):
                run = Script(
                    exp, *words, f"train.exp={exp}", *(f"train.resume={path}" for path in exp.glob("*/model/last.pth"))
                )
                if run.kill(next(times) if killed < count else lambda: False):
                    killed, half = killed + 1, half + run.half_written()
                    bar.update()
                for path in exp.glob("*/model/*.pth"):
                    read_checkpoint(path)
            compare(read_checkpoint(whole), ended[0])
            runs += 1
    return (
        f"{killed} kills, {half} in a write; {runs} runs ended, each with the checkpoint of the one that nobody killed"
    )


def compare(expected: dict, last: Path) -> None:
    """Weights, optimiser and what was logged are those of the undisturbed run."""
    ended = read_checkpoint(last)
    for part in ("model", "optimizer", "scheduler", "rng", "step", "best"):
        for (where, one), (_, other) in zip(leaves(expected[part]), leaves(ended[part]), strict=True):
            assert torch.equal(one, other) if torch.is_tensor(one) else one == other, f"{part}{where}"
    lines = [json.loads(line) for line in (last.parent.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, ended["step"] + 1))


def leaves(value: object, where: str = "") -> Iterator[tuple[str, object]]:
    """All values in nested dicts and lists, with where they are."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{where}.{key}")
    else:
        yield where, value


def test(root: Path, count: int, rng: np.random.Generator) -> str:
    """Two networks test into one folder in turn: no half image, and no table of the one beside images of the other."""
    words = ["test.py", *arguments(root), "ckpt=null", f"test.output={root}/out", "--overwrite"]
    Script(root / "h5", "data_process.py", *arguments(root), "Toy_test").finish()
    runs = {rule: Script(root / "out", *words, f"net={{name: {rule}}}", "--report") for rule in ("mean", "max")}
    out, report, expected = root / "out" / "Toy", root / "out" / "report" / "index.html", {}
    for rule, run in runs.items():
        seconds = run.finish()
        expected[rule] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    times, tables, half = runs["max"].moments(rng, seconds), 0, 0
    for i in tqdm(range(count), desc="test.py", unit="kill"):
        while not runs["mean" if i % 2 else "max"].kill(next(times)):
            pass
        half += runs["max"].half_written()
        there = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
        for path, data in there.items():
            assert data in [files[path] for files in expected.values()], path
        if (out / "metrics.json").exists():
            tables += 1
            assert there.items() <= expected[json.loads((out / "metrics.json").read_text())["network"]].items()
        page = report.read_text() if report.exists() else "</html>"  # it goes first, and comes last
        shown = re.findall(r"images/[\w/]+\.png", page)
        assert page.rstrip().endswith("</html>") and (shown or not report.exists())
        assert all(cv2.imread(str(report.parent / path)) is not None for path in shown)
    return f"{count} kills, {half} in a write, no half image; {tables} times a table was there, of the images beside it"


if __name__ == "__main__":
    words = sys.argv[1:] or ["data_process", "50", "train", "15", "test", "20"]
    for name, count in zip(words[::2], words[1::2]):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}.py:", globals()[name](Path(folder), int(count), np.random.default_rng(0)), flush=True)
