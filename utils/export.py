"""What test.py --export writes: weights in half precision, or a program that fuses images without this code.

A program is an .onnx, for ONNX Runtime and others, or a .pt2 of torch.export: the network of a checkpoint in float32,
for images of any size, each computed whole. What a user needs to know of it is in its metadata.
"""

import base64
import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from net.hub import check_folder, save_folder
from torch import Tensor, nn
from torch.export import Dim
from tqdm import tqdm

from net import FusionNetwork
from net.checkpoint import last_part, save_weights
from utils.config import Config
from utils.errors import InputError
from utils.files import exclusive_lock, to_json, write_file
from utils.guides import GUIDES
from utils.guides.text import open_text_encoder
from utils.instruct.guide import encode_instructions

PROGRAMS = (".onnx", ".pt2")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what it takes to write and check an .onnx
METADATA = "metadata.json"  # in a .pt2
SIZES = ((1, 64, 96), (2, 37, 53), (1, 480, 640))  # (N, H, W) that a program is checked at
TOLERANCE = 1e-4  # how far a pixel in [0, 1] may be from PyTorch's
CPU = torch.device("cpu")
Shape = tuple[int | str, ...]
FEATURES: dict[str, Shape] = {"text": (1, "L"), "clip": ("N", 2)}  # inputs beside the images: shapes without the width
LEFT_OUT = ("text_mask", "instruction")  # a single text has no padding; an instruction is built in
USE = (
    "image_a is source A (IR, MRI, OVER, NEAR), image_b source B (VI, T, UNDER, FAR): gray or luma in [0, 1], "
    "registered, 4 pixels a side or more; fused is in [0, 1]. To 8 bit, as test.py: test.stretch=clamp multiplies "
    "by 255 and rounds; test.stretch=minmax, the default, stretches each image's own range to 0..255 and truncates."
)


def check_export(config: Config, args: Namespace) -> bool:
    """Whether --export asks for a program, and not for weights.

    Raises:
        InputError: what the command line asks for cannot be; better now than after a test.
    """
    path = Path(args.export)
    program = path.suffix in PROGRAMS
    if args.text_study or "{task}" in (config.ckpt or "{task}"):
        what = "writes one network" if program else "tests one checkpoint on its sets"
        raise InputError(f"--export {what}; give ckpt=..., and no --text-study")
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise InputError(f"--export writes a .safetensors, .onnx or .pt2, or a folder, not {path}")
    if not program:
        if args.instruct or config.export.text is not None:
            what = "--instruct" if args.instruct else "export.text"
            raise InputError(f"{what} is built into an .onnx or .pt2, and {path} will hold the weights alone")
        if path.suffix != ".safetensors":
            check_folder(path)
        return False
    if args.compare or args.report:
        raise InputError(f"--export {path} tests no set; leave out --compare and --report")
    if len(args.instruct) > 1:
        raise InputError("--export builds in one --instruct; say all that is wanted in one text")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"--export {path} runs in one process: python test.py ... in place of torchrun")
    if path.suffix == ".onnx" and not all(importlib.util.find_spec(name) for name in PACKAGES):
        raise InputError(
            f"--export {path} needs the packages {', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}: "
            f"pip install {' '.join(PACKAGES)}"
        )
    return True


def export_weights(path: Path, model: FusionNetwork, metrics: dict[str, dict[str, float]]) -> None:
    """Write the weights in half precision with what they were measured to do, as one file or as a folder."""
    checkpoint = model.checkpoint(replace(model.provenance, metrics=metrics))
    if path.suffix == ".safetensors":
        save_weights(path, checkpoint)
    else:
        save_folder(path, checkpoint, model.label)
    print(f"weights in half precision, measured as above: {path}")


class Program(nn.Module):
    """A network with some of its inputs built in, ready to be traced.

    Args:
        model: a network on the CPU; it is copied.
        constants: inputs to build in, (1, L, dim) each, for every pair; an instruction is read here, once.

    Attributes:
        shapes: of the inputs that are left, images first, by name; N, H, W and L are free.

    Raises:
        InputError: an input of unknown shape, an instruction that asks for nothing.
    """

    def __init__(self, model: FusionNetwork, constants: dict[str, Tensor]):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.constants = {key: each for key, each in constants.items() if key != "instruction"}
        self.shapes: dict[str, Shape] = dict.fromkeys(("image_a", "image_b"), ("N", 1, "H", "W"))
        for key in model.inputs:
            if key in FEATURES and key not in constants:
                self.shapes[key] = (*FEATURES[key], model.options[f"{key}_dim"])
            elif key not in (*LEFT_OUT, *constants):
                raise InputError(f"{model.label} takes the input '{key}', which --export does not know")
        if "instruction" in constants:
            self.model.tell(constants["instruction"][0])
            if not self.model.told.any():
                raise InputError(f"--instruct asks for nothing that {model.label} knows; say it in other words")
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.PReLU) and child.weight.numel() == 1:  # faster with a number than with a tensor
                    setattr(parent, name, nn.LeakyReLU(child.weight.item()))

    def forward(self, *inputs: Tensor) -> Tensor:
        given = self.constants | dict(zip(self.shapes, inputs))
        return self.model(given["image_a"], given["image_b"], *(given.get(key) for key in self.model.inputs))

    def example(self, n: int, height: int, width: int, length: int) -> list[Tensor]:
        """Random inputs: n pairs of height x width pixels, a text of `length` tokens."""
        sizes = {"N": n, "H": height, "W": width, "L": length}
        shapes = {name: [sizes.get(d, d) for d in shape] for name, shape in self.shapes.items()}
        return [(torch.rand if "image" in name else torch.randn)(shape) for name, shape in shapes.items()]

    def signature(self) -> dict[str, tuple]:
        """Arguments to trace it with, and which of their sizes are free."""
        dims = {letter: Dim(letter, min=4 if letter in "HW" else 1) for letter in "NHWL"}
        free = tuple({i: dims[d] for i, d in enumerate(shape) if d in dims} for shape in self.shapes.values())
        return {"args": tuple(self.example(2, 38, 54, length=5)), "dynamic_shapes": (free,)}


Run = Callable[[list[np.ndarray]], np.ndarray]  # inputs of a written program -> fused


def write_onnx(program: Program, metadata: dict[str, str]) -> tuple[bytes, Run]:
    """The content of an .onnx, and what runs it."""
    import onnx
    import onnxruntime

    names = list(program.shapes)
    written = torch.onnx.export(
        program, **program.signature(), dynamo=True, verbose=False, input_names=names, output_names=["fused"]
    ).model_proto
    for part in (*written.graph.node, *written.graph.value_info):
        del part.metadata_props[:]  # which lines of which files of this machine made it
    onnx.helper.set_model_props(written, metadata)
    content = written.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda inputs: session.run(None, dict(zip(names, inputs)))[0]


def write_pt2(program: Program, metadata: dict[str, str]) -> tuple[bytes, Run]:
    """The content of a .pt2, and what runs it."""
    traced = torch.export.export(program, **program.signature(), strict=False)
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(traced, buffer, extra_files={METADATA: to_json(metadata, indent=1)})
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), lambda inputs: loaded(*map(torch.from_numpy, inputs)).numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what PyTorch and ONNX say of their steps."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def constant_features(model: FusionNetwork, config: Config, instruct: list[str]) -> dict[str, Tensor]:
    """The text and the instruction to build in, (1, L, dim) each; without them, the text is an input.

    Raises:
        InputError: one that the network does not read, or text.use=default without a default text.
    """
    constants = {}
    if instruct:
        constants["instruction"] = encode_instructions(instruct, config, model, CPU)[0][None]
    text = config.export.text
    if "text" not in model.inputs:
        if text is not None:
            raise InputError(f"{model.label} reads no text; leave out export.text")
        return constants
    record, dim = model.provenance.guides.get("text"), model.options["text_dim"]
    default = GUIDES["text"].open(config, record, dim, [], CPU, training=False).instead
    if default is not None:
        if text is not None:
            raise InputError(f"export.text does not count: {config.ckpt} was trained without, or text.use is default")
        return constants | {"text": default[None]}
    if text is not None:
        encoded = open_text_encoder(config, record, dim, CPU).encode_all([text])
        constants["text"] = torch.from_numpy(encoded[0])[None]
    return constants


def describe(model: FusionNetwork, program: Program, config: Config, instruct: list[str]) -> dict[str, str]:
    """What a user of a program needs to know, in words and JSON; a default feature as base64 of its half floats."""
    provenance = model.provenance
    guides = {
        kind: {"name": last_part(record.name), "revision": record.revision}
        for kind, record in provenance.guides.items()
    }
    shapes = {name: f"({', '.join(map(str, shape))}) float32" for name, shape in program.shapes.items()}
    metadata = {
        "network": to_json(model.config),
        "trained_on": to_json((provenance.config or {}).get("data", {}).get("train")),
        "commit": provenance.commit or "not recorded",
        "guides": to_json(guides),
        "inputs": to_json(shapes),
        "output": "fused (N, 1, H, W) float32",
        "use": USE,
    }
    if "text" in program.constants:
        metadata["built_in_text"] = config.export.text or "the default text"
    if instruct:
        metadata["built_in_instruction"] = instruct[0]
    for name in program.shapes.keys() & provenance.guides.keys():
        default = provenance.guides[name].default
        if default is not None:
            metadata[f"default_{name}"] = base64.b64encode(default.half().numpy().tobytes()).decode()
            metadata[f"default_{name}_shape"] = json.dumps([1, *default.shape])
    return metadata


def export_program(path: Path, model: FusionNetwork, config: Config, instruct: list[str]) -> None:
    """Write a network as a program, once what was written gives the results of the network.

    Args:
        path: .onnx or .pt2.
        model: on the CPU, in eval mode.
        config: `export.text` and `text.use` say which text is built in, if one is.
        instruct: one instruction to build in, or none.

    Raises:
        InputError: something to build in that cannot be, a network that cannot be traced, results that differ, a place
            that cannot be written. An old file at `path` is unchanged.
    """
    constants = constant_features(model, config, instruct)
    program = Program(model, constants)
    metadata, names = describe(model, program, config, instruct), list(program.shapes)
    write = write_onnx if path.suffix == ".onnx" else write_pt2
    largest = 0.0
    print(f"exporting {model.label}: a minute or two", flush=True)
    with exclusive_lock(path), tqdm(total=1 + len(SIZES), desc="trace", unit="step", leave=False) as bar, quiet():
        try:
            with torch.no_grad():
                content, run = write(program, metadata)
        except Exception as error:  # a network with steps that depend on values or sizes raises many kinds
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{model.label} cannot be exported as {path.suffix} ({reason})") from error
        bar.update()
        for count, (n, *size) in enumerate(SIZES):
            bar.set_description("check {} x {}".format(*size))
            inputs = program.example(n, *size, length=5 + 3 * count)
            given = {key: each.expand(n, -1, -1) for key, each in constants.items()} | dict(zip(names, inputs))
            with torch.inference_mode():
                expected = model(*inputs[:2], *(given.get(key) for key in model.inputs)).numpy()
            difference = float(np.abs(run([each.numpy() for each in inputs]) - expected).max())
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{path} is not written: at {size[0]} x {size[1]} pixels it differs from PyTorch by "
                    f"{difference:.1e}, and {TOLERANCE:.0e} is the most"
                )
            largest = max(largest, difference)
            bar.update()
        write_file(path, content)
    print(f"inputs: {', '.join(names)}; built in: {' and '.join(constants) or 'nothing'}")
    sizes = ", ".join(f"{height} x {width}" for _, height, width in SIZES)
    print(f"largest difference from PyTorch at {sizes} pixels: {largest:.1e}")
    print(f"written: {path}, {len(content) / 2**20:.1f} MiB")
