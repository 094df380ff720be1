"""The training loss against the published values, and its independence of the batch."""

import json

import cv2
import numpy as np
import pytest
import torch

from utils.loss import GRADIENTS, INTENSITIES, FusionLoss, sobel_gradient, ssim, visual_information
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


def backward(criterion: FusionLoss, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """All terms of F, A and B (N, 1, H, W), stacked, and the gradient of the total with respect to F."""
    fused = images[0].clone().requires_grad_()
    terms = criterion(fused, *images[1:])
    terms["total"].backward()
    return torch.stack([*terms.values()]).detach(), fused.grad


def waves() -> list[torch.Tensor]:
    """F, A and B of four images (4, 1, 64, 64), float64, each with another contrast."""
    y, x = torch.meshgrid(*[torch.arange(64.0, dtype=torch.float64)] * 2, indexing="ij")
    contrast = torch.tensor([0.02, 0.1, 0.25, 0.45], dtype=torch.float64).view(4, 1, 1, 1)
    a = 0.5 + contrast * torch.sin(x / 2 + y / 5) * torch.cos(y / 3)
    b = 0.5 + contrast * torch.sin(x * y / 90)
    return [0.4 * a + 0.6 * b + 0.01 * torch.sin(x + 2 * y), a, b]


@pytest.mark.parametrize("intensity", sorted(INTENSITIES))
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_batch_is_the_mean_of_its_images(intensity, gradient):
    """So neither train.accumulate nor the number of processes changes a training."""
    criterion = FusionLoss(1.0, vif_weight=0.5, intensity=intensity, gradient=gradient)
    terms, slope = backward(criterion, waves())
    for size in (1, 2):
        parts = [backward(criterion, part) for part in zip(*(images.split(size) for images in waves()))]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(dim=0), terms, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]) / len(parts), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 4])
def test_visual_information_of_equal_images(copies):
    """The ratio was once that of the sums over the batch; for equal images that is the same, value and gradient."""
    images = [x[2:3].repeat(copies, 1, 1, 1) for x in waves()]
    terms, slope = backward(FusionLoss(0, intensity_weight=0, vif_weight=1), images)
    assert terms[0].item() == pytest.approx(TOTAL, rel=1e-9)
    assert slope.sum(dim=0).norm().item() == pytest.approx(SLOPE, rel=1e-9)


TOTAL, SLOPE = 4.0669798979, 0.26637546177  # of the form with sums over the batch


def test_visual_information_of_each_source():
    fused, a, b = waves()
    of_both = visual_information(fused, a, b)
    assert of_both.shape == (4, 2) and of_both.min() >= 0 and of_both.max() <= 1
    torch.testing.assert_close(visual_information(fused, b, a), of_both.flip(1))
    of_a, of_b = visual_information(a, a, b).T
    assert of_a.min() > 0.95 and of_b.max() < 0.05
