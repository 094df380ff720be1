"""The training loss against the published values, its independence of the batch, and the registry of losses."""

import json
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from tests.test_metrics import warm
from utils.errors import InputError
from utils.loss import (
    INTENSITIES,
    FusionLoss,
    Loss,
    build_loss,
    grow,
    missing_contrast,
    ssim,
    visual_information,
)
from utils.metrics import METRICS
from utils.registry import Registry
from utils.targets import warm_map


@pytest.mark.parametrize("k", [0, 1])
def test_published_values(reference, k):
    arrays = np.load(reference / "film_loss.npz")
    expected = json.loads((reference / "film_loss.json").read_text())[f"case{k}"]
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
    all_terms = FusionLoss(fidelity_weight=0.5)(fused, a, b)  # ssim_weight is int(sqrt(H W)) by itself
    fidelity = sum(expected[f"lp_{key}"] + expected[f"one_minus_ssim_{key}_times_weight"] for key in "AB")
    assert all_terms["total"].item() == pytest.approx(expected["fusion_total"] + 0.5 * fidelity, rel=1e-5)


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
    halfway = build_loss({"intensity": "mean"})(torch.full_like(burnt, 0.5), burnt, 1 - burnt)
    assert halfway["intensity"] == 0 and build_loss({})(burnt, burnt, 1 - burnt)["intensity"] == 0


def test_ssim_counts_by_the_size_of_the_image_or_as_given():
    """The released train.py weighs it by int(sqrt(H W)), 332 at its 288 x 384."""
    fused, a, b = torch.rand(3, 1, 1, 288, 384)
    by_size, given = (FusionLoss(fidelity_weight=1, ssim_weight=w)(fused, a, b)["total"] for w in (None, 332))
    none = FusionLoss(fidelity_weight=1, ssim_weight=0)(fused, a, b)
    assert by_size == given and (by_size - none["total"]).item() == pytest.approx(332 * none["dissimilarity"].item())


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
    of_targets = torch.zeros_like(a)
    of_targets[..., 30:36, 30:50] = 1  # half of it is flat in all images
    fused = torch.full_like(a, 0.5, requires_grad=True)
    weights = dict(vif_weight=1, contrast_weight=1, target_edges=1, exposure_weight=1)
    terms = FusionLoss(1, 1, gradient="vector", intensity="exposed", **weights)(fused, a, b, of_targets)
    terms["total"].backward()
    more = {"vif", "missing_contrast", "exposure"}
    assert set(terms) == {"total", "intensity", "gradient", "l2", "dissimilarity"} | more
    assert fused.grad.isfinite().all() and fused.grad.abs().max() < 10


def backward(criterion: Loss, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
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


def night(seed: int, size: tuple[int, int] = (70, 90)) -> list[torch.Tensor]:
    """F, A, B and the map "warm" of a night with warm targets, (1, 1, H, W) float64 in [0, 1]."""
    fused, a, b = warm(seed, *size)
    return [torch.from_numpy(x)[None, None] / 255 for x in (fused, a, b, warm_map(a.astype(np.float32)).astype(float))]


@pytest.mark.parametrize("seed", range(3))
def test_missing_contrast_is_its_definition(seed):
    fused, a, _, of_targets = (x[0, 0].numpy() for x in night(seed))
    target = of_targets == 1
    far, near = (binary_dilation(target, np.ones((side, side))) for side in (31, 7))
    ring = far & ~near & (of_targets == 0)
    total = weights = 0
    for y, x in np.argwhere(target):
        window = np.s_[max(0, y - 15) : y + 16, max(0, x - 15) : x + 16]
        inside, around = target[window], ring[window]
        if around.sum() <= 30:
            continue
        of_a, of_fused = (image[window][inside].mean() - image[window][around].mean() for image in (a, fused))
        if of_a > 0.04:
            total += max(1 - of_fused / max(of_a, 0.06), 0) / inside.sum()
            weights += 1 / inside.sum()
    assert weights > 1  # there are targets
    images = [x for i, x in enumerate(night(seed)) if i != 2]
    assert missing_contrast(*images).item() == pytest.approx(total / weights, rel=1e-3)


def test_what_is_missing_between_flat_and_infrared():
    """Nothing is missing in A, all in a flat image; in a headlight a darkened ring serves as well as a warm target."""
    fused, a, _, of_targets = night(0)
    kept = torch.linspace(0, 1, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    missing = missing_contrast(kept * a, a.expand(5, -1, -1, -1), of_targets.expand(5, -1, -1, -1))
    torch.testing.assert_close(missing, 1 - kept.flatten(), rtol=0, atol=1e-3)
    headlight = torch.full_like(a, 0.9)
    darkened = torch.where(grow((of_targets == 1).double(), 31) - (of_targets == 1).double() > 0, 0.3, headlight)
    assert missing_contrast(headlight, a, of_targets).item() == pytest.approx(1, abs=1e-3)
    assert missing_contrast(darkened, a, of_targets).item() < 0.03
    assert missing_contrast(fused, a, torch.full_like(a, 0.5)).item() == 0  # lukewarm: no target, no ring


def test_edges_of_targets_count_more():
    fused, a, b, of_targets = night(0)
    b = b / 2  # A's edges are longer
    plain, more = (FusionLoss(gradient="vector", target_edges=g)(fused, a, b, of_targets)["gradient"] for g in (0, 1))
    inside = FusionLoss(gradient="vector", target_edges=1)(fused, a, b, torch.ones_like(a))["gradient"]
    without = FusionLoss(gradient="vector", target_edges=1)(fused, a, b, torch.zeros_like(a))["gradient"]
    assert plain < more < 2 * plain and without == pytest.approx(plain.item(), rel=1e-12)
    assert plain < inside < 2.001 * plain  # less than twice only at the border

    flat = torch.zeros_like(a)  # both sources have edges: those of a target are chosen although B's are longer
    a, b = flat.clone(), flat.clone()
    a[..., 40:], b[..., :40] = 0.4, 0.6
    loss = lambda where, image: FusionLoss(gradient="vector", target_edges=1)(image, a, b, where)["gradient"]  # noqa: E731
    assert loss(flat, b) < loss(flat, a) and loss(flat + 1, a) < loss(flat + 1, b)


def test_targets_wait_for_their_share_of_the_training():
    images = night(0)
    late, never = (FusionLoss(gradient="vector", contrast_weight=c, target_edges=c, targets_from=0.5) for c in (1, 0))
    assert late(*images)["total"] == never(*images)["total"] and late(*images)["missing_contrast"] > 0.1
    terms = late(*images, progress=0.5)
    assert terms["total"] > never(*images)["total"] + terms["missing_contrast"]


def test_edge_gain_wants_longer_edges():
    a, b = waves()[1][2:3], torch.full((1, 1, 64, 64), 0.5, dtype=torch.float64)
    loss = lambda image: FusionLoss(gradient="vector", edge_gain=1.2)(image, a, b)["gradient"]  # noqa: E731
    assert loss(0.5 + 1.2 * (a - 0.5)).item() == pytest.approx(1e-3, rel=1e-6) and loss(a) > 0.01


def test_exposure_is_the_metric():
    fused, a, b = waves()
    terms = FusionLoss(0, intensity_weight=0, exposure_weight=2)(fused, a, b)
    expected = METRICS["MEFSSIMl"](255 * fused, 255 * a, 255 * b).mean()
    assert terms["exposure"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert terms["total"].item() == pytest.approx(2 - 2 * expected.item(), rel=1e-12)


@pytest.mark.parametrize("gradient, intensity", zip(["magnitude", "vector"] * 2, sorted(INTENSITIES)))
def test_a_batch_is_the_mean_of_its_images(gradient, intensity):
    """So neither train.accumulate nor the number of processes changes a training."""
    weights = dict(vif_weight=0.5, contrast_weight=1, exposure_weight=1, target_edges=int(gradient == "vector"))
    criterion = FusionLoss(1.0, intensity=intensity, gradient=gradient, **weights)
    batch = [*waves(), torch.cat([night(seed, (64, 64))[3] for seed in range(4)])]
    terms, slope = backward(criterion, batch)
    for size in (1, 2):
        parts = [backward(criterion, part) for part in zip(*(images.split(size) for images in batch))]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(dim=0), terms, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]) / len(parts), slope, rtol=1e-9, atol=1e-12)


def test_visual_information_of_equal_images():
    """The ratio was once that of the sums over the batch; for equal images that is the same, value and gradient."""
    images = [x[2:3].repeat(4, 1, 1, 1) for x in waves()]
    terms, slope = backward(FusionLoss(0, intensity_weight=0, vif_weight=1), images)
    assert terms[0].item() == pytest.approx(4.0669798979, rel=1e-9)
    assert slope.sum(dim=0).norm().item() == pytest.approx(0.26637546177, rel=1e-9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "fuse"}, "loss.name 'fuse' is not known; did you mean 'fusion'?"),
        ({"grad": 3}, "loss.grad is not an option of 'fusion'; did you mean 'gradient'?"),
        ({"targets_from": 30.0}, "loss.targets_from in 'fusion' must be a share, 0 or more and under 1, not 30.0"),
        ({"contrast_weight": -1}, "loss.contrast_weight in 'fusion' must be 0 or more, not -1"),
        ({"target_edges": 1}, "loss.edge_gain and loss.target_edges need loss.gradient=vector"),
        ({"intensity": "dark"}, "loss.intensity in 'fusion' must be one of max, mean, sharper, exposed, not 'dark'"),
    ],
)
def test_wrong_options_of_a_loss_are_named(options, message):
    with pytest.raises(InputError) as error:
        build_loss(options)
    assert str(error.value).startswith(message)


class Box:
    def __init__(
        self,
        width: int = 32,
        scale: float = 1.0,
        grid: tuple[int, int] = (288, 384),
        without: tuple[str, ...] = (),
        deep: "bool" = False,
        rate: float | None = 0.5,
        mode: Literal["a", "b"] = "a",
        free=None,
        **further,
    ):
        self.options = {key: value for key, value in locals().items() if key not in ("self", "further")}


@pytest.mark.parametrize(
    "key, right, wrong, wanted",
    [
        ("width", [7, -1], ["wide", 7.0, True, None, 2**31, [7]], "int"),
        ("scale", [7, 0.5, 2**40], ["wide", False, None, float("nan")], "float"),
        ("grid", [[1, 2], (3, 4)], [[1], [1, 2, 3], 1, "12", None], "tuple[int, int]"),
        ("without", [[], ["a", "b", "c"]], ["a", None], "tuple[str, ...]"),
        ("deep", [True], [1, "yes", None], "bool"),
        ("rate", [None, 1, 0.25], ["fast", True, [1.0]], "float"),
        ("mode", ["b"], ["c", 1], "one of a, b"),
        ("free", [None, 3, "word", [True], {"a": 1}], [], ""),
    ],
)
def test_the_kinds_of_options(key, right, wrong, wanted):
    boxes = Registry("net")
    boxes.register("box")(Box)
    for value in right:
        assert boxes.build("box", **{key: value}).options == boxes.defaults("box") | {key: value}
    for value in wrong:
        with pytest.raises(InputError) as error:
            boxes.build("box", **{key: value})
        assert str(error.value) == f"net.{key} in 'box' must be {wanted}, not {value!r}"
    with pytest.raises(InputError, match="net.further is not an option of 'box'"):
        boxes.build("box", further=1)
    with pytest.raises(ValueError, match="net.name 'box' is taken"):
        boxes.register("box")(Box)
