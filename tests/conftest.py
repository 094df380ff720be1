"""The fixtures that the tests share: reference values, real pairs beside the repository, and generated pairs."""

import os
from pathlib import Path

import cv2
import pytest
import torch

from net import configure_compute
from tests.literal import published_checkpoint
from tests.toy import CONFIG, FAST, GRAY, RGB, ROOT, SHARED, make_pairs, script
from utils.guides.clip import load_clip

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core for each worker


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pairs beside the repository; tests that need it are skipped without it, but not in CI."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing")
        pytest.skip("needs the real pairs")
    return SHARED


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of values that the published code gives; see its README.md."""
    return ROOT / "tests" / "reference"


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A checkpoint file as FILM's authors publish them, with the weights of reference/film_forward.npz."""
    path = tmp_path_factory.mktemp("published") / "IVF.pth"
    torch.save(published_checkpoint(), path)
    return path


@pytest.fixture(autouse=True)
def fresh_start() -> None:
    """No test depends on what ran before it: the seed, how networks compute, and the CLIP that was loaded last."""
    torch.manual_seed(0)
    configure_compute()
    load_clip.cache_clear()


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    """A toy dataset, four pairs to train and two to test on: the overrides that a script needs."""
    make_pairs(tmp_path / "VLF", ["a1", "a2", "a3", "a4"], "train")
    make_pairs(tmp_path / "VLF", ["b1", "b2"], "test", size=(45, 53))
    (tmp_path / "datasets.yaml").write_text("Toy: {task: IVF, a: IR, b: VI, color: [VI]}\n")
    return [
        f"data.root={tmp_path / 'VLF'}",
        f"data.h5={tmp_path / 'h5'}",
        f"data.datasets={tmp_path / 'datasets.yaml'}",
        "data.train=[Toy_train]",
        "data.test=[Toy_test]",
        "data.resize=null",
        "device=cpu",
    ]


@pytest.fixture
def prepared(toy, tmp_path) -> list[str]:
    """The toy sets as H5, and what a quick training takes."""
    script("data_process.py", *CONFIG, *toy)
    return [*CONFIG, *toy, *FAST, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]


@pytest.fixture
def pair(tmp_path, monkeypatch) -> list[str]:
    """GRAY and RGB as files in the working directory, which is another than that of the repository."""
    cv2.imwrite(str(tmp_path / "ir.png"), GRAY)
    cv2.imwrite(str(tmp_path / "vis.png"), RGB[..., ::-1])
    monkeypatch.chdir(tmp_path)
    return ["ir.png", "vis.png"]
