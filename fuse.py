"""Fuse pictures and videos of your own.

    python fuse.py ir.png vis.png -o fused.png                           a pair
    python fuse.py ir_folder vis_folder -o fused                         folders; with --list nothing is done
    python fuse.py "pairs/*_ir.png" "pairs/*_vis.png" -o fused           patterns: * is the name of a pair
    python fuse.py pairs.csv -o fused                                    a table with the columns a and b
    python fuse.py ir.mp4 vis.mp4 -o fused.mp4 ckpt=models/IVF_fast.safetensors
    python fuse.py over.jpg under.jpg -o fused.png --task MEF
    python fuse.py ir.png vis.png -o fused.png --text-a "A warm person." --text-b "A dark street."
    python fuse.py ir.png vis.png -o fused.png --instruct "Make the people stand out."
    python fuse.py ir_folder vis_folder -o fused --metrics --compare     a table of metrics, beside weight-free rules

Source A comes first: infrared, MRI, over-exposed or near. The result has colour where a source has it. With --compare,
or several --instruct, the result is a picture with a column for each.
Pixels become 8 bit by clamp; test.stretch=minmax stretches each image to its own range, as FILM's test.py does.
"""

from test import BASELINES, RULES, find_checkpoint, open_model
from utils.config import parse_args
from utils.data.align import MOTIONS
from utils.errors import run_script
from utils.instruct.guide import INSTRUCTED
from utils.own.fit import RESIZE
from utils.own.fuse import Fuser, fuse_pairs, fuse_video, list_pairs
from utils.own.job import read_job
from utils.process import pick_device, set_up_process

DEFAULTS = "configs/fuse.yaml"
WEIGHTS = "models/{task}.safetensors"  # as DEFAULTS has it
SOURCES = "two images, folders, patterns or videos, or a table of pairs; and keys of the config, e.g. device=cpu"
ARGUMENTS = {
    "-o": {"metavar": "PATH", "dest": "out", "help": "fused image or video, or a folder; else fused.png, or fused"},
    "--task": {"choices": ["IVF", "MIF", "MEF", "MFF"], "default": "IVF", "help": "whose weights, without ckpt=..."},
    "--text": {"metavar": "TEXT", "help": "what both sources show: the text, a .txt, or a folder of <name>.txt"},
    "--text-a": {"metavar": "TEXT", "help": "what A shows, likewise"},
    "--text-b": {"metavar": "TEXT", "help": "what B shows, likewise"},
    "--instruct": {"metavar": "TEXT", "action": "append", "default": [], "help": "what is wanted; may be given often"},
    "--align": {"choices": MOTIONS, "help": "register B to A first"},
    "--resize": {"choices": RESIZE, "help": "bring a pair of unequal sizes to that of A, of B, or the larger"},
    "--metrics": {"action": "store_true", "help": "measure the results by test.metrics, and write a table"},
    "--compare": {"action": "store_true", "help": "show weight-free rules of the task beside the result"},
    "--list": {"action": "store_true", "help": "show which pairs would be fused, and do nothing"},
}


def main() -> None:
    config, args = parse_args(__doc__, SOURCES, ARGUMENTS, DEFAULTS)
    job = read_job(args, config, BASELINES.get(args.task, RULES))
    if args.list:
        return list_pairs(job)
    instructed = job.instructions or any(pair.instruct for pair in job.pairs)
    if instructed and args.task == "IVF" and config.ckpt == WEIGHTS:
        config.ckpt = INSTRUCTED
    config.ckpt = find_checkpoint(config.ckpt, args.task)
    set_up_process(config.precision)
    device = pick_device(config.device)
    fuser = Fuser(open_model(config, args.overrides, device), config, job, device)
    if job.is_video:
        fuse_video(fuser, job, config.video.codec, config.video.batch_size)
    else:
        fuse_pairs(fuser, job)


if __name__ == "__main__":
    run_script(main)
