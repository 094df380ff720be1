"""The study of the metrics: agreement with a truth, and rewarded damage."""

import json

import numpy as np
import pytest

from tests.toy import make_pairs, script
from utils.metrics import TRUTH_METRICS
from utils.studies.metrics import ATTACKS, agreement


@pytest.fixture
def words(toy, tmp_path) -> list[str]:
    """The mean as network, and ten pairs."""
    make_pairs(tmp_path / "VLF", [f"b{i}" for i in range(10)], "test", size=(45, 53))
    return [*toy, "data.test=[]", "ckpt=null", "net={name: mean}", f"test.output={tmp_path / 'out'}"]


def study(tmp_path, words) -> dict:
    output = script("utils.studies.metrics", *words)
    tables = (tmp_path / "out" / "metrics_study.md").read_text()
    assert tables in output
    return json.loads((tmp_path / "out" / "metrics_study.json").read_text())


def test_the_truth_is_first_by_truth_metrics_and_a_seed_gives_the_same_twice(tmp_path, words):
    words = ["Toy_test", "--number", "2", *words]
    found = study(tmp_path, words)
    assert list(found) == ["MFF, simulated, 2 pairs", "MEF, simulated, 2 pairs"]
    for of in found.values():
        for metric, name in zip(TRUTH_METRICS, ("PSNR", "SSIM", "GMSD")):
            assert of["study"][metric]["truth's place"] == 1 and of["study"][metric][name] == pytest.approx(1)
        assert -1 <= of["study"]["EN"]["low"] <= of["study"]["EN"]["all"] <= of["study"]["EN"]["high"] <= 1
    assert study(tmp_path, words) == found
    assert study(tmp_path, [*words, "seed=1"]) != found


def test_noise_pays_by_AG_and_the_stretch_by_SD(tmp_path, words):
    table = study(tmp_path, [*words, "data.test=[Toy_test]"])["Toy_test, 10 pairs"]["study"]
    others = [label for label in ATTACKS if label != "mean"]  # the network here
    assert all(list(row) == others for row in table.values())
    assert table["AG"]["noised"] > 1 and table["SD"]["minmax"] > 0.5 and table["SD"]["source A"] > 0.5
    assert table["Qabf"]["noised"] < -1 and table["MSE"]["max"] < -1
    lines = (tmp_path / "out" / "metrics_study.md").read_text().splitlines()
    bold = {line.split("|")[1].strip(): line.split("|")[2 + others.index("noised")] for line in lines}
    assert "**" in bold["AG"] and "**" not in bold["Qabf"]  # ten images of one sign are no chance


def test_signs_and_undefined_values():
    """A metric that follows the truth has 1 also where lower is better, and methods without a value do not count."""
    methods, images = ["net", "mean", "max", "truth"], ["x", "y"]
    quality = dict(zip(methods, (3.0, 1.0, 2.0, 4.0)))
    values = {"Good": lambda q: q, "MSE": lambda q: -q, "Bad": lambda q: -q}
    values |= {"Half": lambda q: np.nan if q == 2 else q, "Flat": lambda q: 1.0}
    values |= {"PSNR_truth": lambda q: q, "SSIM_truth": lambda q: q, "GMSD_truth": lambda q: -q}
    rows = {k: {image: {name: f(quality[k]) for name, f in values.items()} for image in images} for k in methods}
    found = agreement(rows)
    for metric, expected, place in (("Good", 1, 1), ("MSE", 1, 1), ("Half", 1, 1), ("Bad", -1, 4)):
        of = found[metric]
        assert [of[k] for k in ("PSNR", "SSIM", "GMSD", "all", "low", "high", "Kendall")] == pytest.approx(
            [expected] * 7
        )
        assert of["truth's place"] == place
    assert "Flat" not in found


def test_mistakes_are_one_sentence(tmp_path, words):
    for more, said in (
        ([], "name photographs"),
        (["Toy_test", "--number", "1"], "--number is 2 or more"),
        (["Toy"], "names the dataset Toy"),
    ):
        assert said in script("utils.studies.metrics", *words, *more, code=1).splitlines()[-1]
