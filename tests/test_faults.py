"""Faults: no space, no folder, two runs at once, a run killed before. One sentence, and what was there is whole."""

import contextlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from net.checkpoint import read_checkpoint
from tests.test_scripts import only_run
from tests.test_torchrun import LAUNCH
from tests.toy import ROOT, process, script
from utils.files import exclusive_lock

MAX = ["ckpt=null", "net={name: max}"]


@contextlib.contextmanager
def full_disk(size: int, monkeypatch) -> Iterator[None]:
    """No file can become larger than `size` bytes, which takes the place of a full disk."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [50, 1500, 30000])  # config.yaml, the log, a checkpoint
def test_no_space_to_train(prepared, tmp_path, size, monkeypatch):
    with full_disk(size, monkeypatch):
        output = script("train.py", *prepared, "train.epochs=1", "train.batch_size=1", code=1)
    assert output.count("cannot write") == 1 and "is there space" in output, output
    assert "Traceback" not in output and "Logging error" not in output
    assert not list(tmp_path.rglob(".*.tmp"))


def test_no_space_to_make_a_set(prepared, tmp_path, monkeypatch):
    path = tmp_path / "h5" / "Toy_train.h5"
    before = path.read_bytes()
    with full_disk(len(before) // 2, monkeypatch):
        output = script("data_process.py", *prepared, "Toy_train", code=1)
    assert "cannot write" in output and "Traceback" not in output, output
    assert files(tmp_path / "h5").keys() == {"Toy_train.h5", "Toy_test.h5"} and path.read_bytes() == before


@pytest.mark.parametrize("size", [100, 2700])  # an image, the report
def test_no_space_to_test(prepared, tmp_path, size, monkeypatch):
    script("test.py", *prepared, "ckpt=null", "net={name: mean}", "--report")
    before = files(tmp_path / "out")
    with full_disk(size, monkeypatch):
        output = script("test.py", *prepared, *MAX, "--report", "--overwrite", "test.num_workers=0", code=1)
    assert "cannot write" in output and "is there space" in output and "Traceback" not in output, output
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("number", "launch", "whole_group"),
    [
        (signal.SIGINT, [], False),
        (signal.SIGTERM, [], True),  # the workers of the loader get it, too
        pytest.param(signal.SIGTERM, LAUNCH, False, marks=pytest.mark.slow),
    ],
)
def test_interrupted(prepared, tmp_path, number, launch, whole_group):
    """Ctrl-C or SIGTERM: the line to continue with, on the terminal and in the log; nothing is left behind."""
    words = [*prepared, "train.epochs=100000", "train.num_workers=2", "name=two words"]
    with subprocess.Popen(
        [sys.executable, *launch, "train.py", *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # a job in the background ignores Ctrl-C, and so would the run: as from a terminal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        next(line for line in run.stderr if "epoch 2/" in line)
        (os.killpg if whole_group else os.kill)(run.pid, number)
        said = run.stderr.read()  # to its end: no process holds it open any more
    log = (only_run(tmp_path) / "log.txt").read_text()
    told = re.search(r"interrupted at epoch (\d+); continue with: (.*)", said)
    assert log.strip().endswith(told[0])
    start, *given = shlex.split(told[2])
    last = only_run(tmp_path) / "model" / "last.pth"
    assert read_checkpoint(last)["epoch"] == int(told[1]) >= 2
    assert given[-len(words) - 2 :] == ["train.py", *map(str, words), f"train.resume={last}"]
    if launch:
        assert (start, given[0]) == ("torchrun", "--nproc_per_node=2")
    else:
        assert run.returncode == 128 + number and start == "python" and "Traceback" not in said


def test_interrupted_before_the_first_checkpoint(prepared, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.mean_values", stop)
    output = script("train.py", *prepared, code=1)
    assert "interrupted in epoch 1, before the first checkpoint; start again" in output
    assert output.endswith("130") and "continue" not in output


@pytest.mark.slow
@pytest.mark.parametrize("script, kills", [("data_process", 6), ("train", 3), ("test", 6)])
def test_killed(script, kills):
    process("-m", "tools.faults", script, kills)


@pytest.mark.parametrize("name", ["train.py", "test.py", "data_process.py"])
def test_a_file_where_a_folder_should_be(prepared, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    key = {"train.py": "train.exp", "test.py": "test.output", "data_process.py": "data.h5"}[name]
    output = script(name, *prepared, *(MAX if name == "test.py" else []), f"{key}={tmp_path}/file/x", code=1)
    assert "cannot write" in output and "Traceback" not in output, output
    assert (tmp_path / "file").read_text() == "mine"


def test_two_runs_do_not_write_to_one_place(prepared, tmp_path):
    script("test.py", *prepared, *MAX)
    script("train.py", *prepared, "train.epochs=1")
    run = only_run(tmp_path)
    before = files(tmp_path)
    for place, words in [
        (tmp_path / "out" / "Toy", ["test.py", *prepared, *MAX]),
        (tmp_path / "h5" / "Toy_test.h5", ["data_process.py", *prepared, "Toy_test"]),
        (run, ["train.py", *prepared, "train.epochs=2", f"train.resume={run}/model/last.pth"]),
    ]:
        with exclusive_lock(place):
            assert f"another run is writing {place}" in script(*words, code=1)
        assert files(tmp_path) == before


def test_runs_of_the_same_second_have_folders_of_their_own(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        script("train.py", *prepared, "train.epochs=1")
    names = sorted(path.name for path in (tmp_path / "exp").iterdir())
    assert names == ["20260101-000000-2_film_ivf", "20260101-000000_film_ivf"]


def test_what_another_run_drew_does_not_stay_beside_a_table(prepared, tmp_path):
    script("test.py", *prepared, *MAX, "--compare")
    assert (tmp_path / "out" / "Toy" / "comparison.png").is_file()
    (tmp_path / "out" / "Toy" / "mine.txt").write_text("mine")
    script("test.py", *prepared, *MAX)
    assert not (tmp_path / "out" / "Toy" / "comparison.png").exists()
    assert (tmp_path / "out" / "Toy" / "mine.txt").is_file()


def test_two_sets_of_one_dataset_have_folders_of_their_own(prepared, tmp_path):
    shutil.copy(tmp_path / "h5" / "Toy_test.h5", tmp_path / "h5" / "Mine_test.h5")
    script("test.py", *prepared, *MAX, "data.test=[Toy_test,Mine_test]")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"Toy", "Mine_test"}


def test_a_run_is_resumed_from_within_its_folder(prepared, tmp_path, monkeypatch):
    script("train.py", *prepared, "train.epochs=1")
    monkeypatch.chdir(only_run(tmp_path))
    words = ["--config", ROOT / "configs" / "film_ivf.yaml", *prepared[2:]]
    script("train.py", *words, "train.epochs=2", "train.resume=model/last.pth")
    only_run(tmp_path)
