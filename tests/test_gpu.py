"""`python -m tools.gpu` without a GPU: the rehearsal on the CPU, and what becomes of a check that fails."""

import json
import math

import pytest
import torch

from net import NETWORKS
from tests.toy import process
from tools import gpu, gpu_checks
from tools.gpu import SECTIONS
from tools.gpu_checks import Machine, aim, at_most, told
from utils.metrics import METRICS

EVERY_SECTION = ["device", "networks", "training", "metrics", "ceilings", "bench", "recipe", "memory", "files"]
EVERY_SECTION += ["resume", "compile", "layout"]  # in the order of their worth


@pytest.fixture
def rehearse(tmp_path, monkeypatch, capsys):
    """Run sections in this process, those with a list of checks instead of their own; what the file and table say."""

    def call(*words, code=0, **sections):
        for name, checks in sections.items():
            monkeypatch.setitem(SECTIONS, name, lambda m, checks=checks: iter(checks))
        assert gpu.main(["--rehearse", "--out", str(tmp_path / "gpu.json"), *words, *sections]) == code
        report = json.loads((tmp_path / "gpu.json").read_text())
        assert report["finished"]
        return report["rows"], capsys.readouterr().out

    return call


def test_it_is_skipped_without_cuda(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "skipped" in printed and not list(tmp_path.iterdir())


def test_it_needs_nothing_that_only_the_tests_need():
    assert process("-c", "import sys; sys.modules['pytest'] = None; import tools.gpu; print('there')") == "there\n"


def test_rehearsal(rehearse):
    """Every section runs, every comparison passes, the table and the file say the same."""
    rows, printed = rehearse("--minutes", "60")
    assert f"\n{len(rows)} rows in " in printed and ", 0 failed, 0 not reached\n" in printed
    assert list(dict.fromkeys(row["section"] for row in rows)) == EVERY_SECTION
    for row in rows:
        assert f"{row['section']:<10} {row['check']}: {row['name']} " in printed
        assert row["verdict"] != "FAIL" and "detail" not in row, row
        assert row["verdict"] == "ok" or not row["limit"].startswith("<="), row
    assert {row["value"] for row in rows if isinstance(row["value"], str)} == {
        row["value"] for row in rows if row["section"] == "device" and isinstance(row["value"], str)
    }
    checks = {section: {row["check"] for row in rows if row["section"] == section} for section in SECTIONS}
    assert {f"{name}, fp32" for name in NETWORKS} <= checks["networks"]
    assert set(METRICS) <= checks["metrics"]
    numbers = {f"{row['check']}: {row['name']}": row["value"] for row in rows}
    assert numbers["film, tile: difference"] > 0 and numbers["film, bf16: gradients"] > 0  # another way is another way
    assert numbers["film, several sizes: graphs for the first size"] > 0


def raises(error: BaseException):
    """A check that raises."""

    def check():
        raise error

    return check


def test_a_check_that_fails_is_a_row_and_the_run_goes_on(rehearse):
    full = torch.OutOfMemoryError("tried to allocate 80 GiB")
    rows, printed = rehearse(
        code=1,
        networks=[
            ("far", lambda: [at_most("difference", 2e-4, 1e-4)]),
            ("undefined", lambda: [at_most("difference", math.nan, 1e-4)]),
            ("broken", raises(RuntimeError("expected all tensors\nto be on the same device"))),
            ("full", raises(full)),
            ("near", lambda: [at_most("difference", 1e-5, 1e-4)]),
        ],
        memory=[
            ("full", raises(full)),
            ("literal", lambda: [told("peak", math.inf, "GiB"), aim("ratio", 2.5, "", least=3)]),
            ("ours", lambda: [aim("ratio", 3.5, "", least=3), aim("seconds", 9.0, "s", most=10)]),
        ],
    )
    assert "10 rows in " in printed and " 4 failed, 0 not reached" in printed
    assert [row["verdict"] for row in rows] == ["FAIL"] * 4 + ["ok", "-", "-", "-", "ok", "ok"]
    broken, of_small, of_large, literal = rows[2], rows[3], rows[5], rows[6]
    assert broken["value"] == "RuntimeError: expected all tensors to be on the same device"
    assert broken["value"] in printed and "Traceback" in broken["detail"]
    assert "80 GiB" in of_small["value"] and of_large["value"] == literal["value"] == "out of memory"


def test_a_metric_or_a_network_with_a_mistake_fails(rehearse, monkeypatch):
    monkeypatch.setitem(METRICS, "SD", lambda f, a, b: torch.rand(len(f), dtype=f.dtype))
    monkeypatch.setattr(NETWORKS["max"], "forward", lambda self, a, b: torch.maximum(a, b) + torch.rand(1))
    monkeypatch.setattr(NETWORKS["mean"], "forward", lambda self, a, b: a + self.nothing)
    rows, _ = rehearse("networks", "metrics", code=1)
    failed = {row["check"] for row in rows if row["verdict"] == "FAIL"}
    variants = {f"{name}, {variant}" for name in ("max", "mean") for variant in ("fp32", "odd sizes")}
    assert failed == {"SD", "Evaluator, mixed sizes"} | variants


@pytest.mark.parametrize("factor", [1.1, math.nan])
def test_gradients_that_differ_fail(factor, monkeypatch):
    """One weight, neither the first nor the last, has another gradient on the device."""
    calls, step = [], gpu_checks.step

    def second_is_wrong(model, *args):
        loss = step(model, *args)
        calls.append(loss)
        if len(calls) == 2:
            model.decoder.reduce.weight.grad *= factor
        return loss

    monkeypatch.setattr(gpu_checks, "step", second_is_wrong)
    rows = gpu_checks.training_step(Machine(torch.device("cpu"), rehearsal=True), "film", 1e-3)
    assert {row.name: row.verdict for row in rows} == {"loss": "ok", "gradients": "FAIL"}


def test_a_value_that_is_not_finite_is_not_passed_over():
    assert math.isnan(gpu_checks.relative([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]))
    assert math.isnan(gpu_checks.relative([1.0, 2.0, 3.0], [1.0, math.nan, 3.0]))
    assert gpu_checks.relative([1.0, math.inf], [1.0, 2.0]) == math.inf
    assert gpu_checks.relative([1.0, math.nan, math.inf], [1.0, math.nan, math.inf]) == 0
    with pytest.raises(ValueError, match="nothing is compared"):
        gpu_checks.relative([math.nan], [math.nan])


def test_what_time_is_too_short_for_is_listed(rehearse):
    rows, printed = rehearse("--minutes", "0")
    assert list(dict.fromkeys(row["section"] for row in rows)) == EVERY_SECTION and len(rows) > 100
    assert {(row["value"], row["verdict"]) for row in rows} == {("not reached", "-")}
    assert "\n0 rows in " in printed and f" 0 failed, {len(rows)} not reached\n" in printed


def test_a_run_that_is_cut_off_keeps_its_rows(rehearse, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        rehearse(
            metrics=[("EN", lambda: [at_most("difference", 0.0, 1e-9)]), ("SD", raises(KeyboardInterrupt()))],
        )
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["check"] for row in report["rows"]] == ["EN"] and not report["finished"]
