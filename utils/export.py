"""Write a network for others: a program that runs without this code, or weights in half precision.

    python -m utils.export model.onnx ckpt=models/IVF.safetensors
    python -m utils.export model.onnx ckpt=models/IVF.safetensors --text "A car on a dark road."
    python -m utils.export model.onnx ckpt=models/IVF_instruct.safetensors --instruct "Remove the noise."
    python -m utils.export models/IVF.safetensors --config configs/film_ivf.yaml ckpt=exp/<run>/model/best.pth

An .onnx, for ONNX Runtime and others, is the network in float32, for images of any size, each computed whole. A text is
built in, that of --text or the checkpoint's default text, and so is an instruction. It is written once it gives the
results of PyTorch, and its metadata say how to use it. Weights for a .safetensors are tested on data.test first, as
test.py does, and carry the means.
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from net import FusionNetwork
from net.checkpoint import halved, save_weights
from test import SAMPLE, Tested, find_checkpoint, open_model, open_sets, test_set
from utils.config import Config, parse_args
from utils.data.features import features_of
from utils.errors import InputError, reason_of, run_script
from utils.files import to_json, write_file
from utils.guides import image_encoders, open_guides
from utils.guides.guidance import Encoder
from utils.guides.text import open_users_encoder
from utils.instruct.guide import encode_instructions
from utils.process import pick_device, set_up_process
from utils.results.sets import keep_others, stored_set

ARGUMENTS = {
    "--text": {"metavar": "TEXT", "help": "build in this text in place of the default text"},
    "--instruct": {"metavar": "TEXT", "help": "build in this instruction"},
    "--overwrite": {"action": "store_true", "help": "replace results of another network in test.output, too"},
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what it takes to write and check an .onnx
SIZES = ((1, 64, 96), (2, 37, 53), (1, 480, 640))  # (N, H, W) that a program is checked at
TOLERANCE = 1e-4  # how far a pixel in [0, 1] may be from PyTorch's
CPU = torch.device("cpu")
USE = (
    "image_a (N, 1, H, W) is source A (IR, MRI, OVER, NEAR), image_b source B (VI, T, UNDER, FAR): float32 gray or "
    "luma in [0, 1], registered, 4 pixels a side or more. fused (N, 1, H, W) is in [0, 1]. To 8 bit, as test.py: "
    "test.stretch=clamp multiplies by 255 and rounds; test.stretch=minmax, the default, stretches each image's own "
    "range to 0..255 and truncates."
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
        return export_weights(path, config, args.overrides, args.overwrite)
    if not all(importlib.util.find_spec(name) for name in PACKAGES):
        raise InputError(f"an .onnx needs the packages {', '.join(PACKAGES)}: pip install {' '.join(PACKAGES)}")
    model = open_model(replace(config, precision="fp32", compile=False), args.overrides, CPU)
    export_program(path, model, config, args.text, args.instruct)


def export_weights(path: Path, config: Config, overrides: list[str], overwrite: bool) -> None:
    """Round the weights of `ckpt` to half precision, test them on the sets of the config, and write a .safetensors."""
    device = pick_device(config.device)
    opened = open_sets(config, overrides, device)
    tests = [stored_set(name, used) for name, (used, _) in opened.items()]
    for test, (used, model) in zip(() if overwrite else tests, opened.values()):
        keep_others(test, used.ckpt or model.label)
    model = next(model for _, model in opened.values())  # of all sets
    model.load_state_dict(halved(model.state_dict()))
    metrics = {}
    for test, (used, _) in zip(tests, opened.values()):
        metrics[test.name], _ = test_set(test, used, [Tested("", model, used)], device)
    save_weights(path, model.checkpoint(replace(model.provenance, metrics=metrics)))
    print(f"weights in half precision, measured as above: {path}")


class Program(nn.Module):
    """A network with a text and an instruction built in, ready to be traced.

    Args:
        model: a network on the CPU; it is copied.
        text, instruction: (1, L, dim) each; None: the network reads no text, it is asked for nothing.
        encoders: by name, what computes further features from the images; they are built in.

    Attributes:
        vectors: the features that remain its inputs, after both images: (N, rows, width), e.g. those of CLIP.

    Raises:
        InputError: the rows or the width of such a feature are not known.
    """

    def __init__(
        self,
        model: FusionNetwork,
        text: Tensor | None = None,
        instruction: Tensor | None = None,
        encoders: Mapping[str, Encoder] = {},
    ):
        super().__init__()
        self.network, self.text, self.encoders = copy.deepcopy(model).requires_grad_(False), text, encoders
        self.strengths = None if instruction is None else model.strengths(instruction)[0].tolist()
        inside = {"text", "instruction", *encoders}
        self.vectors = [each for each in features_of(model.inputs) if each.name not in inside]
        for each in self.vectors:
            if not (each.rows and f"{each.name}_dim" in model.options):
                raise InputError(
                    f"{model.label} takes the guide '{each.name}': an .onnx needs fixed rows of it, and the option "
                    f"{each.name}_dim for its width; a guide of register_guide is built in"
                )
        self.names = ["image_a", "image_b", *(feature.name for feature in self.vectors)]
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.PReLU) and child.weight.numel() == 1:  # faster with a number than with a tensor
                    setattr(parent, name, nn.LeakyReLU(child.weight.item()))

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.strengths:
            return self.network.obey(*inputs, self.text, self.strengths)
        given = {"text": self.text} | dict(zip(self.names, inputs))
        given |= {name: encoder(*inputs[:2]) for name, encoder in self.encoders.items()}
        return self.network(*inputs[:2], *(given.get(key) for key in self.network.inputs))

    def example(self, n: int, height: int, width: int) -> list[Tensor]:
        """Random inputs: n pairs of height x width pixels."""
        widths = {feature: self.network.options[f"{feature.name}_dim"] for feature in self.vectors}
        return [*torch.rand(2, n, 1, height, width), *(torch.randn(n, f.rows, dim) for f, dim in widths.items())]


def export_program(
    path: Path, model: FusionNetwork, config: Config, text: str | None = None, instruct: str | None = None
) -> None:
    """Write a network on the CPU as an .onnx, once what was written gives the results of the network.

    Built in are `text`, or else the default text, and `instruct`. InputError for what cannot be built in, traced or
    written, or results that differ; then a file at `path` is unchanged.
    """
    import onnxruntime

    built_in = {"text": text_feature(model, config, text)}
    built_in["instruction"] = encode_instructions([instruct], config, model, CPU)[0][None] if instruct else None
    built_in = {key: feature for key, feature in built_in.items() if feature is not None}
    encoders = image_encoders(model.inputs, config, CPU)
    program = Program(model, **built_in, encoders=encoders).eval()
    if program.strengths and not any(program.strengths):
        raise InputError(f"the instruction asks for nothing that {model.label} knows; say it in other words")
    metadata = {
        "network": to_json(model.config),
        "trained_on": to_json((model.provenance.config or {}).get("data", {}).get("train")),
        "commit": model.provenance.commit or "not recorded",
        "text": text or ("the default text" if "text" in built_in else "none"),
        "instruction": instruct or "none",
        "use": USE,
    }
    print(f"exporting {model.label}: a minute or two", flush=True)
    content = trace(program, metadata)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = {}
    for n, height, width in SIZES:
        inputs = dict(zip(program.names, program.example(n, height, width)))
        given = inputs | {key: feature.expand(n, -1, -1) for key, feature in built_in.items()}
        given |= {name: encoder(given["image_a"], given["image_b"]) for name, encoder in encoders.items()}
        with torch.inference_mode():
            expected = model(*(given.get(key) for key in ("image_a", "image_b", *model.inputs))).numpy()
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        differences[f"{height} x {width}"] = float(np.abs(found - expected).max())
    said = ", ".join(f"{difference:.1e} at {size} pixels" for size, difference in differences.items())
    if not all(difference <= TOLERANCE for difference in differences.values()):  # NaN, too
        raise InputError(f"{path} is not written: it differs from PyTorch by {said}; {TOLERANCE:.0e} is the most")
    write_file(path, content)
    print(f"inputs: {', '.join(program.names)}; built in: {' and '.join([*built_in, *encoders]) or 'nothing'}")
    print(f"largest difference from PyTorch: {said}\nwritten: {path}, {len(content) / 2**20:.1f} MiB")


def text_feature(model: FusionNetwork, config: Config, text: str | None) -> Tensor | None:
    """The feature (1, L, dim) of a text, or the default text; None for a network that reads no text."""
    guidances = open_guides(config, model, [], CPU) if "text" in model.inputs else {}
    if text:
        encoder = open_users_encoder(config, model, guidances, CPU)
        return torch.from_numpy(encoder.encode_all([text])[0])[None]
    if not guidances:
        return None
    if guidances["text"].default is None:
        raise InputError(f"{config.ckpt} has no default text; give one with --text")
    return guidances["text"].default[None]


def trace(program: Program, metadata: dict[str, str]) -> bytes:
    """The content of an .onnx; InputError if the network cannot be traced."""
    import onnx

    pairs = Dim("N", min=1)
    image = {0: pairs, 2: Dim("H", min=4), 3: Dim("W", min=4)}
    logging.disable(logging.WARNING)  # what PyTorch and ONNX say of their steps
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            written = torch.onnx.export(
                program,
                args=tuple(program.example(2, 38, 54)),
                dynamic_shapes=((image, image, *({0: pairs} for _ in program.vectors)),),
                dynamo=True,
                verbose=False,
                input_names=program.names,
                output_names=["fused"],
            ).model_proto
    except Exception as error:  # a network with steps that depend on values or sizes raises many kinds
        reason = reason_of(error.__cause__ or error)
        raise InputError(f"{program.network.label} cannot be exported as .onnx ({reason})") from error
    finally:
        logging.disable(logging.NOTSET)
    for part in (*written.graph.node, *written.graph.value_info):
        del part.metadata_props[:]  # which lines of which files of this machine made it
    onnx.helper.set_model_props(written, metadata)
    return written.SerializeToString()


if __name__ == "__main__":
    run_script(main)
