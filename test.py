"""Test a fusion network: fused images, and the paper's tables.

    python test.py                                                     the sample, with the weights that ship
    python test.py --config configs/film_ivf.yaml                      every test set of the config
    python test.py --config configs/film_ivf.yaml ckpt=exp/<run>/model/last.pth --compare
    python test.py --config configs/film_ivf.yaml ckpt=null "net={name: max}"      a rule without weights
    python test.py --cost --config configs/film_ivf.yaml ckpt=null     what a network costs; trained or not
    torchrun --nproc_per_node=4 test.py --config configs/film_ivf.yaml     four GPUs share the pairs of every set

A test set writes <test.output>/<dataset>/Gray/<name>.png and RGB/<name>.png, metrics.csv (every image),
metrics.json, and table.tex and table.md (the means) to paste. With --compare (or test.compare=true) weight-free
rules and published results are beside it, and comparison.png shows some pairs; --report adds a page for the
browser, <test.output>/report. Results appear when the whole set is finished; those of other weights are replaced with
--overwrite alone. test.stretch says how the network's output becomes 8 bit: minmax, FILM's stretch of every image to
its own range, or clamp. Images of your own: fuse.py.
"""

import argparse
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from net import FusionNetwork, build_model, configure_compute, load_model
from utils import distributed
from utils.config import Config, parse_args
from utils.data.h5 import h5_path, recorded_task
from utils.data.images import STRETCHES, stack_rows, write_image
from utils.data.make import make_sets
from utils.data.sources import find_set, find_sources
from utils.errors import InputError, run_script
from utils.files import newest_checkpoint, to_json
from utils.guides import describe_guidance, label_with_remarks, makers_of, open_guides
from utils.guides.text import text_use
from utils.metrics import check_metrics
from utils.process import set_up_process
from utils.results.cost import print_cost
from utils.results.evaluate import Group, applicable, average_all, fuse_set, shared_folder
from utils.results.figure import Figure
from utils.results.methods import label_of, open_folders
from utils.results.report import Report, open_report
from utils.results.sets import TestSet, folder_set, keep_others, stored_set
from utils.results.statistics import pool_seeds, rank_changes, statistics
from utils.results.table import format_table, left_out_lines, published_rows, write_results

SAMPLE = "configs/sample.yaml"
RULES = ("mean", "max", "laplacian")  # of --compare
BASELINES = {task: (*RULES, rule) for task, rule in {"IVF": "saliency", "MEF": "mertens", "MFF": "focus"}.items()}
PUBLISHED = "configs/paper_tables.yaml"
ARGUMENTS = {
    "--compare": {"action": "store_true", "help": "add weight-free rules, published results, a picture"},
    "--report": {"action": "store_true", "help": "also write <test.output>/report, a page for the browser"},
    "--cost": {"action": "store_true", "help": "only print parameters, FLOPs, seconds, memory; ckpt=null: untrained"},
    "--overwrite": {"action": "store_true", "help": "replace results of another network, too"},
    "--with": {"metavar": "[NAME=]CKPT", "action": "append", "default": [], "help": "a further checkpoint"},
    "--fused": {"metavar": "NAME=FOLDER", "action": "append", "default": [], "help": "another method's fused images"},
    "--a": {"metavar": "FOLDER", "help": "test on two folders of images, not on data.test: the sources A"},
    "--b": {"metavar": "FOLDER", "help": "and the sources B"},
    "--sensitivity": {"action": "store_true", "help": "also measure by the other ways to 8 bit: which ranks change?"},
    "--figure": {"metavar": "WORDS", "help": '"names=x,y boxes=x,y,w,h;...": figure.png and .pdf with enlarged boxes'},
}


def main() -> None:
    config, args = parse_args(__doc__, arguments=ARGUMENTS, default=SAMPLE)
    config.test.compare |= args.compare or args.report
    figure = Figure(args.figure) if args.figure else None
    set_up_process(config.precision)
    rank, _, device = distributed.start(config.device)
    if args.cost:
        config.ckpt = find_checkpoint(config.ckpt, "IVF")
        model = open_model(config, args.overrides, device) if config.ckpt else build_model(**config.net).to(device)
        return print_cost(model.eval(), config)
    output = Path(config.test.output)
    with open_report(output / "report", config) if args.report else nullcontext() as report:
        if args.a or args.b:
            opened = [(folder_set(args.a, args.b, config), *open_for_folders(config, args, device))]
        else:
            of_sets = open_sets(config, args.overrides, device, bool(args.fused))
            opened = [(stored_set(name, used), used, model) for name, (used, model) in of_sets.items()]
        tests = []
        for test, used, model in opened:
            ours = [Tested("", model, used)] if model else []
            tests.append((test, used, [*ours, *open_others(vars(args)["with"], config, test.task, device)]))
        for test, _, networks in () if args.overwrite else tests:
            ours = [each.config.ckpt or each.model.label for each in networks] or [label_of(args.fused[0])]
            keep_others(test, ours[0])
        shown = args.fused, args.sensitivity, report, figure
        pictures = [test_set(test, used, networks, device, *shown)[1] for test, used, networks in tests]
    if figure:
        figure.write(output)
    rows = [of_set[0] for of_set in pictures if of_set]
    if len(rows) > 1 and rank == 0:
        write_image(output / "comparison.png", stack_rows(rows))
        print(f"one pair of each set: {output}/comparison.png")
    distributed.stop()


def open_sets(
    config: Config, overrides: list[str], device: torch.device, can_be_none: bool = False
) -> dict[str, tuple[Config, FusionNetwork]]:
    """Open the network of every set in data.test, and make the H5 files that are missing.

    Args:
        overrides: key=value of the command line.
        can_be_none: as of `open_model`.

    Returns:
        {name of the set: (config with its checkpoint and the metrics that suit its task, network)}.

    Raises:
        InputError: a set, weights or metrics that cannot be used.
    """
    check_metrics(config.test.metrics)
    if not config.data.test:
        raise InputError("data.test names no set; give e.g. data.test=[MSRS_test]")
    opened: dict[str, tuple[Config, FusionNetwork]] = {}
    models: dict[str | None, FusionNetwork] = {}
    for name in config.data.test:
        task = find_task(name, config)
        metrics, note = applicable(config.test.metrics, {name: task})
        if not metrics:
            raise InputError(f"{note}, where test.metrics names no other; add one, e.g. test.metrics=[TC,Qabf]")
        if note:
            print(f"note: {note}")
        used = replace(config, ckpt=find_checkpoint(config.ckpt, task), test=replace(config.test, metrics=metrics))
        if used.ckpt not in models:
            models[used.ckpt] = open_model(used, overrides, device, can_be_none)
        opened[name] = used, models[used.ckpt]
    for name, (used, model) in opened.items():
        make_missing(name, used, model)
    return opened


def open_for_folders(
    config: Config, args: argparse.Namespace, device: torch.device
) -> tuple[Config, FusionNetwork | None]:
    """The config and the network for two folders, whose task nobody knows; None: only results of others."""
    check_metrics(config.test.metrics)
    if args.fused and "{task}" in (config.ckpt or ""):
        print("no network is in the table, as the task is not known; name one with ckpt=...")
        config = replace(config, ckpt=None)
    config = replace(config, ckpt=find_checkpoint(config.ckpt))
    return config, open_model(config, args.overrides, device, bool(args.fused))


def find_task(name: str, config: Config) -> str:
    """The task of a set, by its H5 file (empty for a published one) or else by the table of datasets."""
    path = h5_path(config.data.h5, name)
    if path.is_file():
        return recorded_task(path)
    return find_set(config, "data.test", name).task


def find_checkpoint(ckpt: str | None, task: str = "", key: str = "ckpt") -> str | None:
    """`ckpt` with a task for {task}, see `newest_checkpoint`."""
    if ckpt and "{task}" in ckpt:
        if not re.fullmatch(r"\w+", task):  # it becomes part of a file's name
            given = ckpt.replace("{task}", "IVF")
            raise InputError(f"say which weights: ckpt={given} for infrared and visible; the task is not known")
        ckpt = ckpt.replace("{task}", task)
    return newest_checkpoint(ckpt, key)


def open_model(
    config: Config, overrides: list[str], device: torch.device, can_be_none: bool = False
) -> FusionNetwork | None:
    """The network of `ckpt`, or with ckpt=null one without weights that the config names.

    Args:
        overrides: key=value of the command line.
        can_be_none: with ckpt=null and a network that has weights there is none, and the table has other methods alone.

    Raises:
        InputError: no weights, weights that cannot be used, or net.* on the command line that differ from them.
    """
    if config.ckpt is None:
        model = build_model(**config.net).to(device).eval()
        if any(True for _ in model.parameters()):
            if can_be_none:
                return None
            raise InputError("ckpt is not given; give the weights to test with ckpt=...")
    else:
        model = load_model(config.ckpt, device)
        given = {".".join(word.partition("=")[0].split(".")[:2]) for word in overrides}
        for key, value in config.net.items():
            if given & {"net", f"net.{key}"} and to_json(value) != to_json(model.config.get(key)):
                raise InputError(
                    f"net.{key} is {value} on the command line and {model.config.get(key)} in {config.ckpt}; "
                    "leave it out, or train such a network"
                )
    configure_compute(config.precision, config.test.tile, compile=config.compile)
    return model


def make_missing(name: str, config: Config, model: FusionNetwork | None) -> None:
    """Make the H5 file of a test set whose images are there, for a network if there is one; the first process does."""
    if distributed.place()[0] == 0 and not h5_path(config.data.h5, name).is_file():
        sources = [source for source in find_sources(config, [name]) if source.names.is_file()]
        makers = makers_of(model.inputs, config, model.provenance.guides) if model else {}
        problems = make_sets(sources, makers, config.data.h5, num_workers=config.data.num_workers)
        if problems:
            raise InputError("\n".join(problems))
    distributed.gather(None)  # the others wait


class Tested(NamedTuple):
    """A network of a table, with the config that has its ckpt; without a label it has the network's."""

    label: str
    model: FusionNetwork
    config: Config


def open_others(words: Sequence[str], config: Config, task: str, device: torch.device) -> list[Tested]:
    """The checkpoints of --with, LABEL=CKPT or CKPT, for a set of a task; InputError as of `load_model`."""
    others = []
    for word in words:
        label, _, path = word.rpartition("=")
        ckpt = find_checkpoint(path, task, "--with")
        others.append(Tested(label, load_model(ckpt, device), replace(config, ckpt=ckpt)))
    return others


def test_set(
    test: TestSet,
    config: Config,
    networks: Sequence[Tested],
    device: torch.device,
    fused: Sequence[str] = (),
    sensitivity: bool = False,
    report: Report | None = None,
    figure: Figure | None = None,
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Fuse one set, save the images of the first network and the numbers, print the table.

    Args:
        fused: results of others, the words of --fused; the first row if there are no networks.
        sensitivity: measure by all STRETCHES.

    Returns:
        The first row's means, and where there are several pictures of some pairs.
    """
    groups: list[Group] = []
    trainings: dict[str, dict | None] = {}  # their configs
    for label, network, used in networks:
        dataset = test.open(network.inputs)
        guidances = open_guides(used, network, [dataset], device)
        label = label or label_with_remarks(network, guidances)
        label = f"{label} ({called(used.ckpt)})" if label in trainings else label
        groups.append(Group({label: network}, dataset, guidances))
        trainings[label] = network.provenance.config
    groups = groups or [Group({}, test.open(()), {})]
    first, compare = groups[0], config.test.compare
    known = {network.name for _, network, _ in networks}
    rules = [build_model(rule) for rule in BASELINES.get(test.task, RULES) if compare and rule not in known]
    groups.append(Group({rule.label: rule.to(device).eval() for rule in rules}, first.dataset, {}))
    folders = open_folders(fused, [name for _, name in first.dataset.samples])
    blocks = published_rows(PUBLISHED, test.dataset, config.test.metrics) if compare else []
    shows = [each.add_images for each in (report, figure) if each]

    with shared_folder(test.folder, outdated=["comparison.png"]) as staged:
        stretches = STRETCHES if sensitivity else ()
        measured, pictures = fuse_set(groups, folders, config.test, device, staged, shows, stretches)
        runs = measured[config.test.stretch]
        per_image, spread = pool_seeds(runs, trainings)
        means, left_out = average_all(per_image)
        columns = list(next(iter(means.values())))  # those to a truth are further ones
        records = {kind: guidance.record for kind, guidance in first.guidances.items() if guidance.record}
        label = next(iter(means))
        summary = {
            "set": test.name,
            "dataset": test.dataset,
            "network": label,
            "ckpt": networks[0].config.ckpt if networks else None,
            "guides": {kind: {"name": r.name, "revision": r.revision} for kind, r in records.items()},
            "text": text_use(config, records.get("text")),
            "stretch": config.test.stretch,
            "as_given": [folder.label for folder in folders],
            "precision": config.precision,
            "metrics": columns,
            "mean": means,
            "std": spread,
            "left_out": left_out,
            "published": dict(blocks),
            **statistics(per_image, columns),
        }
        by_stretch = {stretch: average_all(found)[0] for stretch, found in measured.items()}
        if sensitivity:
            summary["sensitivity"] = by_stretch
        if report:
            report.add_numbers(summary, per_image)
        if distributed.place()[0] == 0:
            write_results(staged, summary, runs, pictures)
    print(f"\nguided by {describe_guidance(first.guidances)}")
    print("\n" + format_table(test.dataset, columns, means, blocks, summary))
    for row, deviations in spread.items():
        print(f"{row}: ± " + ", ".join(f"{metric} {deviation:.3f}" for metric, deviation in deviations.items()))
    if sensitivity:
        print("\n".join(rank_changes(by_stretch)))
    names = list(per_image[label])
    print(f"measured: {len(names)} images of {test.name} ({names[0]} ... {names[-1]}), 8 bit by {config.test.stretch}")
    if summary["as_given"]:
        advice = "" if config.test.stretch == "clamp" else "; compare them with test.stretch=clamp"
        print(f"as they are, not by {config.test.stretch}: {', '.join(summary['as_given'])}{advice}")
    print("\n".join([*left_out_lines(left_out), f"written: {test.folder}"]))
    return means[label], pictures


def called(ckpt: str) -> str:
    """What tells a checkpoint from another one of the same network: its run, or the file's name."""
    path = Path(ckpt)
    return path.parents[1].name if path.parent.name == "model" else path.stem


if __name__ == "__main__":
    run_script(main)
