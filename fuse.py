"""Fuse pictures and videos of your own.

    python fuse.py ir.png vis.png -o fused.png                           a pair
    python fuse.py ir_folder vis_folder -o fused                         folders; with --list nothing is done
    python fuse.py "pairs/*_ir.png" "pairs/*_vis.png" -o fused           patterns: * is the name of a pair
    python fuse.py pairs.csv -o fused                                    a table with the columns a and b
    python fuse.py ir.mp4 vis.mp4 -o fused.mp4 ckpt=models/IVF_fast.safetensors
    python fuse.py over.jpg under.jpg -o fused.png --task MEF            more images, or one folder: a stack
    python fuse.py ir.png vis.png -o fused.png --text-a "A warm person." --text-b "A dark street."
    python fuse.py ir.png vis.png -o fused.png --instruct "Make the people stand out."
    python fuse.py ir_folder vis_folder -o fused --metrics --compare     a table of metrics, beside weight-free rules

Source A comes first: infrared, MRI, over-exposed or near. The result has colour where a source has it; beside infrared
only B's counts. With --compare, or several --instruct, the result is a picture with a column for each; where -o is a
folder, each also gets a file. Pixels become integers by clamp; test.stretch=minmax stretches each image to its own
range, as FILM's test.py does.
In Python: `from fuse import fuse`.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from net import FusionNetwork, load_model
from net.checkpoint import read_checkpoint
from utils.check import checked
from utils.config import Config, parse_args
from utils.data.align import MOTIONS
from utils.data.images import DEPTHS, STRETCHES, as_unit, open_images, quantize
from utils.errors import InputError, run_script
from utils.instruct.guide import INSTRUCTED
from utils.own.fit import RESIZE, Picture
from utils.own.fuse import Fuser, fuse_pairs, fuse_video, in_colour, list_pairs
from utils.own.job import COLORS, TASKS, default_color, read_job, task_of
from utils.own.pairing import OwnPair
from utils.own.views import ALIGN_OR
from utils.process import pick_device, set_up_process
from utils.provenance import Provenance

DEFAULTS = "configs/fuse.yaml"
WEIGHTS = "models/{task}.safetensors"  # as DEFAULTS has it
SOURCES = "two images, folders, patterns or videos, or a table of pairs; and keys of the config, e.g. device=cpu"
ARGUMENTS = {
    "-o": {"metavar": "PATH", "dest": "out", "help": "fused image or video, or a folder; else fused.png, or fused"},
    "--task": {"choices": TASKS, "help": "whose weights; without it that of ckpt=..., else IVF"},
    "--text": {"metavar": "TEXT", "help": "what both sources show: the text, a .txt, or a folder of <name>.txt"},
    "--text-a": {"metavar": "TEXT", "help": "what A shows, likewise"},
    "--text-b": {"metavar": "TEXT", "help": "what B shows, likewise"},
    "--instruct": {"metavar": "TEXT", "action": "append", "default": [], "help": "what is wanted; may be given often"},
    "--range-a": {
        "metavar": "RANGE",
        "default": "type",
        "help": "of A: type, file, 1%%,99%% or low,high; see docs/own.md",
    },
    "--range-b": {"metavar": "RANGE", "default": "type", "help": "of B, likewise"},
    "--align": {"choices": MOTIONS, "help": "register B to A first; a pair that is not sure is not fused"},
    "--align-or": {"choices": ALIGN_OR, "help": "what to take then: A alone, B alone, or both as they are"},
    "--resize": {
        "choices": RESIZE,
        "metavar": "HOW",
        "help": "a, b, max: bring a pair of unequal sizes to that of A, of B, or the larger; crop, pad: cut or pad B "
        "to the shape of A",
    },
    "--fps": {"type": float, "metavar": "RATE", "help": "frames per second of the result of videos; else that of A"},
    "--color": {"choices": COLORS, "help": "whose colour the result has; default: b for IVF, else both"},
    "--depth": {"type": int, "choices": DEPTHS, "default": 8, "help": "bits of the result; 16 in PNG and TIFF"},
    "--metrics": {"action": "store_true", "help": "measure the results by test.metrics, and write a table"},
    "--compare": {"action": "store_true", "help": "show weight-free rules of the task beside the result"},
    "--list": {"action": "store_true", "help": "show which pairs would be fused, and do nothing"},
}


def fuse(
    model: FusionNetwork | str | Path,
    a: str | Path | np.ndarray,
    b: str | Path | np.ndarray,
    text: str | tuple[str, str] | None = None,
    instruct: str | None = None,
    stretch: str = "clamp",
    color: str | None = None,
    depth: int = 8,
) -> np.ndarray:
    """Fuse two images in Python, as the command line does.

    Args:
        model: of `load_model`, or a checkpoint as it takes one, which is then opened on the GPU if there is one.
        a, b: files, or arrays (H, W) gray or (H, W, 3) RGB, of one size; uint8, uint16 or floats in [0, 1].
        text: what both show, or a pair: what A and what B shows; None: the default text of the checkpoint.
        instruct: what is wanted, for a network that reads instructions.
        stretch: how the result becomes integers, as of `quantize`.
        color: whose colour it has: a, b, both, none; None: b where the network's task is IVF, or is unknown, else both.
        depth: 8, or 16.

    Returns:
        (H, W) uint8, or uint16 with depth=16; (H, W, 3) RGB where it has colour.

    Raises:
        InputError: what `load_model`, `open_images` or `Fuser` refuses; an empty text, another stretch.
    """
    for name, value, known in (
        ("stretch", stretch, STRETCHES),
        ("color", color, (*COLORS, None)),
        ("depth", depth, DEPTHS),
    ):
        checked(Literal[known], value, "fuse()", name)
    texts = ("", "") if text is None else (text, text) if isinstance(text, str) else tuple(text)
    if len(texts) != 2 or (text is not None and not all(texts)):
        raise InputError("text is what both sources show, or what A and what B shows, two texts; none is empty")
    a, b = (Picture(as_unit(gray), chroma) for gray, chroma in open_images({"a": a, "b": b}))
    source = model.label if isinstance(model, FusionNetwork) else str(model)
    if not isinstance(model, FusionNetwork):
        model = load_model(model, pick_device("auto"))
    device = next((parameter.device for parameter in model.parameters()), pick_device("cpu"))
    pair = OwnPair("a and b", Path(), Path(), Path(), *texts, instruct or "")
    color = color or default_color(task_of(model.provenance, source))
    fuser = Fuser(model, Config(ckpt=source), [pair], device, color=color)
    features = fuser.features[0]
    fused = quantize(fuser([pair.name], [(a, b)], features)[0, 0], stretch, depth)
    fused = in_colour(fused, (a, b), fuser.shares(features)[0])
    return fused if fused.ndim == 2 else fused[..., ::-1].copy()


def main() -> None:
    # not above: where fuse is installed, `test` is Python's own package
    from test import BASELINES, RULES, find_checkpoint, open_model

    config, args = parse_args(__doc__, SOURCES, ARGUMENTS, DEFAULTS)
    if not args.task and config.ckpt not in (None, WEIGHTS):
        config.ckpt = find_checkpoint(config.ckpt, "IVF")
        args.task = task_of(Provenance.from_checkpoint(read_checkpoint(config.ckpt)), config.ckpt)
    args.task = args.task or "IVF"
    job = read_job(args, config, BASELINES.get(args.task, RULES))
    if args.list:
        return list_pairs(job)
    instructed = job.instructions or any(pair.instruct for pair in job.pairs)
    if instructed and args.task == "IVF" and config.ckpt == WEIGHTS:
        config.ckpt = INSTRUCTED
    config.ckpt = find_checkpoint(config.ckpt, args.task)
    set_up_process(config.precision)
    device = pick_device(config.device)
    model = open_model(config, args.overrides, device)
    fuser = Fuser(model, config, job.pairs, device, job.rules, job.instructions, job.color)
    print("\n".join(fuser.notes))
    if job.is_video:
        fuse_video(fuser, job, config.video.codec, config.video.batch_size)
    else:
        fuse_pairs(fuser, job)


if __name__ == "__main__":
    run_script(main)
