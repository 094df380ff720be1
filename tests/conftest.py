"""What the tests share: the reference data beside the repository, and small generated pairs."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.errors import run_script
from utils.guides.clip import load_clip

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core for each worker

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

TINY_NET = ["net.text_dim=12", "net.hidden_dim=16", "net.channels=8", "net.heads=2", "net.stages=1"]
TINY_NET += ["net.token_grid=[8,8]"]
CONFIG = ["--config", "configs/film_ivf.yaml"]
FAST = [*TINY_NET, "train.crop=16", "train.augment=true", "train.lr=1e-3", "train.num_workers=0", "train.log_every=1"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of references and real pairs; tests that need it skip without it, but never in CI."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing")
        pytest.skip("needs the shared reference data")
    return SHARED


@pytest.fixture(autouse=True)
def fresh_start() -> None:
    """No test depends on what ran before it: the seed, and the CLIP that was loaded last."""
    torch.manual_seed(0)
    load_clip.cache_clear()


def make_pairs(root: Path, names: list[str], split: str, size=(40, 48), dataset="Toy", task="IVF", dim=12, tokens=5):
    """A set of colour pairs in the VLF layout, with text features `dim` wide of unequal lengths."""
    rng = np.random.default_rng(len(names))
    base = root / "Image" / task / dataset
    for i, name in enumerate(names):
        for folder in ("IR", "VI"):
            (base / folder).mkdir(parents=True, exist_ok=True)
            noise = cv2.GaussianBlur(rng.uniform(0, 255, (*size, 3)).astype(np.float32), (0, 0), 2)
            cv2.imwrite(str(base / folder / f"{name}.png"), cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))
        features = root / "TextFeature" / task / dataset
        features.mkdir(parents=True, exist_ok=True)
        np.save(features / f"{name}.npy", rng.normal(size=(tokens + i, dim)).astype(np.float32))
    (base / f"{split}.txt").write_text("\n".join(names) + "\n")


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


def script(name: str, *words, code: int = 0) -> str:
    """Run a script of the repository in this process; what it prints. Fails on another exit code."""
    printed = io.StringIO()
    argv, sys.argv = sys.argv, [name, *map(str, words)]
    exit_code = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_script(importlib.import_module(name.removesuffix(".py")).main)
    except SystemExit as stopped:
        exit_code = 0 if not stopped.code else 1
        printed.write(str(stopped.code or ""))
    finally:
        sys.argv = argv
    assert exit_code == code, printed.getvalue()
    return printed.getvalue()


def process(*words, code: int = 0) -> str:
    """Run Python in a process of its own, as a user does; both streams. Fails on another exit code."""
    # no bytecode: under a limit on the size of files Python 3.11 leaves half of it, which breaks every later import
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, words)]
    call = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    output = call.stdout + call.stderr
    assert call.returncode == code, output
    return output
