"""`python -m tools.gpu` without a GPU: its rows on the CPU, and what becomes of a check that fails."""

import json

import pytest
import torch

from net import NETWORKS
from tools import gpu
from utils.metrics import METRICS

QUICK = ["device", "metrics", "files", "compile"]
LONG = [section for section in gpu.SECTIONS if section not in QUICK]


@pytest.mark.parametrize("sections", [QUICK, *(pytest.param([each], marks=pytest.mark.slow) for each in LONG)], ids=str)
def test_rehearsal(sections, tmp_path):
    """Every check runs on the CPU in place of a GPU, with tiny sizes; the comparisons pass."""
    assert gpu.main(["--rehearse", "--minutes", "60", "--out", str(tmp_path / "gpu.json"), *sections]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["finished"] and not any("detail" in row for row in report["rows"])
    assert {row["section"] for row in report["rows"]} == {*sections} - {"compile"}  # which takes a GPU
    assert "metrics" not in sections or {row["name"] for row in report["rows"]} >= set(METRICS)


def test_a_check_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "SD", lambda f, a, b: torch.rand(len(f), dtype=f.dtype))
    monkeypatch.setattr(gpu.gpu_checks, "NETWORKS", {"max": NETWORKS["max"]})
    monkeypatch.setattr(NETWORKS["max"], "forward", lambda self, a, b: a + self.nothing)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--minutes", "60", "--out", str(out), "metrics"]) == 1
    assert [row["name"] for row in json.loads(out.read_text())["rows"] if row["verdict"] == "FAIL"] == ["SD"]
