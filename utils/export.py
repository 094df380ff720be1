"""Write a network for others: a program that runs without this code, or weights in half precision.

    python -m utils.export model.onnx ckpt=models/IVF.safetensors
    python -m utils.export model.onnx ckpt=models/IVF.safetensors --text "A car on a dark road."
    python -m utils.export model.onnx ckpt=models/IVF_instruct.safetensors --instruct "Remove the noise."
    python -m utils.export models/IVF.safetensors --config configs/film_ivf.yaml ckpt=exp/<run>/model/best.pth

An .onnx, for ONNX Runtime and others, is the network in float32, for images of any size, each computed whole. It is
written once it gives the results of PyTorch, and its metadata say how to use it. Weights for a .safetensors are tested
on data.test first, as test.py does, and carry the means.
"""

import base64
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from net import FusionNetwork
from net.checkpoint import halved, save_weights, without_folders
from test import SAMPLE, find_checkpoint, open_model, open_sets, test_set
from utils.config import Config, parse_args
from utils.data.features import features_of
from utils.errors import InputError, run_script
from utils.files import to_json, write_file
from utils.guides import open_guides
from utils.guides.text import open_text_encoder
from utils.instruct.guide import encode_instructions
from utils.process import pick_device, set_up_process

ARGUMENTS = {
    "--text": {"metavar": "TEXT", "help": "build in this text, so that the program takes none"},
    "--instruct": {"metavar": "TEXT", "help": "build in this instruction"},
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what it takes to write and check an .onnx
SIZES = ((1, 64, 96), (2, 37, 53), (1, 480, 640))  # (N, H, W) that a program is checked at
TOLERANCE = 1e-4  # how far a pixel in [0, 1] may be from PyTorch's
CPU = torch.device("cpu")
Shape = tuple[int | str, ...]
USE = (
    "image_a is source A (IR, MRI, OVER, NEAR), image_b source B (VI, T, UNDER, FAR): gray or luma in [0, 1], "
    "registered, 4 pixels a side or more; fused is in [0, 1]. To 8 bit, as test.py: test.stretch=clamp multiplies "
    "by 255 and rounds; test.stretch=minmax, the default, stretches each image's own range to 0..255 and truncates."
)


def main() -> None:
    config, args = parse_args(__doc__, "the file to write, and keys of the config, e.g. ckpt=...", ARGUMENTS, SAMPLE)
    suffixes = [Path(word).suffix for word in args.words]
    if suffixes not in ([".onnx"], [".safetensors"]):
        raise InputError(f"name one file to write, an .onnx or a .safetensors, not '{' '.join(args.words)}'")
    path = Path(args.words[0])
    config.ckpt = find_checkpoint(config.ckpt)
    set_up_process(config.precision)
    if path.suffix == ".safetensors":
        if args.text or args.instruct:
            raise InputError(f"--text and --instruct are built into an .onnx, and {path} will hold the weights alone")
        return export_weights(path, config, args.overrides)
    if not all(importlib.util.find_spec(name) for name in PACKAGES):
        raise InputError(f"an .onnx needs the packages {', '.join(PACKAGES)}: pip install {' '.join(PACKAGES)}")
    model = open_model(replace(config, precision="fp32", compile=False), args.overrides, CPU)
    export_program(path, model, config, args.text, args.instruct)


def export_weights(path: Path, config: Config, overrides: list[str]) -> None:
    """Round the weights of `ckpt` to half precision, test them on the sets of the config, and write them.

    Args:
        path: a .safetensors.
        overrides: key=value of the command line.
    """
    device = pick_device(config.device)
    opened = open_sets(config, overrides, device)
    model = next(model for _, model in opened.values())  # of all sets
    model.load_state_dict(halved(model.state_dict()))
    metrics = {name: test_set(name, used, model, device)[0] for name, (used, _) in opened.items()}
    save_weights(path, model.checkpoint(replace(model.provenance, metrics=metrics)))
    print(f"weights in half precision, measured as above: {path}")


class Program(nn.Module):
    """A network with a text or an instruction built in, ready to be traced.

    Args:
        model: a network on the CPU; it is copied.
        text: (1, L, dim) for every pair; None: an input.
        instruction: (L, dim); None: the network is asked for nothing.

    Attributes:
        shapes: of its inputs by name, images first; N, H, W and L are free.

    Raises:
        InputError: an input that no guide gives, an instruction that asks for nothing.
    """

    def __init__(self, model: FusionNetwork, text: Tensor | None = None, instruction: Tensor | None = None):
        super().__init__()
        network = copy.deepcopy(model) if instruction is None else model.obeying(instruction)
        self.network, self.text = network.requires_grad_(False), text
        self.inputs = [key for key in model.inputs if key != "instruction"]
        self.shapes: dict[str, Shape] = dict.fromkeys(("image_a", "image_b"), ("N", 1, "H", "W"))
        for name, _, rows, _ in features_of(self.inputs):  # one text for all pairs, which needs no mask
            if name != "text" or text is None:
                self.shapes[name] = (*(("N", rows) if rows else (1, "L")), model.options[f"{name}_dim"])
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.PReLU) and child.weight.numel() == 1:  # faster with a number than with a tensor
                    setattr(parent, name, nn.LeakyReLU(child.weight.item()))

    def forward(self, *inputs: Tensor) -> Tensor:
        given = {"text": self.text} | dict(zip(self.shapes, inputs))
        return self.network(given["image_a"], given["image_b"], *(given.get(key) for key in self.inputs))

    def example(self, n: int, height: int, width: int, length: int) -> list[Tensor]:
        """Random inputs: n pairs of height x width pixels, a text of `length` tokens."""
        sizes = {"N": n, "H": height, "W": width, "L": length}
        shapes = {name: [sizes.get(d, d) for d in shape] for name, shape in self.shapes.items()}
        return [(torch.rand if "image" in name else torch.randn)(shape) for name, shape in shapes.items()]


def export_program(
    path: Path, model: FusionNetwork, config: Config, text: str | None = None, instruct: str | None = None
) -> None:
    """Write a network as an .onnx, once what was written gives the results of the network.

    Args:
        model: on the CPU, in eval mode.
        config: says which encoder reads; with text.use=default the default text is built in.
        text, instruct: to build in.

    Raises:
        InputError: something to build in that cannot be, a network that cannot be traced, results that differ, a place
            that cannot be written. An old file at `path` is unchanged.
    """
    feature = text_feature(model, config, text)
    instruction = encode_instructions([instruct], config, model, CPU)[0] if instruct else None
    program = Program(model, feature, instruction)
    constants = {"text": feature, "instruction": None if instruction is None else instruction[None]}
    constants = {key: each for key, each in constants.items() if each is not None}
    metadata = describe(model, program, text or ("the default text" if "text" in constants else None), instruct)
    print(f"exporting {model.label}: a minute or two", flush=True)
    content, run = write_onnx(program, metadata, model.label)
    largest, names = 0.0, list(program.shapes)
    for count, (n, *size) in enumerate(SIZES):
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
    write_file(path, content)
    print(f"inputs: {', '.join(names)}; built in: {' and '.join(constants) or 'nothing'}")
    sizes = ", ".join(f"{height} x {width}" for _, height, width in SIZES)
    print(f"largest difference from PyTorch at {sizes} pixels: {largest:.1e}")
    print(f"written: {path}, {len(content) / 2**20:.1f} MiB")


def text_feature(model: FusionNetwork, config: Config, text: str | None) -> Tensor | None:
    """The feature (1, L, dim) to build in; None if the text is an input.

    Raises:
        InputError: a text that the network does not read, or text.use=default without a default text.
    """
    if "text" not in model.inputs:
        if text is not None:
            raise InputError(f"{model.label} reads no text; leave out --text")
        return None
    default = open_guides(config, model, [], CPU)["text"].instead
    if default is not None:
        if text is not None:
            raise InputError(f"--text does not count: {config.ckpt} was trained without, or text.use is default")
        return default[None]
    if text is None:
        return None
    encoder = open_text_encoder(config, model.provenance.guides.get("text"), model.options["text_dim"], CPU)
    return torch.from_numpy(encoder.encode_all([text])[0])[None]


def describe(model: FusionNetwork, program: Program, text: str | None, instruct: str | None) -> dict[str, str]:
    """What a user of a program needs to know, in words and JSON; a default feature as base64 of its half floats."""
    provenance = model.provenance
    guides = {kind: {"name": without_folders(r.name), "revision": r.revision} for kind, r in provenance.guides.items()}
    metadata = {
        "network": to_json(model.config),
        "trained_on": to_json((provenance.config or {}).get("data", {}).get("train")),
        "commit": provenance.commit or "not recorded",
        "guides": to_json(guides),
        "inputs": to_json({name: f"({', '.join(map(str, s))}) float32" for name, s in program.shapes.items()}),
        "output": "fused (N, 1, H, W) float32",
        "use": USE,
    }
    metadata |= {"built_in_text": text} if text else {}
    metadata |= {"built_in_instruction": instruct} if instruct else {}
    for name in program.shapes.keys() & provenance.guides.keys():
        default = provenance.guides[name].default
        if default is not None:
            metadata[f"default_{name}"] = base64.b64encode(default.half().numpy().tobytes()).decode()
            metadata[f"default_{name}_shape"] = json.dumps([1, *default.shape])
    return metadata


def write_onnx(
    program: Program, metadata: dict[str, str], label: str
) -> tuple[bytes, Callable[[list[np.ndarray]], np.ndarray]]:
    """The content of an .onnx, and a function that runs it.

    Raises:
        InputError: the network `label` cannot be traced.
    """
    import onnx
    import onnxruntime

    dims = {letter: Dim(letter, min=4 if letter in "HW" else 1) for letter in "NHWL"}
    free = tuple({i: dims[d] for i, d in enumerate(shape) if d in dims} for shape in program.shapes.values())
    arguments, names = tuple(program.example(2, 38, 54, length=5)), list(program.shapes)
    with quiet(), torch.no_grad():
        try:
            written = torch.onnx.export(
                program,
                args=arguments,
                dynamic_shapes=(free,),
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=["fused"],
            ).model_proto
        except Exception as error:  # a network with steps that depend on values or sizes raises many kinds
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{label} cannot be exported as .onnx ({reason})") from error
    for part in (*written.graph.node, *written.graph.value_info):
        del part.metadata_props[:]  # which lines of which files of this machine made it
    onnx.helper.set_model_props(written, metadata)
    content = written.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda inputs: session.run(None, dict(zip(names, inputs)))[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what PyTorch and ONNX say of their steps."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    run_script(main)
