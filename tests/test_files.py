"""Files: whole after a power cut, one run at a time, found from any folder; and the commit that a run records."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy import ROOT
from utils.errors import InputError, enough_memory
from utils.files import atomic_folder, commit, exclusive_lock, find_file, find_newest, git, remove, write_file

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
    """What is done to the disk, in order: "sync file", "sync folder", "replace NAME" and "remove NAME"."""
    calls, fsync, replace, unlink = [], os.fsync, os.replace, Path.unlink

    def record_fsync(descriptor):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(f"replace {Path(target).name}")
        replace(source, target)

    def record_unlink(path, missing_ok=False):
        if not path.name.startswith("."):
            calls.append(f"remove {path.name}")
        unlink(path, missing_ok)

    monkeypatch.setattr("os.fsync", record_fsync)
    monkeypatch.setattr("os.replace", record_replace)
    monkeypatch.setattr("pathlib.Path.unlink", record_unlink)
    return calls


def test_a_file_is_on_the_disk_before_its_name(tmp_path, calls):
    write_file(tmp_path / "b" / "a.txt", "new")
    assert calls == ["sync file", "replace a.txt", "sync folder"]


def test_a_table_is_never_beside_images_of_another_run(tmp_path, calls):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.csv").write_text("old")
    with atomic_folder(tmp_path / "out") as folder:
        for name in ("metrics.csv", "Gray/a.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
    assert calls == ["remove metrics.csv", "replace a.png", "replace metrics.csv"]


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


def test_the_lock_file_and_halves_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "out").mkdir()
    for name in (".out.lock", ".out.12.tmp", "out/.a.png.12.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".out.b.12.tmp").touch()  # of another output
    with exclusive_lock(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".out.b.12.tmp", "out"]


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "file", "link", "nothing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("configs/film_ivf.yaml") == ROOT / "configs" / "film_ivf.yaml"
    assert find_file("configs/mine.yaml") == Path("configs/mine.yaml")
    assert find_file(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"
    write_file("configs/film_ivf.yaml", "mine")
    assert find_file("configs/film_ivf.yaml").read_text() == "mine"


def runs(root: Path, *names: str) -> None:
    """Files of the given names, each newer than the one before."""
    for i, name in enumerate(names):
        write_file(root / name, "weights")
        os.utime(root / name, (i, i))


def test_the_newest_run_of_a_name_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs(
        tmp_path / "exp",
        "20260103-000000_demo/model/last.pth",
        "20260101-000000_demo/model/last.pth",
        "20260101-000000-2_demo/model/last.pth",
        "20260101-000000_my_demo/model/last.pth",
        "mine_demo/model/last.pth",
        "my_demo/last.pth",
    )
    newest = Path("exp/20260101-000000-2_demo/model/last.pth")
    for pattern in ("exp/*_demo/model/last.pth", "exp/*_d?mo/*/last.pth", "./*/*_demo/**/last.pth"):
        assert find_newest(pattern) == newest, pattern
    assert find_newest(f"{tmp_path}/exp/*_demo/model/*.pth") == tmp_path / newest
    assert find_newest("exp/*_my_demo/model/last.pth") == Path("exp/20260101-000000_my_demo/model/last.pth")
    assert find_newest("exp/*/model/last.pth") == Path("exp/mine_demo/model/last.pth")
    assert find_newest("exp/*/last.pth") == Path("exp/my_demo/last.pth")
    assert find_newest("exp/*_other/model/last.pth") is None


def test_the_newest_file_is_found_in_the_repository_too(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.files.ROOT", tmp_path / "repository")
    runs(tmp_path, "repository/exp/20260101-000000_demo/last.pth", "here/exp/20260102-000000_other/last.pth")
    monkeypatch.chdir(tmp_path / "here")
    assert find_newest("exp/*_other/last.pth") == Path("exp/20260102-000000_other/last.pth")
    assert find_newest("exp/*_demo/last.pth") == tmp_path / "repository/exp/20260101-000000_demo/last.pth"


def test_the_commit_says_whether_files_are_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git("status", folder=tmp_path) is None and commit(tmp_path) is None  # not a repository
    git("init", folder=tmp_path)
    assert commit(tmp_path) is None  # nothing is committed
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt", folder=tmp_path)
    user = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    git(*user, "commit", "-m", "One", folder=tmp_path)
    git(*user, "tag", "-a", "v1", "-m", "One", folder=tmp_path)
    head = git("rev-parse", "HEAD", folder=tmp_path)
    assert len(head) == 40 and commit(tmp_path) == head
    (tmp_path / "b.txt").write_text("not tracked")
    assert commit(tmp_path) == head
    (tmp_path / "a.txt").write_text("two")
    assert commit(tmp_path) == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git("status", folder=tmp_path) is None and commit(tmp_path) is None  # no git


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
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
