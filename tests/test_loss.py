"""The training loss against the published values."""

import json

import cv2
import numpy as np
import pytest
import torch

from utils.loss import INTENSITIES, FusionLoss, sobel_gradient, ssim, visual_information
from utils.metrics import METRICS


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


def test_vector_gradient_follows_the_stronger_edge_with_its_sign():
    rng = np.random.default_rng(0)
    fused, a, b = (rng.random((1, 1, 12, 14)) for _ in range(3))

    def derivatives(image):
        return np.stack([cv2.Sobel(image[0, 0], cv2.CV_64F, *d, ksize=3, borderType=cv2.BORDER_REPLICATE) for d in XY])

    of_a, of_b = derivatives(a), derivatives(b)
    stronger = np.where((of_a**2).sum(0) > (of_b**2).sum(0), of_a, of_b)
    expected = np.sqrt(((derivatives(fused) - stronger) ** 2).sum(0) + 1e-6).mean()
    tensors = [torch.from_numpy(x) for x in (fused, a, b)]
    assert FusionLoss(gradient="vector")(*tensors)["gradient"].item() == pytest.approx(expected, rel=1e-10)


XY = ((1, 0), (0, 1))


def test_targets():
    textured, flat = torch.rand(1, 1, 24, 24), torch.full((1, 1, 24, 24), 0.9)
    assert torch.equal(INTENSITIES["sharper"](textured, flat), textured)
    assert torch.equal(INTENSITIES["sharper"](flat, textured), textured)
    burnt, good = torch.ones(1, 1, 24, 24), torch.full((1, 1, 24, 24), 0.5)
    assert (INTENSITIES["exposed"](burnt, good) - 0.5).abs().max() < 0.03
    torch.testing.assert_close(INTENSITIES["exposed"](good, good), good)
    torch.testing.assert_close(INTENSITIES["exposed"](burnt, 1 - burnt), torch.full_like(burnt, 0.5))  # both are bad


def test_visual_information_is_the_metric():
    """Where nothing is flat, the smooth form and the metric agree."""
    rng = np.random.default_rng(0)
    a, b, noise = (cv2.GaussianBlur(rng.random((80, 90)), (0, 0), 1.2) for _ in range(3))
    a, b, fused = (torch.from_numpy(x)[None, None] for x in (a, b, (a + b) / 2 + 0.1 * noise))
    ours = visual_information(fused, a, b).sum().item()
    assert ours == pytest.approx(METRICS["VIFF"](255 * fused, 255 * a, 255 * b).item(), rel=1e-2)


def test_gradients_of_every_term_are_finite_in_flat_regions():
    a, b = torch.rand(2, 1, 1, 64, 64)
    a[..., :40], b[..., :40] = 0, 1
    fused = torch.full_like(a, 0.5, requires_grad=True)
    terms = FusionLoss(1, 1, vif_weight=1, gradient="vector", intensity="exposed")(fused, a, b)
    terms["total"].backward()
    assert set(terms) == {"total", "intensity", "gradient", "l2", "dissimilarity", "vif"}
    assert fused.grad.isfinite().all() and fused.grad.abs().max() < 10
