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

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from net import FusionNetwork, build_model, configure_compute, load_model
from utils import distributed
from utils.config import Config, parse_args
from utils.data.h5 import attribute, check_shape, h5_path, open_h5, recorded_task
from utils.data.images import stack_rows, write_image
from utils.data.make import make_sets
from utils.data.pairs import PairDataset
from utils.data.sources import find_set, find_sources
from utils.errors import InputError, run_script
from utils.files import newest_checkpoint, plain_name, to_json
from utils.guides import describe_guidance, label_with_remarks, makers_of, open_guides
from utils.guides.text import text_use
from utils.metrics import check_metrics
from utils.process import set_up_process
from utils.results.cost import print_cost
from utils.results.evaluate import applicable, average_all, fuse_set, shared_folder
from utils.results.report import Report, open_report
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
}


def main() -> None:
    config, args = parse_args(__doc__, arguments=ARGUMENTS, default=SAMPLE)
    config.test.compare |= args.compare or args.report
    set_up_process(config.precision)
    rank, _, device = distributed.start(config.device)
    if args.cost:
        config.ckpt = find_checkpoint(config.ckpt, "IVF")
        model = open_model(config, args.overrides, device) if config.ckpt else build_model(**config.net).to(device)
        return print_cost(model.eval(), config)
    output = Path(config.test.output)
    with open_report(output / "report", config) if args.report else nullcontext() as report:
        opened = open_sets(config, args.overrides, device)
        if not args.overwrite:
            keep_others(opened)
        pictures = [test_set(name, used, model, device, report)[1] for name, (used, model) in opened.items()]
    rows = [of_set[0] for of_set in pictures if of_set]
    if len(rows) > 1 and rank == 0:
        write_image(output / "comparison.png", stack_rows(rows))
        print(f"one pair of each set: {output}/comparison.png")
    distributed.stop()


def open_sets(config: Config, overrides: list[str], device: torch.device) -> dict[str, tuple[Config, FusionNetwork]]:
    """Open the network of every set in data.test, and make the H5 files that are missing.

    Args:
        overrides: key=value of the command line.

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
            models[used.ckpt] = open_model(used, overrides, device)
        opened[name] = used, models[used.ckpt]
    for name, (used, model) in opened.items():
        make_missing(name, used, model)
    return opened


def find_task(name: str, config: Config) -> str:
    """The task of a set, by its H5 file (empty for a published one) or else by the table of datasets."""
    path = h5_path(config.data.h5, name)
    if path.is_file():
        return recorded_task(path)
    return find_set(config, "data.test", name).task


def find_checkpoint(ckpt: str | None, task: str = "") -> str | None:
    """`ckpt` with a task for {task}, see `newest_checkpoint`."""
    if ckpt and "{task}" in ckpt:
        if not re.fullmatch(r"\w+", task):  # it becomes part of a file's name
            given = ckpt.replace("{task}", "IVF")
            raise InputError(f"say which weights: ckpt={given} for infrared and visible; the task is not known")
        ckpt = ckpt.replace("{task}", task)
    return newest_checkpoint(ckpt, "ckpt")


def open_model(config: Config, overrides: list[str], device: torch.device) -> FusionNetwork:
    """The network of `ckpt`, or with ckpt=null one without weights that the config names.

    Args:
        overrides: key=value of the command line.

    Raises:
        InputError: no weights, weights that cannot be used, or net.* on the command line that differ from them.
    """
    if config.ckpt is None:
        model = build_model(**config.net).to(device).eval()
        if any(True for _ in model.parameters()):
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


def make_missing(name: str, config: Config, model: FusionNetwork) -> None:
    """Make the H5 file of a test set whose images are there, for a network; the first process does."""
    if distributed.place()[0] == 0 and not h5_path(config.data.h5, name).is_file():
        sources = [source for source in find_sources(config, [name]) if source.names.is_file()]
        makers = makers_of(model.inputs, config, model.provenance.guides)
        problems = make_sets(sources, makers, config.data.h5, num_workers=config.data.num_workers)
        if problems:
            raise InputError("\n".join(problems))
    distributed.gather(None)  # the others wait


def keep_others(opened: dict[str, tuple[Config, FusionNetwork]]) -> None:
    """InputError if the results of a set of `open_sets` would replace those of other weights."""
    for name, (config, model) in opened.items():
        folder, ours = result_folder(name, config), config.ckpt or model.label
        try:
            there = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            theirs = there["ckpt"] or there["network"]
        except (OSError, ValueError, TypeError, KeyError):  # there are none, or they are damaged
            continue
        if theirs != ours:
            raise InputError(
                f"{folder} has the results of {theirs}; replace them by those of {ours} with --overwrite, or choose "
                "another place with test.output=..."
            )


def dataset_of(name: str, config: Config) -> str:
    """The dataset of a set, as its H5 file says or by its name."""
    path = h5_path(config.data.h5, name)
    with open_h5(path) as file:
        dataset = attribute(file, "dataset") or name.rpartition("_")[0] or name
    if not plain_name(dataset):
        raise InputError(f"{path} is of a dataset {dataset!r}, which is no plain name; make it again")
    return dataset


def result_folder(name: str, config: Config) -> Path:
    """Where the results of a set go: to its dataset's folder, or to its own if data.test names several of a dataset."""
    dataset = dataset_of(name, config)
    same = [other for other in config.data.test if other.rpartition("_")[0] == dataset]
    return Path(config.test.output) / (dataset if same == [name] else name)


def test_set(
    name: str, config: Config, model: FusionNetwork, device: torch.device, report: Report | None = None
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Fuse one set, save the images and the numbers, print the table.

    Returns:
        The network's means, and with test.compare pictures of some pairs.
    """
    path = h5_path(config.data.h5, name)
    dataset = PairDataset([path], model.inputs, chroma=True)
    check_shape(path, config.data, training=False)
    guidances = open_guides(config, model, [dataset], device)
    dataset_name, task, folder = dataset_of(name, config), recorded_task(path), result_folder(name, config)

    compare = config.test.compare
    blocks = published_rows(PUBLISHED, dataset_name) if compare else []
    rules = [build_model(rule) for rule in BASELINES.get(task, RULES) if compare and rule != model.name]
    label = label_with_remarks(model, guidances)
    networks = {label: model} | {rule.label: rule.to(device).eval() for rule in rules}
    with shared_folder(folder, outdated=["comparison.png"]) as staged:
        show = report.add_images if report else None
        per_image, pictures = fuse_set(networks, dataset, guidances, config.test, device, staged, show)
        means, left_out = average_all(per_image)
        records = {kind: guidance.record for kind, guidance in guidances.items() if guidance.record}
        summary = {
            "set": name,
            "dataset": dataset_name,
            "network": label,
            "ckpt": config.ckpt,
            "guides": {kind: {"name": r.name, "revision": r.revision} for kind, r in records.items()},
            "text": text_use(config, records.get("text")),
            "stretch": config.test.stretch,
            "precision": config.precision,
            "metrics": config.test.metrics,
            "mean": means,
            "left_out": left_out,
            "published": dict(blocks),
        }
        if report:
            report.add_numbers(summary, per_image)
        if distributed.place()[0] == 0:
            write_results(staged, summary, per_image, pictures)
    print(f"\nguided by {describe_guidance(guidances)}")
    print("\n" + format_table(dataset_name, config.test.metrics, means, blocks))
    names = list(per_image[label])
    print(f"measured: {len(names)} images of {name} ({names[0]} ... {names[-1]}), 8 bit by {config.test.stretch}")
    print("\n".join([*left_out_lines(left_out), f"written: {folder}"]))
    return means[label], pictures


if __name__ == "__main__":
    run_script(main)
