"""Faults: no space, no folder, two runs at once, a run killed before. One sentence, and what was there is whole.

Scripts killed at random moments, many times: `python -m tests.faults`.
"""

import shutil
import threading
import time
from pathlib import Path

import h5py
import pytest

from tests.test_scripts import only_run
from tests.toy import CONFIG, ROOT, process, script
from utils.data.images import THREADS, background
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.files import atomic_folder, exclusive_lock, write_file
from utils.run_folder import RunFolder

MAX = ["ckpt=null", "net={name: max}"]
LIMITED = (
    "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
    "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [50, 1500, 30000])
def test_no_space_to_train(prepared, tmp_path, size):
    """A limit on the size of a file takes the place of a full disk."""
    words = [*prepared, "train.epochs=1", "train.batch_size=1"]
    output = process("-c", LIMITED, size, "train.py", *words, code=1)
    assert output.count("error: cannot write") == 1 and "is there space" in output, output
    assert "Traceback" not in output and "Logging error" not in output
    assert not list(tmp_path.rglob(".*"))  # nothing half-written, no lock


@pytest.mark.parametrize("size", [100, 1500, 2700])
def test_no_space_to_test(prepared, tmp_path, size):
    script("test.py", *prepared, "ckpt=null", "net={name: mean}", "--report")
    before = files(tmp_path / "out")
    output = process("-c", LIMITED, size, "test.py", *prepared, *MAX, "--report", "test.num_workers=0", code=1)
    assert "error: cannot write" in output and "is there space" in output and "Traceback" not in output, output
    assert files(tmp_path / "out") == before


def test_what_is_written_in_the_background_waits_in_a_short_line():
    """One more than may wait is taken when one has ended; at the end of the block all have."""
    may_end, ended, taken = threading.Event(), [], []

    def write(number: int) -> None:
        may_end.wait(60)
        time.sleep(0.1)
        ended.append(number)

    def watch() -> None:
        time.sleep(0.5)
        taken.append(len(calls))
        may_end.set()

    calls, watcher = [], threading.Thread(target=watch)
    watcher.start()
    with background() as call:
        for number in range(3 * THREADS):
            call(write, number)
            calls.append(number)
    watcher.join()
    assert taken == [THREADS] and sorted(ended) == calls


@pytest.mark.parametrize("count", [1, 3 * THREADS])
def test_what_fails_in_the_background_ends_the_block(count):
    def write(number: int) -> None:
        if number == 0:
            raise InputError("cannot write the first")
        begun.append(number)
        time.sleep(0.05)

    begun = []
    with pytest.raises(InputError, match="the first"), background() as call:
        for number in range(count):
            call(write, number)
        assert count == 1
    assert len(begun) < max(THREADS, count)  # no more than were waiting
    with pytest.raises(KeyboardInterrupt), background() as call:
        call(write, 0)
        raise KeyboardInterrupt  # what the block itself ends with is what counts


def test_no_space_for_a_pair_of_ones_own(prepared, tmp_path):
    image = tmp_path / "VLF" / "Image" / "IVF" / "Toy" / "IR" / "b1.png"
    write_file(tmp_path / "fused.png", "what was there before")
    words = ["--a", image, "--b", image, "--out", tmp_path / "fused.png", *MAX]
    output = process("-c", LIMITED, 100, "test.py", *prepared, *words, code=1)
    assert "cannot write" in output and "Traceback" not in output
    assert (tmp_path / "fused.png").read_text() == "what was there before"


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


def test_what_a_killed_run_left_is_removed(prepared, tmp_path):
    left = [tmp_path / "h5" / ".Toy_test.h5.123.tmp", tmp_path / "out" / ".Toy.123.tmp" / "Gray" / "b1.png"]
    others = [tmp_path / "h5" / ".Toy_test.h5.notes.tmp", tmp_path / "out" / ".Toy.b.123.tmp"]
    for path in [*left, *others]:
        write_file(path, "half")
    script("data_process.py", *prepared, "Toy_test")
    script("test.py", *prepared, *MAX)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_test_that_fails_leaves_the_last_one_whole(prepared, tmp_path):
    script("test.py", *prepared, "ckpt=null", "net={name: mean}", "--report")
    before = files(tmp_path / "out")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        file["imageA/b2"][0, 5, 5] ^= 1
    assert "'b2'" in script("test.py", *prepared, *MAX, "--report", code=1)
    assert files(tmp_path / "out") == before


def test_no_table_stands_beside_images_of_another_run(tmp_path, monkeypatch):
    """A kill between two images: the old table has gone, the new one has not come."""
    names, places = ("Gray/a.png", "Gray/b.png", "metrics.csv", "metrics.json"), iter([True, False])

    def move(source: Path, target: Path) -> None:
        if not next(places):
            raise KeyboardInterrupt
        shutil.move(source, target)

    with atomic_folder(tmp_path / "Toy") as staged:
        for name in names:
            write_file(staged / name, "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "Toy") as staged:
        for name in names:
            write_file(staged / name, "new")
        monkeypatch.setattr("os.replace", move)
    assert files(tmp_path) == {"Toy/Gray/a.png": b"new", "Toy/Gray/b.png": b"old"}


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


def test_a_result_is_not_written_over_its_source(prepared, tmp_path):
    image = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    before = files(image)
    one = (image / "IR" / "b1.png", image / "VI" / "b1.png", image / "VI" / "b1.png")
    for a, b, out in (one, (image / "IR", image / "VI", image / "IR")):
        output = script("test.py", *prepared, *MAX, "--a", a, "--b", b, "--out", out, code=1)
        assert "would write over the source" in output and files(image) == before


def test_a_folder_that_is_no_saved_network_is_not_written_to(prepared, tmp_path):
    script("train.py", *prepared, "train.epochs=1")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("precious")
    words = [*prepared, f"ckpt={only_run(tmp_path)}/model/last.pth", "--export", mine]
    assert "choose a new or empty folder" in script("test.py", *words, code=1)
    assert files(mine) == {"README.md": b"precious"} and not (tmp_path / "out").exists()


def test_a_folder_that_leads_nowhere_ends_the_training(prepared, tmp_path):
    """A link to a disk that is not there."""
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "disk")
    assert "cannot write" in script("train.py", *prepared, f"train.exp={tmp_path}/link", code=1)


def test_a_run_is_resumed_from_within_its_folder(prepared, tmp_path, monkeypatch):
    script("train.py", *prepared, "train.epochs=1")
    monkeypatch.chdir(only_run(tmp_path))
    words = ["--config", ROOT / "configs" / "film_ivf.yaml", *prepared[2:]]
    script("train.py", *words, "train.epochs=2", "train.resume=model/last.pth")
    assert only_run(tmp_path).is_dir()


def test_an_h5_that_vanishes_is_named(prepared, tmp_path):
    dataset = PairDataset([tmp_path / "h5" / "Toy_train.h5"])
    shutil.rmtree(tmp_path / "h5")
    with pytest.raises(InputError, match=r"there is no .*Toy_train\.h5"):
        dataset[0]


def test_a_run_folder_that_vanishes_ends_the_training(prepared, tmp_path, monkeypatch):
    record = RunFolder.record
    monkeypatch.setattr(RunFolder, "record", lambda self, *rest: (shutil.rmtree(self.path), record(self, *rest)))
    assert "cannot write" in script("train.py", *prepared, "train.epochs=2", code=1)


def test_a_damaged_set_is_made_again(prepared, tmp_path):
    path = tmp_path / "h5" / "Toy_test.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in script("test.py", *prepared, *MAX, code=1)
    script("data_process.py", *CONFIG, *prepared[2:], "Toy_test")
    script("test.py", *prepared, *MAX)
