"""The training loss against the published values."""

import json

import numpy as np
import pytest
import torch

from utils.loss import FusionLoss, sobel_gradient, ssim


@pytest.mark.parametrize("k", [0, 1])
def test_published_values(shared, k):
    arrays = np.load(shared / "reference" / "film_loss.npz")
    expected = json.loads((shared / "reference" / "film_loss.json").read_text())[f"case{k}"]
    fused, a, b = (torch.from_numpy(arrays[f"case{k}_{key}"]) for key in ("fused", "imageA", "imageB"))
    terms = FusionLoss()(fused, a, b)
    difference = terms["total"].item() / expected["fusion_total"] - 1
    print(f"loss, case {k}: relative difference {abs(difference):.1e}")
    assert terms["total"].item() == pytest.approx(expected["fusion_total"], rel=1e-5)
    assert terms["intensity"].item() == pytest.approx(expected["intensity"], rel=1e-5)
    assert terms["gradient"].item() == pytest.approx(expected["gradient"], rel=1e-5)
    assert set(terms) == {"total", "intensity", "gradient"}  # what has weight 0 is not computed

    for key, source in (("A", a), ("B", b)):
        assert torch.linalg.vector_norm(fused - source).item() == pytest.approx(expected[f"lp_{key}"], rel=1e-5)
        dissimilarity = expected["ssim_weight"] * (1 - ssim(fused, source).item())
        assert dissimilarity == pytest.approx(expected[f"one_minus_ssim_{key}_times_weight"], rel=1e-5)
    all_terms = FusionLoss(fidelity_weight=0.5)(fused, a, b)
    fidelity = sum(expected[f"lp_{key}"] + expected[f"one_minus_ssim_{key}_times_weight"] for key in "AB")
    assert all_terms["total"].item() == pytest.approx(expected["fusion_total"] + 0.5 * fidelity, rel=1e-5)


def test_zero_where_fused_is_brighter_and_sharper_source():
    a = torch.rand(2, 1, 20, 24)
    terms = FusionLoss()(a, a, torch.zeros_like(a))
    assert terms["total"].item() == 0


def test_gradient_of_a_step_edge():
    step = torch.zeros(1, 1, 9, 9)
    step[..., 5:] = 1
    assert sobel_gradient(step)[0, 0, 4, 4].item() == 4
