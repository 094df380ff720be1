"""Networks as .onnx and .pt2: what they compute without this code is what the network computes."""

import base64
import json
import logging
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from net import NETWORKS, build_model, load_model
from net.base import FusionNetwork
from net.checkpoint import save_weights
from net.film import nearest_index
from net.film_blend import FILMBlend
from net.provenance import GuideRecord, Provenance
from tests.test_readme import TEXTS, blocks
from tests.test_text import bert  # noqa: F401
from tests.toy import ROOT, script
from utils.config import load_config
from utils.errors import InputError
from utils.export import PACKAGES, Program, constant_features
from utils.guides.text import TextEncoder

SIZES = [(1, 4, 5), (2, 37, 53), (1, 64, 96), (3, 90, 21)]  # N, H, W
TINY = dict(text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=(8, 12))
OPTIONS = {
    "film": TINY,
    "film_blend_half": TINY,
    "film_instructed": TINY | dict(instruction_dim=12, instructions=2, editor_channels=4, editor_blocks=2),
    "mgfusion": dict(clip_dim=12, channels=8, heads=2, blocks=1),
}


def save(path, name: str, encoder: str | None = None) -> str:
    """A network of tiny sizes as a checkpoint, with default features; it always obeys its first instruction."""
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS.get(name, {}))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    if name == "film_instructed":
        model.reader.output.weight.data.zero_()
        model.reader.output.bias.data = torch.tensor([10.0, -10.0])
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


def default_of(metadata: dict[str, str], name: str) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(metadata[f"default_{name}"]), np.float16)
    return values.reshape(json.loads(metadata[f"default_{name}_shape"])).astype(np.float32)


def test_an_onnx_obeys_the_instruction_that_is_built_in(tmp_path, bert, monkeypatch):  # noqa: F811
    """With texts of any length; and the example of docs/testing.md runs with it."""
    ckpt = save(tmp_path / "w.safetensors", "film_instructed", bert)
    (tmp_path / "to").mkdir()
    path = tmp_path / "to" / "model.onnx"
    output = script("test.py", ckpt, "--export", path, "--instruct", "a warm car", f"text.path={bert}")
    assert "inputs: image_a, image_b, text; built in: instruction" in output and "largest difference from" in output
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    content = path.read_bytes()
    assert not any(str(place).encode() in content for place in (ROOT, tmp_path, sys.prefix))

    model = load_model(tmp_path / "w.safetensors")
    instruction = torch.from_numpy(TextEncoder("auto", bert).encode(["a warm car"])[0])[None]
    session = onnxruntime.InferenceSession(path)
    for (n, *size), length in zip(SIZES, (1, 2, 9, 30)):
        a, b = draw(n, *size)
        text = torch.randn(1, length, 12)
        found = session.run(None, {"image_a": a.numpy(), "image_b": b.numpy(), "text": text.numpy()})[0]
        expected = fuse(model, a, b, text.expand(n, -1, -1), None, instruction.expand(n, -1, -1))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(expected - fuse(model, a, b, text.expand(n, -1, -1))).max() > 0.01  # it does something

    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["network"])["name"] == "film_instructed" and metadata["commit"] == "abc"
    assert metadata["built_in_instruction"] == "a warm car" and "test.stretch" in metadata["use"]
    assert json.loads(metadata["inputs"])["text"] == "(1, L, 12) float32"
    assert json.loads(metadata["guides"])["text"] == {"name": "auto:text", "revision": "1234"}
    default = model.provenance.guides["text"].default[None]
    assert np.array_equal(default_of(metadata, "text"), default.numpy())

    monkeypatch.chdir(path.parent)
    images = [np.random.default_rng(i).integers(0, 256, (45, 53), np.uint8) for i in range(2)]
    for name, image in zip(("ir.png", "vis.png"), images):
        cv2.imwrite(name, image)
    (example,) = (block for block in blocks(TEXTS["docs/testing.md"], "python") if "onnxruntime" in block)
    exec(compile(example, "docs/testing.md", "exec"), {})
    a, b = (torch.from_numpy(image)[None, None] / 255 for image in images)
    expected = (fuse(model, a, b, default, None, instruction)[0, 0] * 255).round()
    assert np.abs(cv2.imread("fused.png", cv2.IMREAD_GRAYSCALE) - expected).max() <= 1  # a half goes either way


def test_an_onnx_takes_clip_vectors(tmp_path):
    path = tmp_path / "model.onnx"
    script("test.py", save(tmp_path / "w.safetensors", "mgfusion"), "--export", path)
    model, session = load_model(tmp_path / "w.safetensors"), onnxruntime.InferenceSession(path)
    for n, *size in SIZES:
        inputs = dict(zip(("image_a", "image_b", "clip"), (*draw(n, *size), torch.randn(n, 2, 12))))
        found = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(found, fuse(model, *inputs.values()), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert np.array_equal(default_of(metadata, "clip")[0], model.provenance.guides["clip"].default)


def load_pt2(path) -> tuple[torch.nn.Module, dict[str, str]]:
    extra = {"metadata.json": ""}
    return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])


@pytest.mark.parametrize("name", ["film", "film_blend_half"])
def test_a_pt2_takes_text_of_any_length(tmp_path, name):
    path = tmp_path / "model.pt2"
    script("test.py", save(tmp_path / "w.safetensors", name), "--export", path)
    assert not any(str(place).encode() in path.read_bytes() for place in (ROOT, tmp_path, sys.prefix))
    model = load_model(tmp_path / "w.safetensors")
    program, metadata = load_pt2(path)
    for (n, *size), length in zip(SIZES, (1, 2, 9, 30)):
        a, b = draw(n, *size)
        text = torch.randn(1, length, 12)
        expected = fuse(model, a, b, text.expand(n, -1, -1))
        np.testing.assert_allclose(fuse(program, a, b, text), expected, atol=1e-5)
    assert np.array_equal(default_of(metadata, "text")[0], model.provenance.guides["text"].default)


class Simple(FusionNetwork):
    """A network that is traced at once; it reads text."""

    inputs = ("text", "text_mask")

    def __init__(self, text_dim: int = 12):
        super().__init__()
        self.share = torch.nn.Linear(text_dim, 1)

    def forward(self, image_a, image_b, text, text_mask=None):
        return torch.lerp(image_a, image_b, self.share(text.mean(dim=1)).sigmoid()[..., None, None])


class Branching(Simple):
    """What it does depends on the images."""

    def forward(self, image_a, image_b, text, text_mask=None):
        return super().forward(image_a, image_b, text) if image_a.mean() > 0.5 else image_b


class Deep(Simple):
    """Another input."""

    inputs = ("depth",)


@pytest.fixture
def simple(monkeypatch):
    """A function that saves one of the networks above, and returns ckpt=..."""

    def save_simple(path, network: type[FusionNetwork], encoder: str | None = None) -> str:
        monkeypatch.setitem(NETWORKS, network.__name__, network)
        monkeypatch.setattr(network, "name", network.__name__)
        return save(path, network.__name__, encoder)

    return save_simple


def test_a_text_that_is_built_in_is_as_one_that_is_given(tmp_path, bert, simple):  # noqa: F811
    ckpt, path = simple(tmp_path / "w.safetensors", Simple, bert), tmp_path / "model.pt2"
    output = script("test.py", ckpt, "--export", path, "export.text=the dark road", f"text.path={bert}")
    assert "inputs: image_a, image_b; built in: text" in output
    model = load_model(tmp_path / "w.safetensors")
    program, metadata = load_pt2(path)
    text = torch.from_numpy(TextEncoder("auto", bert).encode(["the dark road"])[0])[None]
    for n, *size in SIZES:
        images = draw(n, *size)
        np.testing.assert_allclose(fuse(program, *images), fuse(model, *images, text.expand(n, -1, -1)), atol=1e-6)
    assert metadata["built_in_text"] == "the dark road" and "default_text" not in metadata


def test_the_default_text_can_be_built_in(tmp_path):
    save(tmp_path / "w.safetensors", "film")
    model = load_model(tmp_path / "w.safetensors")
    config = load_config(None, ["text.use=default"])
    (text,) = constant_features(model, config, []).values()
    assert torch.equal(text[0], model.provenance.guides["text"].default)
    with pytest.raises(InputError, match="export.text does not count"):
        constant_features(model, load_config(None, ["text.use=default", "export.text=a road"]), [])


def test_a_network_that_reads_instructions_is_the_plain_fusion_without_one(tmp_path):
    save(tmp_path / "w.safetensors", "film_instructed")
    model, inputs = load_model(tmp_path / "w.safetensors"), [*draw(1, 20, 30), torch.randn(1, 4, 12)]
    assert np.array_equal(fuse(Program(model, {}), *inputs), fuse(FILMBlend.forward, model, *inputs))


def test_a_wrong_program_is_not_written(tmp_path, monkeypatch, simple):
    ckpt, path = simple(tmp_path / "w.safetensors", Simple), tmp_path / "model.pt2"
    path.write_bytes(b"the old one")
    plain = Program.forward
    monkeypatch.setattr(Program, "forward", lambda self, *inputs: plain(self, *inputs) + 2e-4)
    output = script("test.py", ckpt, "--export", path, code=1)
    assert "model.pt2 is not written: at 64 x 96 pixels it differs from PyTorch by 2.0e-04" in output
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("network", "message"), [(Branching, "cannot be exported as .pt2 ("), (Deep, "takes the input 'depth'")]
)
def test_a_network_that_cannot_be_exported_is_one_sentence(tmp_path, simple, network, message):
    output = script("test.py", simple(tmp_path / "w.safetensors", network), "--export", tmp_path / "m.pt2", code=1)
    assert message in output and "Traceback" not in output and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_sentence(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    output = script("test.py", "ckpt=models/IVF.safetensors", "--export", "model.onnx", code=1)
    assert "needs the packages onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime" in output


TWICE = ["--instruct", "a", "--instruct", "b"]


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("model.onnx", ["ckpt=null"], "--export writes one network; give ckpt=..."),
        ("model.pt2", ["ckpt=models/{task}.safetensors"], "--export writes one network; give ckpt=..."),
        ("model.onnx", ["ckpt=a.pth", "--text-study"], "and no --text-study"),
        (
            "model.onnx",
            ["ckpt=a.pth", "--a", "a.png", "--b", "b.png", "--out", "f.png"],
            "is not for files of your own",
        ),
        ("model.pt2", ["ckpt=a.pth", "--compare"], "tests no set; leave out --compare and --report"),
        ("model.pt2", ["ckpt=a.pth", "--report"], "tests no set; leave out --compare and --report"),
        ("model.onnx", ["ckpt=a.pth", *TWICE], "builds in one --instruct"),
        ("model.pt", ["ckpt=a.pth"], "writes a .safetensors, .onnx or .pt2, or a folder, not"),
        ("w.safetensors", ["ckpt=a.pth", "--instruct", "a"], "--instruct is built into an .onnx or .pt2"),
        ("folder", ["ckpt=a.pth", "export.text=a"], "export.text is built into an .onnx or .pt2"),
        ("model.onnx", ["ckpt=models/MGFusion_IVF.safetensors", "export.text=a"], "MGFusion reads no text"),
        ("model.pt2", ["ckpt=models/MGFusion_IVF.safetensors", "--instruct", "a"], "MGFusion reads no instructions"),
        ("file/model.pt2", ["ckpt=models/MGFusion_IVF.safetensors"], "cannot write"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, to, words, message):
    (tmp_path / "file").write_text("no folder")
    output = script("test.py", *words, "--export", tmp_path / to, code=1)
    assert message in output and "Traceback" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_instruction_that_asks_for_nothing_is_refused(tmp_path):
    save(tmp_path / "w.safetensors", "film_instructed")
    with pytest.raises(InputError, match="asks for nothing that FILM instructed knows"):
        Program(load_model(tmp_path / "w.safetensors"), {"instruction": torch.zeros(1, 3, 12)})


def test_several_processes_do_not_export(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = script("test.py", "ckpt=models/IVF.safetensors", "--export", "model.pt2", code=1)
    assert "--export model.pt2 runs in one process" in output


@pytest.mark.parametrize("source", [1, 8, 36, 288, 384])
def test_nearest_places_are_those_of_pytorch(source):
    """At every size, as rounding could move one."""
    places = torch.arange(source, dtype=torch.float32)[None, None]
    for size in [*range(1, 800), 1080, 1280, 1920, 4096]:
        expected = F.interpolate(places, size=size, mode="nearest").flatten()
        assert torch.equal(nearest_index(source, size, "cpu"), expected.long()), size
