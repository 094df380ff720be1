"""Networks as .onnx compute without this code what they compute with it; weights carry what they were tested to do."""

import json
import logging
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from net import build_model, load_model
from net.base import FusionNetwork
from net.checkpoint import save_weights
from net.film import nearest_index
from net.film_blend import FILMBlend
from tests.test_readme import TEXTS, blocks
from tests.test_text import bert  # noqa: F401
from tests.toy import ROOT, script
from utils.config import load_config
from utils.errors import InputError
from utils.export import Program, text_feature
from utils.guides.text import TextEncoder
from utils.provenance import GuideRecord, Provenance

SIZES = [(1, 4, 5), (2, 37, 53), (1, 64, 96), (3, 90, 21)]  # N, H, W
TINY = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 12))
OPTIONS = {
    "film": TINY,
    "film_instructed": TINY | dict(instruction_dim=12, instructions=2, editor_channels=4, editor_blocks=2),
    "mgfusion": dict(clip_dim=12, channels=8, heads=2, blocks=1),
}


def save(path, name: str, encoder: str | None = None) -> str:
    """A network of tiny sizes as a checkpoint, with default features; it always obeys its instructions, one in part."""
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS.get(name, {}))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    if name == "film_instructed":
        model.reader.output.weight.data.zero_()
        model.reader.output.bias.data = torch.tensor([10.0, 0.1])
    options = {"encoder": "auto", "path": encoder}
    guides = {
        kind: GuideRecord(f"auto:{kind}", "1234", options, torch.randn(size, 12).half().float() if size else None)
        for kind, size in {"text": 6, "clip": 2, "instruction": 0}.items()
        if kind in model.inputs
    }
    save_weights(path, model.checkpoint(Provenance(guides, commit="abc")))
    return f"ckpt={path}"


@pytest.fixture(autouse=True)
def untold(monkeypatch) -> None:
    """PyTorch tells pytest of every step of a trace, which takes a third of the time."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


def draw(n: int, height: int, width: int) -> list[torch.Tensor]:
    return list(torch.rand(2, n, 1, height, width))


@torch.inference_mode()
def fuse(model: FusionNetwork, *inputs: torch.Tensor | None) -> np.ndarray:
    return model(*inputs).numpy()


@pytest.mark.slow
def test_an_onnx_obeys_the_instruction_that_is_built_in(tmp_path, bert, monkeypatch):  # noqa: F811
    """Under the default text; and the example of docs/testing.md runs with it."""
    ckpt, path = save(tmp_path / "w.safetensors", "film_instructed", bert), tmp_path / "to" / "model.onnx"
    output = script("utils.export", path, ckpt, "--instruct", "a warm car", f"text.path={bert}")
    assert "inputs: image_a, image_b; built in: text and instruction" in output and "largest difference from" in output
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    content = path.read_bytes()
    assert not any(str(place).encode() in content for place in (ROOT, tmp_path, sys.prefix))

    model, session = load_model(tmp_path / "w.safetensors"), onnxruntime.InferenceSession(path)
    text = model.provenance.guides["text"].default[None]
    instruction = torch.from_numpy(TextEncoder("auto", bert).encode(["a warm car"])[0])[None]
    for n, *size in SIZES:
        a, b = draw(n, *size)
        found = session.run(None, {"image_a": a.numpy(), "image_b": b.numpy()})[0]
        expected = fuse(model, a, b, text.expand(n, -1, -1), None, instruction.expand(n, -1, -1))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(expected - fuse(model, a, b, text.expand(n, -1, -1))).max() > 0.01  # it does something

    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["network"])["name"] == "film_instructed" and metadata["commit"] == "abc"
    assert (metadata["text"], metadata["instruction"]) == ("the default text", "a warm car")
    assert "test.stretch" in metadata["use"]

    monkeypatch.chdir(path.parent)
    images = [np.random.default_rng(i).integers(0, 256, (45, 53), np.uint8) for i in range(2)]
    for name, image in zip(("ir.png", "vis.png"), images):
        cv2.imwrite(name, image)
    (example,) = (block for block in blocks(TEXTS["docs/testing.md"], "python") if "onnxruntime" in block)
    exec(compile(example, "docs/testing.md", "exec"), {})
    a, b = (torch.from_numpy(image)[None, None] / 255 for image in images)
    expected = (fuse(model, a, b, text, None, instruction)[0, 0] * 255).round()
    assert np.abs(cv2.imread("fused.png", cv2.IMREAD_GRAYSCALE) - expected).max() <= 1  # a half goes either way


@pytest.mark.slow
def test_an_onnx_takes_clip_vectors(tmp_path):
    path = tmp_path / "model.onnx"
    script("utils.export", path, save(tmp_path / "w.safetensors", "mgfusion"))
    model, session = load_model(tmp_path / "w.safetensors"), onnxruntime.InferenceSession(path)
    for n, *size in SIZES:
        inputs = dict(zip(("image_a", "image_b", "clip"), (*draw(n, *size), torch.randn(n, 2, 12))))
        found = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(found, fuse(model, *inputs.values()), atol=1e-5)


def test_a_text_that_is_built_in_is_as_one_that_is_given(tmp_path, bert):  # noqa: F811
    """One from the command line, or the default text."""
    save(tmp_path / "w.safetensors", "film", bert)
    model, config = load_model(tmp_path / "w.safetensors"), load_config(None, [f"text.path={bert}"])
    text, given = text_feature(model, config, "the dark road"), TextEncoder("auto", bert).encode(["the dark road"])[0]
    program = Program(model, text)
    assert torch.equal(text[0], torch.from_numpy(given)) and program.names == ["image_a", "image_b"]
    for n, *size in SIZES:
        images = draw(n, *size)
        np.testing.assert_allclose(fuse(program, *images), fuse(model, *images, text.expand(n, -1, -1)), atol=1e-6)
    default = model.provenance.guides["text"].default
    assert torch.equal(text_feature(model, config, None)[0], default)
    config.text.use = "default"
    with pytest.raises(InputError, match="or text.use is default or none; leave out the text"):
        text_feature(model, config, "a road")
    del model.provenance.guides["text"]
    config.text.use = "own"
    with pytest.raises(InputError, match="has no default text; give one with --text"):
        text_feature(model, config, None)


def test_a_network_that_reads_instructions_is_the_plain_fusion_without_one(tmp_path, bert):  # noqa: F811
    ckpt, path = save(tmp_path / "w.safetensors", "film_instructed", bert), tmp_path / "model.onnx"
    model, images, text = load_model(tmp_path / "w.safetensors"), draw(1, 20, 30), torch.randn(1, 4, 12)
    assert np.array_equal(fuse(Program(model, text), *images), fuse(FILMBlend.forward, model, *images, text))
    model.reader.output.bias.data.fill_(-10)
    save_weights(tmp_path / "w.safetensors", model.checkpoint())
    output = script("utils.export", path, ckpt, "--instruct", "a car", f"text.path={bert}", code=1)
    assert "asks for nothing that FILM instructed knows" in output and not path.exists()


@pytest.mark.slow
def test_a_wrong_program_is_not_written(tmp_path, monkeypatch):
    ckpt, path = save(tmp_path / "w.safetensors", "mgfusion"), tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    plain = Program.forward
    monkeypatch.setattr(Program, "forward", lambda self, *inputs: plain(self, *inputs) + 2e-4)
    output = script("utils.export", path, ckpt, code=1)
    assert "model.onnx is not written: it differs from PyTorch by 2.0e-04 at 64 x 96 pixels" in output
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 2


def test_a_network_that_cannot_be_traced_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Program, "forward", lambda self, a, b, clip: a if a.mean() > 0.5 else b)
    output = script("utils.export", tmp_path / "m.onnx", save(tmp_path / "w.safetensors", "mgfusion"), code=1)
    assert "cannot be exported as .onnx (" in output and "Traceback" not in output
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    output = script("utils.export", "model.onnx", "ckpt=models/IVF.safetensors", code=1)
    assert "needs the packages onnx, onnxscript, onnxruntime: pip install onnx onnxscript onnxruntime" in output


def test_weights_are_tested_as_they_are_written(prepared, tmp_path):
    """In half precision: a test of the file gives the means that it carries."""
    script("train.py", *prepared, "train.epochs=1")
    weights = tmp_path / "X.safetensors"
    output = script("utils.export", weights, *prepared, f"ckpt={tmp_path}/exp/*/model/last.pth")
    measured = load_model(weights).provenance.metrics["Toy_test"]
    assert "The test result of Toy:" in output and f"measured as above: {weights}" in output
    script("test.py", *prepared, f"ckpt={weights}", "--overwrite")
    assert json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["mean"]["FILM"] == measured


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.onnx"], "say which weights: ckpt=models/IVF.safetensors"),
        (["model.pt2", "ckpt=a.pth"], "name one file to write, an .onnx or a .safetensors, not 'model.pt2'"),
        (["w.safetensors", "ckpt=a.pth", "--instruct", "a"], "--text and --instruct are built into an .onnx"),
        (["model.onnx", "ckpt=models/MGFusion_IVF.safetensors", "--instruct", "a"], "MGFusion reads no instructions"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    output = script("utils.export", *words, code=1)
    assert message in output and "Traceback" not in output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [1, 36, 384])
def test_nearest_places_are_those_of_pytorch(source):
    """At every size, as rounding could move one."""
    places = torch.arange(source, dtype=torch.float32)[None, None]
    for size in [*range(1, 800), 1080, 1280, 1920, 4096]:
        expected = F.interpolate(places, size=size, mode="nearest").flatten()
        assert torch.equal(nearest_index(source, size, "cpu"), expected.long()), size
