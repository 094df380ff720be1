"""test.py with torchrun: two processes (gloo) share the pairs, and write byte for byte what one process writes."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.test_faults import LIMITED, MAX, files
from tests.test_instructions import trained  # noqa: F401
from tests.test_scripts import only_run
from tests.test_text import bert  # noqa: F401
from tests.toy import CONFIG, ROOT, make_pairs, process, script
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


def one_sentence(output: str) -> str:
    """The only sentence on what is wrong in the output of processes that failed; torchrun adds a report of its own."""
    assert not re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv/)', output), output  # the README's .venv is there
    (sentence,) = re.findall(r"^error: .*", output, re.MULTILINE)
    return sentence


def results(folder: Path) -> dict[str, bytes]:
    """All files under a folder; without the time in the name of a report's images, and of weights the header alone."""

    def lasting(content: bytes) -> bytes:
        return re.sub(rb"images-\d+", b"images", content)

    found = {lasting(name.encode()).decode(): lasting(content) for name, content in files(folder).items()}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            found[path.name] = repr(sorted(weights.metadata().items())).encode()  # with a digest of the tensors
    return found


def same_results(tmp_path, *words) -> str:
    """Test with one process and with two, and compare all files; what the two print. `words` write into out/."""
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
    return both


def test_two_processes_test_as_one(prepared, tmp_path):
    """An odd number of pairs, a set with a single one, and everything that a test may write."""
    make_pairs(tmp_path / "VLF", [f"b{i}" for i in range(7)], "test", size=(45, 53))
    make_pairs(tmp_path / "VLF", ["c1"], "single")
    script("data_process.py", *prepared, "Toy_test", "Toy_single")
    script("train.py", *prepared, "train.epochs=1")
    words = [*prepared, f"ckpt={only_run(tmp_path)}/model/last.pth", "data.test=[Toy_single,Toy_test]"]
    words += ["--compare", "--report", "--export", tmp_path / "out" / "X.safetensors"]
    words += ["test.metrics=[EN,VIFF,Qabf,MI,TC]"]
    output = same_results(tmp_path, *words)
    assert "Toy_test.h5: 7 pairs" in output


def test_two_processes_obey_as_one(trained, tmp_path):  # noqa: F811
    same_results(tmp_path, *trained[:-1], "--instruct", "the road", "--instruct", "a warm car. the sky")


def test_two_processes_share_pairs_of_ones_own(prepared, tmp_path):
    """What cannot be fused is named in the order of the pairs, the rest is written."""
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for i in range(5):
            height = 60 + (side == "a" and i in (1, 2))
            cv2.imwrite(str(tmp_path / side / f"{i}.png"), rng.integers(0, 256, (height, 50, 3), dtype=np.uint8))
    words = [*prepared, *MAX, "--a", tmp_path / "a", "--b", tmp_path / "b", "--out"]
    one = script("test.py", *words, tmp_path / "one", code=1)
    two = process(*TWO, *words, tmp_path / "two", code=1)
    one_sentence(two)
    problems = [re.findall(r"\S+ and \S+ have unequal sizes.*", output) for output in (one, two)]
    assert problems[0] == problems[1] and len(problems[0]) == 2
    assert files(tmp_path / "one") == files(tmp_path / "two") and len(files(tmp_path / "two")) == 3


def test_a_damaged_pair_of_one_process_ends_both(prepared, tmp_path):
    script("test.py", *prepared, "ckpt=null", "net={name: mean}", "--report")
    before = files(tmp_path / "out")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5", "r+") as file:
        file["imageA/b2"][0, 5, 5] ^= 1
    assert "'b2'" in one_sentence(process(*TWO, *prepared, *MAX, "--report", code=1))
    assert files(tmp_path / "out") == before


def test_no_space_ends_both(prepared, tmp_path):
    launch = [*LAUNCH, "--no-python", sys.executable, "-c", LIMITED, 1500, "test.py"]
    output = process(*launch, *prepared, *MAX, "test.num_workers=0", code=1)
    assert "cannot write" in one_sentence(output)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("words", "message"), [(["--text-study"], "runs in one process"), (["ckpt=nowhere.pth"], "nowhere.pth")], ids=str
)
def test_a_mistake_is_told_once(words, message):
    assert message in one_sentence(process(*TWO, *CONFIG, "device=cpu", *words, code=1))


FAILS = """
import contextlib, pathlib, shutil, sys, time

sys.path.insert(0, "{root}")
from utils import distributed
from utils.errors import InputError, run_script
from utils.files import write_file

@contextlib.contextmanager
def folder():
    path = pathlib.Path("{root_of_files}") / "staged"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)

def main():
    rank, _, _ = distributed.start("cpu")
    with distributed.one_voice(), distributed.opened_by_first(folder()) as given:
        print(f"given {{given}}", distributed.exchange(10 * rank), flush=True)
        if rank == {failing}:
            raise InputError("rank {failing} has failed")
        try:
            for _ in range(300):
                distributed.listen()
                time.sleep(0.1)
            print("went on", file=sys.stderr)
        finally:  # what its threads were writing
            time.sleep(1)
            write_file(given / "late.png", "late")

run_script(main)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_the_others_hear_at_once_of_one_that_fails(failing, tmp_path):
    """And what they still write is removed as well."""
    (tmp_path / "fails.py").write_text(FAILS.format(root=ROOT, root_of_files=tmp_path, failing=failing))
    output = process(*LAUNCH, tmp_path / "fails.py", code=1)
    assert one_sentence(output) == f"error: rank {failing} has failed" and "went on" not in output
    assert output.count(f"given {tmp_path}/staged [0, 10]") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["fails.py"]
