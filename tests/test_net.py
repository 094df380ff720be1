"""Networks: exact against the published numbers and the literal form, and sound in use."""

import json
import shutil

import numpy as np
import pytest
import torch

from net import NETWORKS, build_model, load_model, prepare, restormer
from net.checkpoint import save_checkpoint
from net.published import MODULES, our_name, translate
from tests.literal import LiteralFILM
from utils.errors import InputError
from utils.guides.text import pad_texts

SMALL = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=2, token_grid=(8, 12))


@pytest.fixture(scope="module")
def reference(shared):
    return np.load(shared / "reference" / "film_forward.npz")


def case(reference, k: int, dtype=torch.float32) -> list[torch.Tensor]:
    return [torch.from_numpy(reference[f"case{k}_{key}"]).to(dtype) for key in ("imageA", "imageB", "text")]


def show(what: str, ours: torch.Tensor, expected: np.ndarray) -> None:
    """For `pytest -rP -k published`."""
    print(f"network, {what}: largest difference {np.abs(ours.numpy() - expected).max():.1e}")


@pytest.mark.parametrize("mode", ["no gradients", "gradients", "checkpointing", "tile"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_published_layout_gives_published_numbers(shared, reference, k, mode):
    model = load_model(shared / "reference" / "film_official_layout.pth")
    prepare(model, tile=7 if mode == "tile" else None, checkpointing=mode == "checkpointing")
    with torch.set_grad_enabled(mode in ("gradients", "checkpointing")):
        fused = model(*case(reference, k)).detach()
    show(f"float32, case {k}", fused, reference[f"case{k}_fused"])
    torch.testing.assert_close(fused, torch.from_numpy(reference[f"case{k}_fused"]), atol=1e-4, rtol=0)


def test_published_numbers_in_float64(shared, reference):
    model = load_model(shared / "reference" / "film_official_layout.pth").double()
    with torch.no_grad():
        fused = model(*case(reference, 0, torch.float64))
    show("float64, case 0", fused, reference["case0_fused_float64"])
    torch.testing.assert_close(fused, torch.from_numpy(reference["case0_fused_float64"]), atol=1e-6, rtol=0)


def test_every_published_name_has_one_of_ours(shared):
    published = json.loads((shared / "reference" / "film_official_keys.json").read_text())
    ours = {name: tensor.numel() for name, tensor in build_model("film").state_dict().items()}
    assert {our_name(name): int(np.prod(shape)) for name, shape in published} == ours
    assert len(published) == len(ours) == 189
    assert sum(ours.values()) == 2_070_235
    assert len(set(MODULES.values())) == len(MODULES)


def test_literal_form_agrees():
    """Without the shared data: the literal network with random weights, against ours, in float64."""
    literal = LiteralFILM().double()
    model = build_model("film").double()
    model.load_state_dict(translate(literal.state_dict()))
    a, b, text = torch.rand(2, 1, 33, 47).double(), torch.rand(2, 1, 33, 47).double(), torch.randn(2, 6, 768).double()
    with torch.no_grad():
        torch.testing.assert_close(model(a, b, text), literal(a, b, text), atol=1e-10, rtol=0)


def test_gradients_agree_with_the_literal_form():
    """Value projection, attention sums and feed-forward groups are rewritten; their gradients are the same."""
    literal = LiteralFILM().double()
    models = [build_model("film").double() for _ in range(2)]
    a, b = torch.rand(2, 2, 1, 20, 24).double()
    text = torch.randn(2, 4, 768).double()
    literal(a, b, text).square().sum().backward()
    expected = translate({name: parameter.grad for name, parameter in literal.named_parameters()})
    for model, checkpointing in zip(models, (False, True)):
        model.load_state_dict(translate(literal.state_dict()))
        prepare(model, checkpointing=checkpointing)
        model(a, b, text).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-10, rtol=1e-6, msg=name)


@pytest.mark.parametrize("size", [(33, 47), (64, 20), (1, 90)])
@pytest.mark.parametrize("tile", [1, 5, 16, 100])
def test_tiles_do_not_change_the_result(size, tile):
    model = build_model("film", **SMALL).double()
    a, b, text = torch.rand(1, 1, *size).double(), torch.rand(1, 1, *size).double(), torch.randn(1, 3, 12).double()
    with torch.no_grad():
        whole = model(a, b, text)  # smaller than a strip of the cache
        prepare(model, tile=tile)
        torch.testing.assert_close(model(a, b, text), whole, atol=1e-10, rtol=0)


def test_tiles_bound_the_width_of_what_is_whole(monkeypatch):
    """With a tile, no map inside a block is larger than a strip of it."""
    model, sizes = build_model("film", **SMALL), []
    prepare(model, tile=8)
    plain = restormer.depthwise
    monkeypatch.setattr(restormer, "depthwise", lambda x, weight: sizes.append(x.shape[2]) or plain(x, weight))
    with torch.no_grad():
        model(*torch.rand(2, 1, 1, 50, 20), torch.randn(1, 3, 12))
    assert max(sizes) == 8 + 2 * 2


def test_bf16_runs_and_stays_near():
    model = build_model("film", **SMALL)
    a, b, text = *torch.rand(2, 1, 1, 50, 20), torch.randn(1, 3, 12)
    exact = model(a, b, text).detach()
    prepare(model, precision="bf16")
    near = model(a, b, text)
    near.mean().backward()
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(near, exact, atol=4e-3, rtol=0)  # an 8-bit level


def test_an_autocast_around_a_network_works():
    model = build_model("film", **SMALL)
    inputs = *torch.rand(2, 1, 1, 50, 20), torch.randn(1, 3, 12)
    exact = model(*inputs).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(*inputs).float(), exact, atol=2e-2, rtol=0)


def test_a_dead_channel_leaves_gradients_finite():
    block = restormer.RestormerBlock(8, heads=2)
    with torch.no_grad():
        block.attention.qkv.weight[8] = 0  # the first channel of k is 0 everywhere
    block(torch.randn(1, 8, 12, 12)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same():
    block, x = restormer.RestormerBlock(8, heads=2), torch.randn(2, 8, 16, 16)
    plain = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
    prepare(block, compile=True)
    compiled = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


def test_literal_oracle_is_the_published_network(shared, reference):
    checkpoint = torch.load(shared / "reference" / "film_official_layout.pth", weights_only=True)["model"]
    literal = LiteralFILM()
    literal.load_state_dict({name.removeprefix("module."): tensor for name, tensor in checkpoint.items()})
    with torch.no_grad():
        fused = literal(*case(reference, 0))
    torch.testing.assert_close(fused, torch.from_numpy(reference["case0_fused"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (45, 22)])
def test_any_size(name, size):
    options = SMALL if name.startswith("film") else {}
    a, b = torch.rand(2, 2, 1, *size)
    with torch.no_grad():
        model = build_model(name, **options).eval()
        guides = {"text": torch.randn(2, 3, 12), "text_mask": None, "clip": torch.randn(2, 2, 512)}
        fused = model(a, b, *(guides[key] for key in model.inputs))
    assert fused.shape == a.shape and fused.dtype == a.dtype
    assert fused.min() >= 0 and fused.max() <= 1


def test_result_does_not_depend_on_companions():
    model = build_model("film", **SMALL).eval()
    texts = [torch.randn(length, 12) for length in (3, 11, 7)]
    a, b = torch.rand(2, 3, 1, 20, 26)
    padded, mask = pad_texts(texts)
    padded[~mask] = 100.0  # what stands in the padding must not matter
    with torch.no_grad():
        together = model(a, b, padded, mask)
        for i, text in enumerate(texts):
            alone = model(a[i : i + 1], b[i : i + 1], text[None])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_text_guides_the_result():
    model = build_model("film", **SMALL)
    a, b = torch.rand(2, 1, 1, 20, 26)
    with torch.no_grad():
        assert not torch.equal(model(a, b, torch.randn(1, 4, 12)), model(a, b, torch.randn(1, 4, 12)))


@pytest.mark.parametrize("name", ["film", "film_blend"])
def test_gradients_reach_every_parameter(name):
    model = build_model(name, **SMALL)
    a, b = torch.rand(2, 2, 1, 20, 26)
    text, mask = pad_texts([torch.randn(3, 12), torch.randn(5, 12)])
    model(a, b, text, mask).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


def test_overfits_one_batch():
    model = build_model("film", **SMALL)
    a, b = torch.rand(2, 2, 1, 16, 16)
    text, target = torch.randn(2, 3, 12), torch.maximum(a, b)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(100):
        loss = (model(a, b, text) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-10:]) < 0.25 * losses[0]


def test_blend_starts_from_the_mean():
    model = build_model("film_blend", **SMALL)
    torch.nn.init.zeros_(model.decoder.output.weight)
    torch.nn.init.zeros_(model.decoder.output.bias)
    a, b = torch.rand(2, 1, 1, 20, 26)
    with torch.no_grad():
        torch.testing.assert_close(model(a, b, torch.randn(1, 4, 12)), (a + b) / 2, atol=2 / 512, rtol=0)


def test_baselines():
    a, b = torch.rand(2, 1, 1, 37, 50)
    assert torch.equal(build_model("mean")(a, b), (a + b) / 2)
    assert torch.equal(build_model("max")(a, b), torch.maximum(a, b))
    pyramid = build_model("laplacian")
    torch.testing.assert_close(pyramid(a, a), a, atol=1e-5, rtol=0)  # perfect reconstruction
    sharp = torch.zeros(1, 1, 64, 64)
    sharp[..., ::2] = 1.0
    blurred = torch.full_like(sharp, 0.5)
    torch.testing.assert_close(pyramid(sharp, blurred), sharp, atol=0.1, rtol=0)  # takes the detail


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("flim", {}, "did you mean 'film'"),
        ("film", {"chanels": 8}, "did you mean 'channels'"),
        ("film", {"channels": "many"}, "net.channels must be like 32"),
        ("film", {"channels": 0}, "at least 1"),
        ("film", {"channels": 10}, "multiples of net.heads"),
        ("film", {"token_grid": [3, 5]}, "a multiple of net.hidden_dim"),
        ("film", {"token_grid": [288]}, "must be like (288, 384)"),
        ("mean", {"channels": 3}, "not an option of 'mean'"),
        ("laplacian", {"levels": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        build_model(name, **options)


def test_checkpoint_round_trip(tmp_path):
    model = build_model("film", **SMALL)
    text = {"encoder": "auto", "path": None, "name": "x", "default": torch.randn(3, 12)}
    save_checkpoint(tmp_path / "x.pth", {"net": model.config, "model": model.state_dict(), "text": text})
    loaded = load_model(tmp_path / "x.pth")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.provenance.guides["text"].default, text["default"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_bad_checkpoints_are_refused(tmp_path, shared):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    whole = (shared / "reference" / "film_official_layout.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": 1}, tmp_path / "other.pth")
    published = torch.load(shared / "reference" / "film_official_layout.pth", weights_only=True)
    torch.save({"model": published["model"] | {"module.extra.weight": torch.ones(1)}}, tmp_path / "extra.pth")
    short = dict(published["model"])
    short.pop("module.conv2.bias")
    torch.save({"model": short}, tmp_path / "short.pth")
    for name in ("missing", "evil", "noise", "cut", "other", "extra", "short"):
        with pytest.raises(InputError):
            load_model(tmp_path / f"{name}.pth")
    assert not (tmp_path / "mark").exists()
