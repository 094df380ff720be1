"""Small generated pairs, and how to run the scripts on them; all of it without pytest, for tools/gpu.py."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from utils.errors import run_script

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

TINY_NET = ["net.text_dim=12", "net.hidden_dim=16", "net.channels=8", "net.heads=2", "net.stages=1"]
TINY_NET += ["net.token_grid=[8,8]"]
CONFIG = ["--config", "configs/film_ivf.yaml"]
FAST = [*TINY_NET, "train.crop=16", "train.augment=true", "train.lr=1e-3", "train.log_every=1"]
FAST += ["train.num_workers=0", "test.num_workers=0"]

GRAY = np.random.default_rng(0).integers(90, 160, (40, 48), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(90, 160, (40, 48, 3), dtype=np.uint8)


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


def contents(folder: Path) -> dict[Path, bytes]:
    """The files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    call = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=env)
    output = call.stdout + call.stderr
    assert call.returncode == code, output
    return output
