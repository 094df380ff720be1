"""Simulated focus and exposure pairs, as functions and as training sets."""

import cv2
import numpy as np
import pytest

from tests.toy import CONFIG, script
from utils.data.pairs import PairDataset
from utils.simulate import SIMULATORS, exposure_pair, focus_pair

TABLE = """
Toy: {task: IVF, a: IR, b: VI, color: [VI]}
ToyFocus: {task: MFF, a: NEAR, b: FAR, color: [NEAR, FAR]}
ToyExposure: {task: MEF, a: OVER, b: UNDER, color: [OVER, UNDER]}
ToyMedical: {task: MIF, a: MRI, b: T, color: [T]}
"""


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def test_everything_is_sharp_in_one_focus():
    """The sharper of both at each pixel is the photograph, but along a hard edge; and each has a blurred part."""
    image = photograph()
    pair = focus_pair(image, np.random.default_rng(0))
    detail = [cv2.blur(cv2.Laplacian(x.astype(np.float32), cv2.CV_32F).var(axis=2), (7, 7)) for x in (image, *pair)]
    kept = np.maximum(detail[1], detail[2]) / detail[0]
    assert np.median(kept) > 0.8 and np.mean(kept > 0.3) > 0.7
    sharp = [np.mean(d > 0.5 * detail[0]) for d in detail[1:]]
    assert min(sharp) < 0.95 and sum(sharp) > 0.7


def test_exposures_clip_and_lose_levels():
    image = photograph()
    over, under = exposure_pair(image, np.random.default_rng(0))
    assert over.mean() > image.mean() > under.mean()
    assert (over == 255).mean() > (image == 255).mean() + 0.1  # burnt
    assert len(np.unique(under)) < len(np.unique(image))  # sunk into a few levels


@pytest.mark.parametrize("task", SIMULATORS)
def test_a_pair_depends_on_its_random_numbers_alone(task):
    make_pair = SIMULATORS[task][0]
    first, again, other = (make_pair(photograph(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again))
    assert any((a != b).any() for a, b in zip(first, other))
    assert all(image.dtype == np.uint8 and image.shape == (96, 128, 3) for image in first)


@pytest.fixture
def photographs(toy, tmp_path) -> list[str]:
    """The toy set with paragraphs for its visible images, and a table with sets to simulate."""
    folder = tmp_path / "VLF" / "Text" / "IVF" / "Toy" / "VI"
    folder.mkdir(parents=True)
    for name in ("a1", "a2", "a3", "a4"):
        (folder / f"{name}.txt").write_text(f"A photograph, {name}.")
    (tmp_path / "datasets.yaml").write_text(TABLE)
    return [*CONFIG, *toy, "net={name: mean}", "data.test=[]"]


def test_sets_are_simulated_once(photographs, tmp_path):
    words = [*photographs, "data.train=[ToyFocus_train, ToyExposure_train]"]
    words.append("data.simulate={ToyFocus: {of: Toy, image: VI}, ToyExposure: {of: Toy, image: VI}}")
    output = script("data_process.py", *words)
    assert "4 pairs simulated from Toy_train, seed 0" in output
    base = tmp_path / "VLF" / "Image" / "MFF" / "ToyFocus"
    assert (base / "train.txt").read_text().split() == ["a1", "a2", "a3", "a4"]
    text = (tmp_path / "VLF" / "Text" / "MFF" / "ToyFocus" / "NEAR" / "a2.txt").read_text()
    assert text == "A photograph, a2. What is near is in sharp focus, what is far is soft and blurred.\n"
    assert len(PairDataset([tmp_path / "h5" / "ToyFocus_train.h5", tmp_path / "h5" / "ToyExposure_train.h5"], ())) == 8

    before = (base / "NEAR" / "a1.png").read_bytes()
    assert "pairs simulated" not in script("data_process.py", *words)  # it is there
    (base / "train.txt").unlink()
    assert "pairs simulated" in script("data_process.py", *words)
    assert (base / "NEAR" / "a1.png").read_bytes() == before
    (base / "train.txt").unlink()
    script("data_process.py", *words, "seed=1")
    assert (base / "NEAR" / "a1.png").read_bytes() != before


@pytest.mark.parametrize(
    "simulate, message",
    [
        ("{ToyFocus: {of: Toi, image: VI}}", "has no dataset 'Toi'; did you mean 'Toy'"),
        ("{ToyMedical: {of: Toy, image: VI}}", "MIF cannot be simulated"),
        ("{ToyFocus: {of: Toy, image: IR}}", "'a1' has no text"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(photographs, tmp_path, simulate, message):
    train = "data.train=[ToyFocus_train,ToyMedical_train]"
    output = script("data_process.py", *photographs, train, f"data.simulate={simulate}", code=1)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "VLF" / "Image" / "MFF" / "ToyFocus" / "train.txt").exists()
