"""The text study: the same pairs with other texts."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from tests.test_text import bert  # noqa: F401  a fixture
from tests.toy import CONFIG, FAST, script
from utils.studies.text import change_from, p_values, variants


def test_text_study(tmp_path, toy, bert):  # noqa: F811
    encoder = ["text.encoder=auto", f"text.path={bert}"]
    words = [*CONFIG, *toy, *FAST, *encoder, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]
    script("data_process.py", *words)
    script("train.py", *words, "train.epochs=1", "test.num_workers=0")
    words.append(f"ckpt={tmp_path / 'exp'}/*/model/last.pth")
    output = script("utils.studies.text", *words, "--sentence", "a warm car stands at the road")
    folder = tmp_path / "out" / "Toy_test_text_study"
    summary = json.loads((folder / "metrics.json").read_text())
    others = ["another's", "shuffled tokens", "empty text", "default text", "the sentence"]
    assert list(summary["mean"]) == ["own text", *others] == list(summary["per_image"])
    assert list(summary["p"]) == list(summary["change"]) == others
    assert summary["sentence"] == "a warm car stands at the road" and summary["sentence"] in output
    for label, change in summary["change"].items():
        assert 0 < change["mean"] <= change["99 %"] < 255 and change["PSNR"] > 20
        found = [row["mean"] for row in summary["change_per_image"][label].values()]
        assert change["mean"] == pytest.approx(np.mean(found)) and f"{change['mean']:.3g}" in output
    assert summary["change"]["shuffled tokens"]["99 %"] < 1e-3 < summary["change"]["another's"]["mean"]  # rounding
    assert {p for row in summary["p"].values() for p in row.values()} == {1.0}  # two images show nothing
    picture = cv2.imread(str(folder / "text_study.png"))
    assert picture.shape[1] > 6 * 53 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    script("test.py", *words)
    usual = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["mean"]["FILM"]
    assert summary["mean"]["own text"] == pytest.approx(usual, rel=1e-6)
    output = script("utils.studies.text", *CONFIG, *toy, "ckpt=null", "net={name: max}", code=1)
    assert "max reads no text" in output


def test_a_study_without_texts_is_one_sentence(tmp_path, toy):
    shutil.rmtree(tmp_path / "VLF" / "TextFeature")
    words = [*CONFIG, *toy, *FAST, "text.use=default", f"train.exp={tmp_path / 'exp'}"]
    script("data_process.py", *words)
    script("train.py", *words, "train.epochs=1")
    output = script("utils.studies.text", *words, f"ckpt={tmp_path / 'exp'}/*/model/last.pth", code=1)
    assert "holds no text" in output.splitlines()[-1]


def test_changes_are_those_of_an_example():
    own = np.zeros((10, 20), np.float32)
    other = own.copy()
    other[0] = 0.1  # a tenth of the pixels
    change = change_from(own, other)
    assert change == pytest.approx({"mean": 2.55, "99 %": 25.5, "PSNR": 30})
    assert change_from(own, own) == {"mean": 0, "99 %": 0, "PSNR": np.inf}


def test_p_values_are_signed_rank_tests_corrected_by_holm():
    """12 differences of one sign: exactly 2 ** -11, times the number of tests; and what does not differ."""
    rng = np.random.default_rng(0)
    own = {f"{i}": {"EN": 7.0, "SD": 50.0, "SF": 1.0, "CC": np.nan} for i in range(12)}
    up = {name: row | {"EN": 7 + rng.uniform(), "SD": 50 + 1e-12} for name, row in own.items()}
    noise = {name: row | {"EN": 7 + (-1) ** i * (i + 1)} for i, (name, row) in enumerate(own.items())}
    p = p_values({"own text": own, "up": up, "noise": noise})
    assert set(p) == {"up", "noise"} and p["up"]["EN"] == pytest.approx(8 * 2**-11)
    assert p["noise"]["EN"] == p["up"]["SD"] == p["up"]["SF"] == p["up"]["CC"] == 1


def test_every_pair_gets_the_text_of_another():
    class Texts:
        def __len__(self):
            return 7

        def feature(self, kind, i):
            return torch.full((5, 2), float(i)) + torch.arange(5)[:, None] / 10

    given = list(variants(Texts(), seed=3))
    others = [int(texts["another's"][0, 0]) for texts in given]
    assert sorted(others) == list(range(7)) and all(i != other for i, other in enumerate(others))
    for i, texts in enumerate(given):
        assert torch.equal(texts["own text"], Texts().feature("text", i))
        assert torch.equal(texts["shuffled tokens"].sort(dim=0).values, texts["own text"])
    assert any(not torch.equal(texts["shuffled tokens"], texts["own text"]) for texts in given)
