"""torchrun: two processes (gloo) share the pairs of test.py, and write byte for byte what one process writes.

That they train as one is in tests/test_scripts.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import torch

from tests.test_scripts import only_run
from tests.toy import ROOT, make_pairs, process, script
from utils.files import remove

LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
TWO = [*LAUNCH, "test.py"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As torchrun sets it for its processes: the last bits of a sum depend on how threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sentence(output: str) -> str:
    """The only sentence on what is wrong; each process may say it, and torchrun adds a report of its own."""
    assert not re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv/)', output), output  # the README's .venv is there
    (said,) = set(re.findall(r"error: .*", output))
    return said


def results(folder: Path) -> dict[str, bytes]:
    """All files under a folder, without the time in the names of a report's images."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = [re.sub(r"images-\d+", "images", str(path.relative_to(folder))) for path in paths]
    return {name: re.sub(rb"images-\d+", b"images", path.read_bytes()) for name, path in zip(names, paths)}


def test_two_processes_test_as_one(prepared, tmp_path):
    """An odd number of pairs, a set with a single one, and everything that a test may write."""
    make_pairs(tmp_path / "VLF", [f"b{i}" for i in range(7)], "test", size=(45, 53))
    make_pairs(tmp_path / "VLF", ["c1"], "single")
    script("data_process.py", *prepared, "Toy_test", "Toy_single")
    script("train.py", *prepared, "train.epochs=1")
    words = [*prepared, f"ckpt={only_run(tmp_path)}/model/last.pth", "data.test=[Toy_single,Toy_test]"]
    words += ["--compare", "--report", "test.metrics=[EN,VIFF,Qabf,MI,TC]"]
    printed = script("test.py", *words)
    one = results(tmp_path / "out")
    remove(tmp_path / "out")
    remove(tmp_path / "h5" / "Toy_test.h5")  # one of the two makes it
    both = process(*TWO, *words)
    two = results(tmp_path / "out")
    assert one.keys() == two.keys()
    assert not [name for name in one if one[name] != two[name]]
    table = printed[printed.index("guided by") :].partition("written:")[0]
    assert table in both and both.count("The test result") == printed.count("The test result")
    assert both.count("Toy_test.h5: 7 pairs") == 1


@pytest.mark.slow
def test_a_damaged_pair_of_one_process_ends_both(prepared, tmp_path):
    words = [*prepared, "ckpt=null", "net={name: mean}"]
    script("test.py", *words, "--report")
    before = results(tmp_path / "out")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        del file["imageB/b2"]
    assert "'b2'" in sentence(process(*TWO, *words, "--report", code=1))
    (tmp_path / "h5" / "Toy_test.h5").unlink()
    script("test.py", *words, "--report")  # removes what a process that was ended left
    assert results(tmp_path / "out") == before
