"""Files: whole after a power cut, one run at a time, found from any folder; and the commit that a run records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy import ROOT
from utils.errors import InputError, enough_memory
from utils.files import atomic_folder, commit, find_file, find_newest, git, write_file

COMPETE = """
import sys
from pathlib import Path
from utils.errors import InputError
from utils.files import exclusive_lock

place, held = Path(sys.argv[1]), 0
while held < 100:
    try:
        with exclusive_lock(place):
            open(place.parent / "inside", "x").close()  # fails if another run is inside, too
            (place.parent / "inside").unlink()
            held += 1
    except InputError as error:
        assert "another run is writing" in str(error), error
"""


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What is done to the disk, in order: "sync", "replace NAME" and "remove NAME"."""
    calls = []

    def record(place, name, describe):
        call = getattr(place, name)

        def recorded(*args, **more):
            calls.append(describe(*args))
            return call(*args, **more)

        monkeypatch.setattr(place, name, recorded)

    record(os, "fsync", lambda descriptor: "sync")
    record(os, "replace", lambda source, target: f"replace {Path(target).name}")
    record(Path, "unlink", lambda path: f"remove {path.name}")
    return calls


def test_a_file_is_on_the_disk_before_its_name(tmp_path, calls):
    write_file(tmp_path / "b" / "a.txt", "new")
    assert calls[:2] == ["sync", "replace a.txt"]


def test_a_table_is_never_beside_images_of_another_run(tmp_path, calls):
    write_file(tmp_path / "out" / "metrics.csv", "old")
    calls.clear()
    with atomic_folder(tmp_path / "out") as folder:
        for name in ("metrics.csv", "Gray/a.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
    of_files = [call for call in calls if not call.startswith("remove .")]  # without what is temporary
    assert of_files == ["remove metrics.csv", "replace a.png", "replace metrics.csv"]


def test_a_disk_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    write_file(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"cannot write .*a\.txt \(Input/output error\)"):
        write_file(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_of_many_runs_one_holds_the_lock(tmp_path):
    command = [sys.executable, "-c", COMPETE, str(tmp_path / "out")]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_replaced(tmp_path):
    (tmp_path / ".out.lock").touch()
    for path in (tmp_path / ".out.tmp" / "old.png", tmp_path / "out" / ".a.png.tmp"):
        write_file(path, "half")
    with atomic_folder(tmp_path / "out") as folder:
        write_file(folder / "new.png", "new")
    write_file(tmp_path / "out" / "a.png", "new")
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "new.png", "a.png"}


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("configs/film_ivf.yaml") == ROOT / "configs" / "film_ivf.yaml"
    assert find_file("configs/mine.yaml") == Path("configs/mine.yaml")
    assert find_file(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"
    write_file("configs/film_ivf.yaml", "mine")
    assert find_file("configs/film_ivf.yaml").read_text() == "mine"


def test_the_newest_run_of_a_name_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["20260103-000000_demo", "20260101-000000_demo", "20260101-000000-2_demo", "20260101-000000_my_demo"]
    for i, name in enumerate([*names, "mine"]):  # each newer than the one before
        write_file(f"exp/{name}/model/last.pth", "weights")
        os.utime(f"exp/{name}/model/last.pth", (i, i))
    newest = Path("exp/20260101-000000-2_demo/model/last.pth")
    assert find_newest("exp/*_demo/model/last.pth") == find_newest("./*/*_d?mo/**/last.pth") == newest
    assert find_newest("exp/*_my_demo/model/last.pth") == Path("exp/20260101-000000_my_demo/model/last.pth")
    assert find_newest("exp/*/model/last.pth") == Path("exp/mine/model/last.pth")
    assert find_newest("exp/*_other/model/last.pth") is None


def test_the_commit_says_whether_files_are_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.files.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git("status") is None and commit() is None  # not a repository
    git("init")
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    user = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    git(*user, "commit", "-m", "One")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40 and commit() == head
    (tmp_path / "b.txt").write_text("not tracked")
    assert commit() == head
    (tmp_path / "a.txt").write_text("two")
    assert commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git("status") is None and commit() is None  # no git


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_sentence(error):
    with pytest.raises(InputError, match="not enough memory to train; use less"), enough_memory("train", "use less"):
        raise error


def test_other_errors_of_a_gpu_stay():
    with pytest.raises(RuntimeError, match="^CUDA error: misaligned") as raised, enough_memory("train", "use less"):
        raise RuntimeError("CUDA error: misaligned address")
    assert not isinstance(raised.value, InputError)
