"""Metrics: the published evaluator's numbers, literal NumPy forms, and every edge the docstring defines."""

import json
import math
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests import literal
from utils.data.images import read_image
from utils.errors import InputError
from utils.filters import CACHED, filter_windows
from utils.metrics import INFRARED_ONLY, LOWER_IS_BETTER, METRICS, PAPER_METRICS, TRUTH_METRICS, measure, measure_all
from utils.results.evaluate import average
from utils.targets import kept_contrast, targets

# of FILM's evaluator
PUBLISHED = {"EN", "SD", "SF", "AG", "VIFF", "Qabf", "MI", "MSE", "CC", "PSNR", "SCD", "SSIM"}


def picture(seed: int, h: int = 53, w: int = 61) -> np.ndarray:
    """Something with edges, flat parts and texture, whole numbers in 0..255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    image = 90 + 60 * np.sin(x / (5 + seed)) + 50 * ((y // 9 + x // 11) % 2) + rng.normal(0, 6, (h, w))
    image[: h // 4, : w // 4] = 30
    return image.clip(0, 255).round()


def warm(seed: int, h: int, w: int) -> list[np.ndarray]:
    """F, A and B: a night with warm targets of many sizes and forms, some touching the border; F keeps some of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    infrared, fused = 40 + 20 * y / h + rng.normal(0, 3, (h, w)), 30 + rng.normal(0, 3, (h, w))
    for _ in range(14):
        cy, cx, ry, rx = rng.uniform(0, h), rng.uniform(0, w), *rng.uniform(2, 7, 2)
        spot = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        infrared[spot] += rng.uniform(30, 150)
        fused[spot] += rng.uniform(-40, 120)
    return [image.clip(0, 255).round() for image in (fused, infrared, picture(seed, h, w))]


def tensors(*images, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(image))[None, None].to(dtype) for image in images]


def values(reference: Path, name: str) -> dict:
    return json.loads((reference / f"{name}.json").read_text())


def sources(shared: Path, dataset: str, name: str, folders: list[str]) -> list[np.ndarray]:
    """A and B of <task>/<dataset>/<name>, gray."""
    root = shared / "data" / "VLFDataset" / "Image" / dataset
    return [read_image(next((root / folder).glob(f"{name}.*")))[0].astype(np.float64) for folder in folders]


def first_or_all(first: int):
    """A test of one case in so many; of all of them where the slow tests run."""
    return pytest.mark.parametrize("every", [first, pytest.param(1, marks=pytest.mark.slow)])


@pytest.mark.parametrize("k", [pytest.param(k, marks=[pytest.mark.slow] * (k % 3 > 0)) for k in range(14)])
def test_published_evaluator(reference, shared, k):
    case = values(reference, "metrics_film")["cases"][k]
    a, b = sources(shared, case["dataset"], case["name"], case["folders"])
    fused = np.round((a + b) / 2) if case["fused"] == "mean" else np.maximum(a, b)
    assert list(fused.shape) == case["shape"] and set(case["values"]) == PUBLISHED
    worst = {}
    for name, expected in case["values"].items():
        double = METRICS[name](*tensors(fused, a, b)).item()
        worst[name] = abs(double / expected - 1)
        assert double == pytest.approx(expected, rel=1e-6), name
        single = METRICS[name](*tensors(fused, a, b, dtype=torch.float32))
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(expected, abs=5e-3), name
    name = max(worst, key=worst.get)
    print(f"metrics, float64, {case['name']} {case['fused']}: largest relative difference {worst[name]:.1e} ({name})")


@first_or_all(12)
def test_target_contrast_of_the_reference(reference, shared, every):
    cases = list(values(reference, "target_contrast")["values"].items())
    assert len(cases) == 87
    for case, expected in cases[::every]:
        dataset, name = case.split("/")
        a, b = sources(shared, f"IVF/{dataset}", name, ["IR", "VI"])
        for rule, fused in {"mean": (a + b) / 2, "max": np.maximum(a, b), "visible": b}.items():
            for dtype in (torch.float64, torch.float32):
                found = [METRICS[name](*tensors(fused, a, b, dtype=dtype)) for name in ("TC", "TClost")]
                assert all(value.dtype == dtype for value in found)
                assert [value.item() for value in found] == pytest.approx(expected[rule], abs=1e-4), (case, rule)
        assert len(kept_contrast(*tensors(b, a))[0]) == expected["targets"]


@first_or_all(6)
def test_exposure_similarity_of_the_reference(reference, shared, every):
    cases = list(values(reference, "mef_ssim")["values"].items())
    assert len(cases) == 18
    for case, expected in cases[::every]:
        dataset, name = case.split("/")
        a, b = sources(shared, f"MEF/{dataset}", name, ["OVER", "UNDER"])
        for rule, fused in {"mean": np.round((a + b) / 2), "max": np.maximum(a, b), "over": a}.items():
            for name, form in (("MEFSSIM", "plain"), ("MEFSSIMl", "luminance")):
                for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
                    value = METRICS[name](*tensors(fused, a, b, dtype=dtype)).item()
                    assert value == pytest.approx(expected[rule][form], abs=tolerance), case


def test_every_metric_has_a_literal_form():
    ours = {name for name, metric in METRICS.items() if metric.__module__ == "utils.metrics"}
    assert ours == set(literal.METRICS), "write the form of a new metric of utils/metrics.py in tests/literal.py"
    assert {*METRICS, *TRUTH_METRICS} >= LOWER_IS_BETTER | INFRARED_ONLY


@pytest.mark.parametrize("name", sorted(set(METRICS) & set(literal.METRICS)))
def test_literal_form(name):
    for seeds, size in (((1, 2, 3), (43, 51)), ((4, 1, 5), (54, 44))):
        images = [picture(seed, *size) for seed in seeds]
        expected = literal.METRICS[name](*images)
        assert METRICS[name](*tensors(*images)).item() == pytest.approx(expected, rel=1e-8, nan_ok=True)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_batch_of_n_is_n_singles(name, dtype, tolerance):
    batch = [
        torch.cat(column)
        for column in zip(*(tensors(*map(picture, (i, i + 1, i + 2)), dtype=dtype) for i in (1, 4, 7)))
    ]
    together = METRICS[name](*batch)
    assert together.shape == (3,) and together.dtype == dtype
    for i in range(3):
        alone = METRICS[name](*(x[i : i + 1] for x in batch))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_literal_form_of_larger_images():
    """MSSSIM needs five scales."""
    a, b = (picture(seed, 180, 190) for seed in (1, 2))
    images = [(a + b) / 2, a, b]
    expected = literal.METRICS["MSSSIM"](*images)
    assert 0 < expected < 2 and METRICS["MSSSIM"](*tensors(*images)).item() == pytest.approx(expected, rel=1e-9)


def test_metrics_to_the_truth():
    fused, truth = picture(1, 54, 61), picture(2, 54, 61)
    values = {name: metric(*tensors(fused, truth)).item() for name, metric in TRUTH_METRICS.items()}
    assert values["PSNR_truth"] == pytest.approx(peak_signal_noise_ratio(truth, fused, data_range=255))
    assert values["SSIM_truth"] == pytest.approx(structural_similarity(truth, fused, data_range=255))
    assert values["GMSD_truth"] == pytest.approx(literal.gradient_deviation(fused, truth), rel=1e-9)
    same = {name: metric(*tensors(truth, truth)).item() for name, metric in TRUTH_METRICS.items()}
    assert same["PSNR_truth"] == math.inf and same["SSIM_truth"] == pytest.approx(1) and same["GMSD_truth"] == 0


def test_several_results_of_one_pair():
    """What is computed of the sources alone is computed once, and each result gives what it gives alone."""
    fused, (a, b) = torch.cat(tensors(*map(picture, (3, 4, 5)))), tensors(picture(1), picture(2))
    for name, metric in METRICS.items():
        together = metric(fused, a.expand(3, -1, -1, -1), b.expand(3, -1, -1, -1))
        alone = torch.cat([metric(f[None], a, b) for f in fused])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10, equal_nan=True, msg=name)


def test_artefacts_and_kept_edges():
    """Noise is an artefact; a source is none. QW and QE are 1 for F = A = B and fall as edges go."""
    a = picture(1)
    noisy = (a + np.random.default_rng(0).normal(0, 20, a.shape)).clip(0, 255).round()
    soft = cv2.GaussianBlur(a, (0, 0), 2)
    for name in ("QW", "QE"):
        same, less = (METRICS[name](*tensors(f, a, a)).item() for f in (a, soft))
        assert same == pytest.approx(1) and less < 0.9
    none, some = (METRICS["Nabf"](*tensors(f, a, a)).item() for f in (a, noisy))
    assert none == 0 and some > 0.05


def test_literal_form_with_targets():
    seen = []
    for seed, size in enumerate([(120, 160), (97, 143)]):
        images = warm(seed, *size)
        seen += list(literal.kept_contrast(*images[:2]))
        for name in ("TC", "TClost"):
            expected = literal.METRICS[name](*images)
            assert METRICS[name](*tensors(*images)).item() == pytest.approx(expected, rel=1e-10)
    assert len(seen) > 5 and 0 < (np.array(seen) < 0.3).mean() < 1  # some are lost, some are not


def test_targets_of_a_batch():
    """Images with many targets, with others and with none: each gives what it gives alone, and the last is NaN."""
    triples = [warm(seed, 120, 160) for seed in (0, 1)]
    triples.append([triples[0][0], np.full((120, 160), 50.0), triples[0][2]])
    batch = [torch.cat(column) for column in zip(*(tensors(*triple) for triple in triples))]
    for name in ("TC", "TClost"):
        alone = [METRICS[name](*tensors(*triple)).item() for triple in triples]
        assert math.isfinite(alone[0]) and alone[0] != alone[1] and math.isnan(alone[2])
        assert METRICS[name](*batch).tolist() == pytest.approx(alone, nan_ok=True)


def night(*spots: tuple[int, int, int, int, float], size=(120, 160), dark: float = 20) -> np.ndarray:
    """A dark image with rectangles (top, left, height, width, level)."""
    image = np.full(size, dark)
    for top, left, height, width, level in spots:
        image[top : top + height, left : left + width] = level
    return image


def test_known_target_contrast():
    a = night((20, 20, 8, 8, 220), (20, 120, 8, 8, 120), (80, 60, 10, 10, 220))  # contrasts 200, 100, 200
    kept = night((20, 20, 8, 8, 80), (20, 120, 8, 8, 50), (80, 60, 10, 10, 20))  # 60, 30, 0: 0.3, 0.3, 0
    darker = np.where(a > 20, 0, 60.0)
    wild = night((20, 20, 8, 8, 255), (20, 120, 8, 8, 255), (80, 60, 10, 10, 255), dark=0)
    for fused, contrast, lost in (
        (a, 1, 0),
        (kept, 0.2, 1 / 3),  # exactly 0.3 is not lost
        (darker, -(60 / 200 + 60 / 100 + 60 / 200) / 3, 1),
        (3 * darker, -(180 / 200 + 1 + 180 / 200) / 3, 1),  # cut at -1
        (wild, (255 / 200 + 1.5 + 255 / 200) / 3, 0),  # cut at 1.5
    ):
        images = tensors(fused, a, fused)
        assert METRICS["TC"](*images).item() == pytest.approx(contrast, rel=1e-6)
        assert METRICS["TClost"](*images).item() == pytest.approx(lost, rel=1e-6)


def test_what_is_a_target():
    for spot, found in (
        ((50, 50, 5, 8, 220), True),  # 40 pixels
        ((50, 50, 3, 13, 220), False),  # 39
        ((50, 50, 24, 24, 255), True),  # 3 %
        ((50, 50, 24, 25, 255), False),
        ((50, 50, 10, 10, 44), False),  # less than 25 above its surroundings
        ((0, 0, 10, 10, 220), True),  # in a corner
    ):
        image = night(spot)
        inside, inside_number, around, around_number = targets(image.astype(np.float32))
        height, width = spot[2:4]
        assert len(inside) == len(inside_number) == found * height * width
        assert not inside_number.any() and not around_number.any()
        assert math.isnan(METRICS["TC"](*tensors(image, image, image)).item()) != found
        if found and spot[0]:
            assert len(around) == (height + 30) * (width + 30) - (height + 6) * (width + 6)
    touching = night((50, 50, 5, 5, 220), (55, 55, 5, 5, 220))  # 25 pixels each: only together are they a target
    assert len(targets(touching.astype(np.float32))[0]) == 50


def test_targets_are_found_once(monkeypatch):
    """However many networks and columns ask; and other pixels are never mistaken for them."""
    find = Mock(wraps=cv2.connectedComponentsWithStats)
    monkeypatch.setattr(cv2, "connectedComponentsWithStats", find)
    fused, a, b = warm(99, 100, 120)
    for name in ("TC", "TClost"):
        METRICS[name](*tensors(fused, a, b))
    assert find.call_count == 1
    METRICS["TC"](*tensors(fused.T, a.reshape(120, 100), b.T))  # the same bytes
    assert find.call_count == 2


def test_known_exposure_similarity():
    black, texture = np.zeros((40, 50)), picture(1, 40, 50)
    for images in ([texture] * 3, [black] * 3, [texture, texture, black], [texture, black, texture]):
        assert METRICS["MEFSSIM"](*tensors(*images)).item() == pytest.approx(1)
    assert METRICS["MEFSSIM"](*tensors(black, texture, black)).item() < 0.2  # the structure of A is missing
    for name in ("MEFSSIM", "MEFSSIMl"):
        assert METRICS[name](*tensors(*[np.full((1, 1), level) for level in (9, 200, 30)])).isfinite().all()


def test_too_little_memory_is_one_sentence(monkeypatch):
    monkeypatch.setitem(METRICS, "SD", lambda *images: torch.empty(10**15))  # the allocator's own error
    with pytest.raises(InputError, match="not enough memory to compute the metrics of 53 x 61 pixels; "):
        measure(*[picture(1).astype(np.uint8)] * 3, ["EN", "SD"])


@pytest.mark.parametrize("shape, step", [((3, 2, 20, 23), 1), ((5, 1, 130, 140), 2)])  # the second in parts
def test_filter_windows(shape, step):
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    assert (x.numel() > CACHED) == (shape[0] == 5)
    window = [0.1, 0.2, 0.3, 0.25, 0.15]
    expected = [[convolve2d(c, np.outer(window, window)[::-1, ::-1], "valid") for c in i] for i in x.detach().numpy()]
    filtered = filter_windows(x, window, step)
    torch.testing.assert_close(filtered.detach(), torch.from_numpy(np.array(expected))[..., ::step, ::step])
    filtered.sum().backward()
    assert x.grad.sum().item() == pytest.approx(filtered.numel())  # the weights add up to 1
    with pytest.raises(ValueError, match="hold no whole window of 5"):
        filter_windows(x[..., :4], window, step)


def test_levels_of_any_kind():
    """Every distinct value counts as a level, also between, below and above those of 8 bits; -0 is 0."""
    rng = np.random.default_rng(0)
    levels = np.array([-300.0, -0.0, 0.0, 0.25, 0.250001, 1.0, 255.0, 256.0, 1e9])
    for images in (rng.choice(levels, (3, 30, 40)), rng.normal(0, 99, (3, 20, 30)), rng.integers(0, 256, (3, 50, 70))):
        f, a, b = (np.float32(image) for image in images)
        expected = literal.METRICS["MI"](*(image.astype(np.float64) for image in (f, a, b)))
        assert METRICS["MI"](*tensors(f, a, b)).item() == pytest.approx(expected, abs=1e-12)


def test_identical_images():
    values = {name: metric(*tensors(*[picture(1)] * 3)).item() for name, metric in METRICS.items()}
    assert values["MSE"] == values["Qcv"] == values["CE"] == 0 and values["PSNR"] == math.inf
    ones = [values[name] for name in ("CC", "Qcb", "MEFSSIM", "MEFSSIMl")]
    assert ones == pytest.approx([1] * 4) and [values["SSIM"], values["VIFF"]] == pytest.approx([2, 2])
    assert values["Qabf"] == pytest.approx(0.97533, abs=5e-3) and math.isnan(values["SCD"])


def test_flat_images():
    flat, other = np.full((50, 50), 100.0), picture(1, 50, 50)
    values = {name: metric(*tensors(flat, other, picture(2, 50, 50))).item() for name, metric in METRICS.items()}
    assert all(values[name] == 0 for name in ("EN", "SD", "SF", "AG", "EI"))
    assert all(math.isnan(values[name]) for name in ("CC", "Qcv", "Qcb"))
    assert values["VIFF"] == pytest.approx(0, abs=1e-6)
    black = {name: metric(*tensors(*[np.zeros((50, 50))] * 3)).item() for name, metric in METRICS.items()}
    assert all(math.isnan(black[name]) for name in ("CC", "SCD", "PSNR", "Qabf", "Qcv", "Qcb", "TC", "TClost"))
    assert black["VIFF"] == 2 and black["MEFSSIM"] == black["MEFSSIMl"] == pytest.approx(1)
    assert METRICS["PSNR"](*tensors(np.zeros((50, 50)), other, other)).item() == -math.inf


def test_small_images():
    for name, side in (("VIFF", 41), ("SSIM", 7)):
        for height in (side, side - 1):
            value = METRICS[name](*tensors(*[picture(i, height, 60) for i in range(3)])).item()
            assert math.isfinite(value) == (height == side)


def test_one_bad_image_does_not_spoil_a_mean():
    results = {"good": {"CC": 0.5}, "flat": {"CC": math.nan}, "fine": {"CC": 0.7}}
    means, left_out = average(results)
    assert means["CC"] == pytest.approx(0.6) and left_out == {"CC": ["flat"]}
    assert math.isnan(average({"flat": {"CC": math.nan}})[0]["CC"])


def test_better_image_scores_better():
    a, b = picture(2), picture(3)
    worse = np.random.default_rng(0).uniform(0, 255, a.shape)
    for name in ("VIFF", "Qabf", "MSE", "CC", "SSIM", "Qcv", "Qcb", "MEFSSIM", "MEFSSIMl"):
        good, bad = (METRICS[name](*tensors(f, a, b)).item() for f in ((a + b) / 2, worse))
        assert good < bad if name in LOWER_IS_BETTER else good > bad, name


def test_arrays_of_any_range_and_files_are_measured_alike(tmp_path):
    """As tables do; mixtures of 0..1 and 0..255 are refused, by name."""
    gray = [picture(seed).astype(np.uint8) for seed in (1, 2, 3)]
    assert list(measure(*gray)) == PAPER_METRICS
    assert [measure(*gray)] == measure_all(gray[:1], *gray[1:], PAPER_METRICS)
    rgb = [np.dstack([a, b, c]) for a, b, c in (gray, gray[::-1], (gray[1], gray[2], gray[0]))]
    for images in (gray, rgb):
        wanted = measure(*images, ["VIFF", "MI"])
        for kind in (np.float32, np.float64):
            assert measure(*((image / 255).astype(kind) for image in images), ["VIFF", "MI"]) == wanted
        assert measure(images[0] / 255, *(image.astype(np.uint16) * 257 for image in images[1:])) == measure(*images)
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for path, image in zip(paths, images):
            cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])
        assert measure(images[0], *paths[1:]) == measure(*map(str, paths)) == measure(*images)
    with pytest.raises(InputError, match="a holds floats from 13 to 214; scale them to"):
        measure(gray[0] / 255, gray[1] * 1.0, gray[2] / 255)
    with pytest.raises(InputError, match="unequal sizes: fused 53 x 61, a 53 x 61, b 53 x 60"):
        measure(gray[0], gray[1], gray[2][:, 1:])
    with pytest.raises(InputError, match="there is no metric 'VIF'; did you mean 'VIFF'"):
        measure(*gray, ["VIF"])
