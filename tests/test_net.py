"""Networks: exact against the published numbers and the literal form, and sound in use."""

import json
import shutil
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from net import NETWORKS, FusionNetwork, build_model, compute, configure_compute, load_model, restormer
from net.film import MeanText, TextGuidance
from net.published import our_name, translate
from tests.examples import VARIANTS, in_place
from tests.literal import LiteralFILM
from utils.data.features import collate_features, features_of
from utils.errors import InputError

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=2, token_grid=(8, 12))
# of any network, as far as it has such an option
SIZES = SMALL | dict(clip_dim=12, instruction_dim=12, blocks=1, instructions=2, editor_channels=4, editor_blocks=2)
FEATURES = {
    "text": [(3, 12), (11, 12), (7, 12)],
    "clip": [(2, 12)] * 3,
    "instruction": [(4, 12), (1, 12), (6, 12)],
}  # shapes by guide, for three pairs
ABLATED = {f"film_blend, {kind}": ("film_blend", {"guidance": kind}) for kind in ("mean", "none")}
NAMES = sorted({*NETWORKS, *VARIANTS, *ABLATED})


@pytest.fixture(scope="module", autouse=True)
def variants(tmp_path_factory):
    """The variants of docs/extending.md are networks here."""
    with in_place(tmp_path_factory.mktemp("page"), *VARIANTS):
        yield


def small(name: str) -> FusionNetwork:
    """A network of small sizes, in eval mode; weights that start at 0 are drawn, as they would hide what is before."""
    name, options = ABLATED.get(name, (name, {}))
    known = NETWORKS.defaults(name)
    model = build_model(name, **{key: size for key, size in SIZES.items() if key in known}, **options).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def example(model: FusionNetwork, size: tuple[int, int], n: int = 3) -> dict[str, torch.Tensor]:
    """A batch of n pairs, as `FusionNetwork.forward_args` takes it."""
    batch = dict(zip(("image_a", "image_b"), torch.rand(2, n, 1, *size)))
    for feature in features_of(model.inputs):
        batch |= collate_features(feature.name, [torch.randn(shape) for shape in FEATURES[feature.name][:n]])
    return batch


def doubled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.fixture(scope="module")
def vectors(reference):
    return np.load(reference / "film_forward.npz")


def case(vectors, k: int, dtype=torch.float32) -> list[torch.Tensor]:
    return [torch.from_numpy(vectors[f"case{k}_{key}"]).to(dtype) for key in ("imageA", "imageB", "text")]


def show(what: str, ours: torch.Tensor, expected: np.ndarray) -> None:
    """For `pytest -rP -k published`."""
    print(f"network, {what}: largest difference {np.abs(ours.numpy() - expected).max():.1e}")


@pytest.mark.parametrize("k, mode", [(0, "no gradients"), (1, "gradients"), (2, "checkpointing"), (1, "tile")])
def test_published_layout_gives_published_numbers(published, vectors, k, mode):
    model = load_model(published)
    configure_compute(tile=7 if mode == "tile" else None, checkpointing=mode == "checkpointing")
    with torch.set_grad_enabled(mode in ("gradients", "checkpointing")):
        fused = model(*case(vectors, k)).detach()
    show(f"float32, case {k}", fused, vectors[f"case{k}_fused"])
    torch.testing.assert_close(fused, torch.from_numpy(vectors[f"case{k}_fused"]), atol=1e-4, rtol=0)


def test_published_numbers_in_float64(published, vectors):
    model = load_model(published).double()
    with torch.no_grad():
        fused = model(*case(vectors, 0, torch.float64))
    show("float64, case 0", fused, vectors["case0_fused_float64"])
    torch.testing.assert_close(fused, torch.from_numpy(vectors["case0_fused_float64"]), atol=1e-6, rtol=0)


def test_every_published_name_has_one_of_ours(reference):
    published = json.loads((reference / "film_official_keys.json").read_text())
    ours = {name: tensor.numel() for name, tensor in build_model("film").state_dict().items()}
    assert {our_name(name): int(np.prod(shape)) for name, shape in published} == ours
    assert len(published) == len(ours) == 189
    assert sum(ours.values()) == 2_070_235


@pytest.mark.slow
def test_results_and_gradients_agree_with_the_literal_form():
    """Value projection, attention sums and feed-forward groups are rewritten."""
    literal = LiteralFILM().double()
    models = [build_model("film").double() for _ in range(2)]
    a, b = torch.rand(2, 2, 1, 20, 24).double()
    text = torch.randn(2, 4, 768).double()
    fused = literal(a, b, text)
    fused.square().sum().backward()
    expected = translate({name: parameter.grad for name, parameter in literal.named_parameters()})
    for model, checkpointing in zip(models, (False, True)):
        model.load_state_dict(translate(literal.state_dict()))
        configure_compute(checkpointing=checkpointing)
        ours = model(a, b, text)
        torch.testing.assert_close(ours, fused, atol=1e-10, rtol=0)
        ours.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-10, rtol=1e-6, msg=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(33, 23), (1, 40)])
def test_tiles_do_not_change_the_result(name, size):
    model = small(name).double()
    inputs = model.forward_args(doubled(example(model, size, n=1)))
    whole = model(*inputs).detach()  # with gradients nothing is cut
    assert whole.shape == (1, 1, *size) and whole.dtype == torch.float64 and whole.min() >= 0 and whole.max() <= 1
    for tile in (None, 1, 5, 100):
        configure_compute(tile=tile)
        with torch.no_grad():
            torch.testing.assert_close(model(*inputs), whole, atol=1e-10, rtol=0, msg=f"tile={tile}")


def test_half_repeats_the_last_row_of_odd_images():
    model = small("film_blend_half").double()
    batch = doubled(example(model, (33, 47), n=1))
    padded = batch | {key: F.pad(batch[key], (0, 1, 0, 1), mode="replicate") for key in ("image_a", "image_b")}
    with torch.no_grad():
        odd, even = (model(*model.forward_args(each)) for each in (batch, padded))
    torch.testing.assert_close(odd, even[..., :33, :47], atol=1e-12, rtol=0)


def test_no_map_of_both_sources_is_ever_whole():
    """Memory at any size: with a tile, the largest map that is made has C channels."""
    (model, height, width), sizes = (small("film"), 120, 20), []
    configure_compute(tile=8)

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            sizes.extend(x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    inputs = model.forward_args(example(model, (height, width), n=1))
    with torch.no_grad(), Record():
        model(*inputs)
    assert max(sizes) == 4 * SMALL["channels"] * height * width


@pytest.mark.parametrize("name", NAMES)
def test_bf16_runs_and_stays_near(name):
    model = small(name)
    inputs = model.forward_args(example(model, (50, 20), n=1))
    exact = model(*inputs).detach()
    configure_compute(precision="bf16")
    near = model(*inputs)
    assert near.dtype == torch.float32
    assert torch.equal(near, exact) != any(
        isinstance(part, (restormer.RestormerBlock, TextGuidance)) for part in model.modules()
    )
    torch.testing.assert_close(near, exact, atol=4e-3, rtol=0)  # an 8-bit level
    if near.requires_grad:
        near.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


def test_a_dead_channel_leaves_gradients_finite():
    block = restormer.RestormerBlock(8, heads=2)
    with torch.no_grad():
        block.attention.qkv.weight[8] = 0  # the first channel of k is 0 everywhere
    block(torch.randn(1, 8, 12, 12)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same():
    block, x = restormer.RestormerBlock(8, heads=2), torch.randn(2, 8, 16, 16)
    plain = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
    with torch.no_grad():
        fused = block(x)
        configure_compute(compile=True, tile=6)
        torch.testing.assert_close(block(x), fused, atol=1e-5, rtol=1e-4)
    compiled = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["as on a GPU", "in strips"])
def test_blocks_are_compiled_once_for_images_of_any_size(whole, monkeypatch):
    counter = CompileCounter()
    compute.compiled.cache_clear()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    for module in (restormer, compute):
        monkeypatch.setattr(module, "is_whole", lambda *_: whole)
    blocks, counts = [restormer.RestormerBlock(8, heads=2) for _ in range(2)], []
    with torch.no_grad():
        for height, width in [(70, 40), (50, 30), (61, 47), (33, 90), (100, 29)]:
            for block in blocks:
                x = torch.randn(1, 8, height, width)
                configure_compute(tile=30)
                plain = block(x)
                configure_compute(tile=30, compile=True)
                torch.testing.assert_close(block(x), plain)
            counts.append(counter.frame_count)
    compute.compiled.cache_clear()
    assert 0 < counts[-1] == counts[2] <= 4, counts  # the first, the last and the inner strips differ


def test_without_a_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="compile=true needs a C"):
        configure_compute(compile=True)


@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_companions(name):
    model = small(name)
    batch = example(model, (20, 26))
    alone = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    if "text" in model.inputs:
        mask = batch["text_mask"]
        for i, single in enumerate(alone):
            single |= {"text": batch["text"][i : i + 1, mask[i]], "text_mask": None}
        batch["text"] = batch["text"].masked_fill(~mask[..., None], 100.0)  # what the padding holds must not matter
    with torch.no_grad():
        together = model(*model.forward_args(batch))
        for i, single in enumerate(alone):
            torch.testing.assert_close(together[i : i + 1], model(*model.forward_args(single)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = small(name).train()
    fused = model(*model.forward_args(example(model, (20, 26), n=2)))
    assert fused.requires_grad == any(True for _ in model.parameters())
    if fused.requires_grad:
        fused.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the fusion of film_instructed is trained before
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name


def test_mean_text_is_a_vector_of_the_text_alone():
    guidance, text, mask = MeanText(12, heads=2), torch.randn(2, 5, 12), torch.arange(5) < torch.tensor([[5], [3]])
    found = guidance(text, torch.randn(2, 7, 12), mask)
    for i, length in enumerate((5, 3)):
        vector = guidance.out_proj.weight @ text[i, :length].mean(dim=0)
        torch.testing.assert_close(found[i, 0], vector / vector.abs().sum())


def test_without_a_gate_a_stage_is_that_of_a_gate_that_adds_nothing():
    """Text-guided weights whose gate is 0 everywhere, in a network that takes no text."""
    whole = small("film")
    plain = build_model("film", **SMALL, guidance="none").eval()
    state = whole.state_dict()
    for stage in whole.stages:
        for branch in (stage.a, stage.b):
            torch.nn.init.zeros_(branch.conv_gate.weight)
            torch.nn.init.zeros_(branch.conv_gate.bias)
    for name, tensor in plain.state_dict().items():
        halves = state[name].chunk(2, dim=1) if name.endswith("conv_out.weight") else [state[name]]
        tensor.copy_(sum(halves))
    a, b = torch.rand(2, 1, 1, 20, 26)
    with torch.no_grad():
        torch.testing.assert_close(plain(a, b), whole(a, b, torch.randn(1, 4, 12)), atol=1e-6, rtol=0)
    assert plain.inputs == () and plain.label == "FILM, no gate"
    with pytest.raises(InputError, match="net.guidance=none is for networks that read no instructions"):
        build_model("film_instructed", **SMALL, guidance="none")


def test_the_pyramid_takes_the_detail():
    sharp = torch.zeros(1, 1, 64, 64)
    sharp[..., ::2] = 1.0
    blurred = torch.full_like(sharp, 0.5)
    torch.testing.assert_close(build_model("laplacian")(sharp, blurred), sharp, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["mean", "max", "laplacian", "saliency", "mertens", "focus"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (70, 4)])
def test_rules_on_any_size_and_batch(name, size):
    rule = build_model(name).eval()
    a, b = torch.rand(2, 3, 1, *size)
    with torch.inference_mode():
        fused = rule(a, b)
        assert fused.shape == a.shape and fused.dtype == a.dtype and fused.min() >= 0 and fused.max() <= 1
        alone = torch.cat([rule(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(fused, alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(rule(a, a), a, atol=1e-5, rtol=0)
        torch.testing.assert_close(rule(b, a), fused, atol=1e-5, rtol=0)  # no source is preferred
        black, white = torch.zeros_like(a), torch.ones_like(a)
        assert torch.equal(rule(black, black), black)
        torch.testing.assert_close(rule(white, white), white, atol=1e-6, rtol=0)


def test_saliency_is_the_rule_pixel_by_pixel():
    a, b = torch.full((60, 80), 0.1).double(), 0.3 + 0.04 * torch.rand(60, 80).double()
    b[50:, ::2] += 0.3
    a[20:30, 30:40], b[20:30, 30:40] = 0.9, 0.2  # a warm spot, dark in the visible image
    expected = torch.from_numpy(two_scale(a.numpy(), b.numpy(), 35))
    torch.testing.assert_close(build_model("saliency")(a[None, None], b[None, None])[0, 0], expected)


def two_scale(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    half, (h, w) = window // 2, a.shape

    def base(x):
        mean = np.empty_like(x)
        for i, j in np.ndindex(h, w):
            mean[i, j] = x[max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1].mean()
        return mean

    def saliency(x):
        levels = np.rint(255 * x)
        distance = sum(share * np.abs(levels - level) for level, share in zip(*np.unique(levels, return_counts=True)))
        return (distance - distance.min()) / np.ptp(distance)

    weight = 0.5 + (saliency(a) - saliency(b)) / 2
    detail_a, detail_b = a - base(a), b - base(b)
    detail = np.where(np.abs(detail_a) >= np.abs(detail_b), detail_a, detail_b)
    return (weight * base(a) + (1 - weight) * base(b) + detail).clip(0, 1)


def test_mertens_is_that_of_opencv():
    rng = np.random.default_rng(0)
    over = cv2.GaussianBlur(rng.uniform(-200, 500, (60, 90)), (0, 0), 6).clip(0, 255)
    over = cv2.normalize(over, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    under = (over // 3).astype(np.uint8)
    expected = cv2.createMergeMertens(1, 0, 1).process([over, under]).clip(0, 1)
    a, b = (torch.from_numpy(image / 255)[None, None] for image in (over, under))
    fused = build_model("mertens")(a, b)
    np.testing.assert_allclose(fused[0, 0], expected, atol=1e-5)
    assert (fused - (a + b) / 2).abs().max() > 0.1 and fused.dtype == torch.float64


def test_focus_takes_the_sharp_halves():
    """Two images, each blurred in another half: away from the seam the sharp one is taken, exactly."""
    sharp = np.random.default_rng(0).uniform(0, 1, (80, 100)).astype(np.float32)
    sharp = cv2.GaussianBlur(sharp, (0, 0), 0.7)
    near, far = sharp.copy(), sharp.copy()
    near[:, 50:], far[:, :50] = (cv2.GaussianBlur(sharp, (0, 0), 3)[:, half] for half in (np.s_[50:], np.s_[:50]))
    near, far, sharp = (torch.from_numpy(image)[None, None] for image in (near, far, sharp))
    fused = build_model("focus")(near, far)
    assert torch.equal(fused[..., :40], sharp[..., :40]) and torch.equal(fused[..., 60:], sharp[..., 60:])
    assert ((fused == near) | (fused == far)).all()  # each pixel is of one of them
    flat = torch.full_like(near, 0.5)
    flat[..., 30:34, 60:64] = torch.rand(4, 4)  # a speck that its neighbours outvote
    assert torch.equal(build_model("focus")(sharp, flat), sharp)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("flim", {}, "did you mean 'film'"),
        ("film", {"chanels": 8}, "did you mean 'channels'"),
        ("film", {"channels": 0}, "at least 1"),
        ("film", {"channels": 10}, "multiples of net.heads"),
        ("film", {"token_grid": [3, 5]}, "a multiple of net.hidden_dim"),
        ("mgfusion", {"without": ["cfi"]}, "cii and cff only"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(InputError, match=words):
        build_model(name, **options)
