"""Test a fusion network: fused images, and the paper's tables.

    python test.py                                                     the sample, with the weights that ship
    python test.py --config configs/film_ivf.yaml                      every test set of the config
    python test.py --config configs/film_ivf.yaml ckpt=exp/<run>/model/last.pth --compare
    python test.py --a ir.png --b vis.png --out fused.png ckpt=models/IVF.safetensors        a pair of your own
    python test.py --a ir.png --b vis.png --out fused.png --text-a "..." --text-b "..." ckpt=models/IVF.safetensors
    python test.py --a folder_a --b folder_b --out folder ckpt=models/IVF.safetensors        two folders, or one twice
    python test.py --pairs pairs.csv --out folder ckpt=models/IVF.safetensors --list         what would be fused?
    python test.py --a ir.mp4 --b vis.mp4 --out fused.mp4 ckpt=models/IVF_fast.safetensors   a video
    python test.py --a ir.png --b vis.png --out fused.png --instruct "Remove the noise from the thermal image."
    python test.py --config configs/film_ivf.yaml --text-study         does the text matter?
    python test.py --config ... ckpt=... --export models/IVF.safetensors   test and write half-precision weights
    python test.py ckpt=models/IVF.safetensors --export model.onnx     a program that needs no PyTorch; or a .pt2
    torchrun --nproc_per_node=4 test.py --config configs/film_ivf.yaml     four GPUs share the pairs of every set

A test set writes <test.output>/<dataset>/Gray/<name>.png and RGB/<name>.png, metrics.csv, metrics.json, and
table.tex and table.md to paste. With --compare (or test.compare=true) weight-free rules and published
results are beside it, and comparison.png shows some pairs; --report adds a page for the browser,
<test.output>/report. Results appear when the whole set is finished. test.stretch says how the network's
output becomes 8 bit: minmax, the published stretch of every image to its own range, or clamp.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import INSTRUCTED, MOTIONS, RESIZE, Config, parse_args
from utils.errors import InputError, run_script
from utils.files import commit, find_newest, plain_name, to_json

# what takes seconds to import is imported where it is used, so that --help and mistakes are answered at once
if TYPE_CHECKING:
    import numpy as np
    import torch

    from net import FusionNetwork
    from utils.results.report import Report

SAMPLE = "configs/sample.yaml"
RULES = ("mean", "max", "laplacian")  # of --compare
BASELINES = {task: (*RULES, rule) for task, rule in {"IVF": "saliency", "MEF": "mertens", "MFF": "focus"}.items()}
PUBLISHED = "configs/paper_tables.yaml"

ARGUMENTS = {
    "--compare": {"action": "store_true", "help": "add weight-free rules, published results, a picture"},
    "--report": {"action": "store_true", "help": "also write <test.output>/report, a page for the browser"},
    "--a": {"metavar": "PATH", "help": "image, folder, files or video of source A (IR, MRI, OVER, NEAR)"},
    "--b": {"metavar": "PATH", "help": "image, folder, files or video of source B (VI, T, UNDER, FAR)"},
    "--pairs": {"metavar": "FILE", "help": "a table of pairs: a CSV with the columns a, b, and others if wanted"},
    "--out": {"metavar": "PATH", "help": "fused image or video, or folder for images or frames"},
    "--list": {"action": "store_true", "help": "show which pairs would be fused, and do nothing"},
    "--resize": {"choices": RESIZE, "help": "bring a pair of unequal sizes to that of A, of B, or the larger"},
    "--align": {"choices": MOTIONS, "help": "register B to A first"},
    "--text-a": {"metavar": "TEXT", "help": "what A shows: the text, a .txt, or a folder of <name>.txt"},
    "--text-b": {"metavar": "TEXT", "help": "what B shows, likewise"},
    "--instruct": {"metavar": "TEXT", "action": "append", "default": [], "help": "what is wanted; may be given often"},
    "--text-study": {"action": "store_true", "help": "fuse with own and other texts: does it matter?"},
    "--export": {"metavar": "FILE", "help": "write weights, tested (.safetensors, folder), or a program (.onnx, .pt2)"},
    "--sentence": {"metavar": "TEXT", "default": "A red rose on a white table.", "help": "one of the other texts"},
}


def main() -> None:
    first = not int(os.environ.get("RANK", 0))  # of the processes of torchrun, which read the same words
    try:
        config, args = read_arguments()
        if args.list:
            from utils.own.files import list_own

            return list_own(args, config.video.fps) if first else None
    except InputError:
        if not first:
            raise SystemExit from None  # the first says what is wrong
        raise
    from utils import distributed
    from utils.process import set_up_process

    set_up_process(config.precision)
    _, _, device = distributed.start(config.device)
    with distributed.one_voice():
        if not args.own and not args.program:
            return test_sets(config, args, device)
        config = replace(config, ckpt=find_checkpoint(config, None))
        if args.own:
            from utils.own.fuse import fuse_files

            return fuse_files(open_model(config, args.overrides, device), config, args, device)
        from utils.export import CPU, export_program

        model = open_model(replace(config, precision="fp32", compile=False), args.overrides, CPU)
        export_program(Path(args.export), model, config, args.instruct)


def read_arguments() -> tuple[Config, Namespace]:
    """The command line; InputError for a mistake, also for arguments that do not go together."""
    config, args = parse_args(__doc__, arguments=ARGUMENTS, default=SAMPLE)
    from utils.own.files import check_arguments

    config.test.compare |= args.compare
    given = any(word.startswith("ckpt=") for word in args.overrides)
    args.own = check_arguments(args)
    if (args.own or args.export) and args.instruct and args.config == SAMPLE and not given:
        config.ckpt = INSTRUCTED
    for flag in ("text_study", "report", "export"):
        if flag != "export" and args.instruct and getattr(args, flag):
            raise InputError(f"--{flag.replace('_', '-')} is without --instruct")
        if args.own and getattr(args, flag):
            raise InputError(f"--{flag.replace('_', '-')} is not for files of your own; leave one of them out")
    args.program = False
    if args.export:
        from utils.export import check_export

        args.program = check_export(config, args)
    if args.text_study and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--text-study runs in one process: python test.py ... in place of torchrun")
    if args.report and args.text_study:
        raise InputError("--report shows test sets; the text study draws a picture of its own")
    if not args.own and not config.data.test:
        raise InputError("data.test names no set; give e.g. data.test=[MSRS_test], or a pair with --a, --b and --out")
    from utils.results.evaluate import check_metrics

    check_metrics(config.test.metrics)
    return config, args


def test_sets(config: Config, args: Namespace, device: torch.device) -> None:
    """Test on every set of the config, and write what the arguments ask for; the processes share the pairs."""
    from utils import distributed
    from utils.data.h5 import h5_path, recorded_task
    from utils.data.images import stack_rows, write_image
    from utils.data.sources import find_sources
    from utils.results.evaluate import applicable
    from utils.results.report import new_report

    opened: dict[str, tuple[Config, FusionNetwork]] = {}
    missing = [name for name in config.data.test if not h5_path(config.data.h5, name).is_file()]
    if missing:
        find_sources(config, missing)  # a name that is wrong is refused before anything is made
    for name in config.data.test:  # first all that can be wrong, and the H5 files
        used = replace(config, ckpt=find_checkpoint(config, name))
        known = [model for other, model in opened.values() if other.ckpt == used.ckpt]
        model = known[0] if known else open_model(used, args.overrides, device, half=bool(args.export))
        make_missing(name, used, model)
        fitting, note = applicable(config.test.metrics, {name: recorded_task(h5_path(config.data.h5, name))})
        if not fitting:
            raise InputError(f"{note}, where test.metrics names no other; add one, e.g. test.metrics=[TC,Qabf]")
        if note:
            print(f"note: {note}")
        opened[name] = replace(used, test=replace(config.test, metrics=fitting)), model
    metrics, rows = {}, []
    report_folder = Path(config.test.output) / "report"
    new = new_report(report_folder, config, commit() or "not recorded") if args.report else nullcontext()
    with distributed.opened_by_first(new) as report:
        for name, (used, model) in opened.items():
            if args.text_study:
                study_set(model, name, used, device, args.sentence)
            else:
                metrics[name], pictures = test_set(model, name, used, device, report, args.instruct)
                rows += pictures[:1]
    if distributed.place()[0] > 0:
        return
    if report:
        print(f"open in a browser: {report_folder}/index.html")
    if len(config.data.test) > 1 and rows:
        path = Path(config.test.output) / "comparison.png"
        write_image(path, stack_rows(rows))
        print(f"one pair of each set: {path}")
    if args.export:
        from utils.export import export_weights

        export_weights(Path(args.export), model, metrics)


def find_checkpoint(config: Config, name: str | None) -> str | None:
    """`ckpt` with the task of a set for {task}, and the newest file for a *; `name` is None for a user's pair."""
    from utils.data.h5 import h5_path, task_of
    from utils.data.sources import task_of_set

    ckpt = config.ckpt
    if ckpt and "{task}" in ckpt:
        if name is None:
            example = ckpt.replace("{task}", "IVF")
            raise InputError(f"say which weights a pair of your own is for: ckpt={example} for infrared and visible")
        path = h5_path(config.data.h5, name)
        ckpt = ckpt.replace("{task}", task_of(path) if path.is_file() else task_of_set(name, config))
    if ckpt and "*" in ckpt:
        try:
            newest = find_newest(ckpt)
        except ValueError as error:
            raise InputError(f"ckpt={ckpt} is no pattern ({error}); a * is for a part of a name") from error
        if newest is None:
            raise InputError(f"there is no checkpoint {ckpt}; train first, or give one with ckpt=...")
        ckpt = str(newest)
        print(f"weights: {ckpt}")
    return ckpt


def open_model(config: Config, overrides: list[str], device: torch.device, half: bool = False) -> FusionNetwork:
    """The network of `ckpt`, or one without weights that the config names with ckpt=null.

    Args:
        overrides: key=value of the command line.
        half: round the weights to half precision, as --export writes them.

    Raises:
        InputError: no weights, weights that cannot be used, or net.* on the command line that differ from them.
    """
    from net import build_model, configure_compute, load_model
    from net.checkpoint import halved

    if config.ckpt is None:
        model = build_model(**config.net)
        if any(True for _ in model.parameters()):
            raise InputError("ckpt is not given; give the weights to test with ckpt=...")
        model.to(device).eval()
    else:
        model = load_model(config.ckpt, device)
        asked = [key for key in (word.partition("=")[0] for word in overrides) if key.split(".")[0] == "net"]
        for key in config.net if "net" in asked else [key.split(".")[1] for key in asked]:
            if to_json(config.net[key]) != to_json(model.config.get(key)):
                raise InputError(
                    f"net.{key} is {config.net[key]} on the command line and {model.config.get(key)} in {config.ckpt}; "
                    "leave it out, or train such a network"
                )
    if half:
        model.load_state_dict(halved(model.state_dict()))
    configure_compute(config.precision, config.test.tile, compile=config.compile)
    return model


def make_missing(name: str, config: Config, model: FusionNetwork) -> None:
    """Make the H5 file of a test set whose images are there and which has none yet, for a network; one process does."""
    from utils import distributed
    from utils.data.h5 import h5_path
    from utils.data.make import make_sets
    from utils.data.sources import find_sources
    from utils.guides import makers_of

    rank, _ = distributed.place()
    if rank == 0 and not h5_path(config.data.h5, name).is_file():
        sources = [source for source in find_sources(config, [name]) if source.names.is_file()]
        makers = makers_of(model.inputs, config, model.provenance.guides)
        problems = make_sets(sources, makers, config.data.h5, num_workers=config.data.num_workers)
        if problems:
            raise InputError("\n".join(problems))
    distributed.exchange()  # the others wait


def test_set(
    model: FusionNetwork,
    name: str,
    config: Config,
    device: torch.device,
    report: Report | None = None,
    instruct: Sequence[str] = (),
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Fuse one set, save the images and the numbers, print the table; returns the network's means, and pictures.

    Under one instruction the images are those that it asks for; several are compared with what is without any.
    """
    from net import build_model
    from utils import distributed
    from utils.data.h5 import attribute, check_shape, h5_path, open_h5
    from utils.data.pairs import PairDataset
    from utils.files import atomic_folder
    from utils.guides import describe_guidance, label_with_remarks, open_guides
    from utils.instruct.guide import encode_instructions
    from utils.results.evaluate import average_all
    from utils.results.fuse_set import fuse_set
    from utils.results.table import format_table, left_out_lines, published_rows, write_results

    path, compare = h5_path(config.data.h5, name), config.test.compare or report is not None
    dataset = PairDataset([path], model.inputs, chroma=True)
    check_shape(path, config.data, training=False)
    guidances = open_guides(config, model, [dataset], device)
    with open_h5(path) as file:
        dataset_name = attribute(file, "dataset") or name.rpartition("_")[0] or name
        task = attribute(file, "task")
    if not plain_name(dataset_name):
        raise InputError(f"{path} is of a dataset {dataset_name!r}, which is no plain name; make it again")
    same = [other for other in config.data.test if other.rpartition("_")[0] == dataset_name]
    folder = Path(config.test.output) / (dataset_name if same == [name] else name)
    blocks = published_rows(PUBLISHED, dataset_name) if compare else []

    rules = [rule for rule in BASELINES.get(task, RULES) if compare and rule != model.name]
    models = [model, *(build_model(rule).to(device).eval() for rule in rules)]
    labels = [label_with_remarks(model, guidances), *(rule.label for rule in models[1:]), *instruct]
    instructions = encode_instructions(instruct, config, model, device)
    with distributed.opened_by_first(atomic_folder(folder, outdated=["comparison.png"])) as staged:
        per_image, pictures = fuse_set(
            models, labels, name, dataset, guidances, instructions, config, device, staged, report
        )
        means, left_out = average_all(per_image)
        records = {kind: guidance.record for kind, guidance in guidances.items() if guidance.record}
        summary = {
            "set": name,
            "dataset": dataset_name,
            "network": labels[0],
            "ckpt": config.ckpt,
            "guides": {kind: {"name": r.name, "revision": r.revision} for kind, r in records.items()},
            "text": config.text.use,
            "instruct": instruct,
            "stretch": config.test.stretch,
            "precision": config.precision,
            "images": len(dataset),
            "metrics": config.test.metrics,
            "mean": means,
            "left_out": left_out,
            "published": dict(blocks),
        }
        if distributed.place()[0] == 0:
            write_results(staged, summary, per_image, pictures)
            if report:
                report.add_numbers(summary, per_image)
    print(f"\nguided by {describe_guidance(guidances)}")
    print("\n" + format_table(dataset_name, config.test.metrics, means, blocks))
    names = list(per_image[labels[0]])
    print(f"measured: {len(names)} images of {name} ({names[0]} ... {names[-1]}), 8 bit by {config.test.stretch}")
    print("\n".join([*left_out_lines(left_out), f"written: {folder}"]))
    return means[labels[0]], pictures


def study_set(model: FusionNetwork, name: str, config: Config, device: torch.device, sentence: str) -> None:
    """The text study on one set; see utils/studies/text.py."""
    from utils.data.h5 import check_shape, h5_path
    from utils.data.pairs import PairDataset
    from utils.files import atomic_folder
    from utils.guides import open_guides
    from utils.guides.text import open_text_encoder
    from utils.instruct.study import instruction_study
    from utils.studies.text import text_study

    if "text" not in model.inputs:
        raise InputError(f"{model.label} reads no text; --text-study needs a network that does")
    path = h5_path(config.data.h5, name)
    dataset = PairDataset([path], model.inputs)
    check_shape(path, config.data, training=False)
    guidances = open_guides(replace(config, text=replace(config.text, use="own")), model, [dataset], device)
    if dataset.lacking["text"]:
        raise InputError(f"{path} holds no text; --text-study compares each pair's own with others")
    if len(dataset) < 2:
        raise InputError(f"{name} has one pair; --text-study gives each the text of another and needs two")
    encoder = open_text_encoder(config, guidances["text"].record, model.options["text_dim"], device)
    folder = Path(config.test.output) / f"{name}_text_study"
    with atomic_folder(folder) as staged:
        text_study(model, dataset, name, guidances, encoder, sentence, config, device, staged)
        if "instruction" in model.inputs:
            instruction_study(model, dataset, name, guidances, config, device, staged)
    print(f"written: {folder}")


if __name__ == "__main__":
    run_script(main)
