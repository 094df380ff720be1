"""Test a fusion network: fused images, and the paper's tables.

    python test.py                                                     the sample, with the weights that ship
    python test.py --config configs/film_ivf.yaml                      every test set of the config
    python test.py --config configs/film_ivf.yaml ckpt=exp/<run>/model/last.pth --compare
    python test.py --a ir.png --b vis.png --out fused.png --text-a "..." --text-b "..."
    python test.py --a folder_a --b folder_b --out folder              pairs of equal names
    python test.py --config configs/film_ivf.yaml --text-study         does the text matter?
    python test.py --config ... ckpt=... --export models/IVF.safetensors   test and write half-precision weights

A test set writes <test.output>/<dataset>/Gray/<name>.png and RGB/<name>.png, metrics.csv, metrics.json, and
table.tex and table.md to paste. With --compare (or test.compare=true) the weight-free rules and published
results stand beside it, and comparison.png shows some pairs; --report adds a page for the browser,
<test.output>/report. Results come to their place when a set is done. test.stretch says how the network's
output becomes 8 bit: minmax, the published stretch of every image to its own range, or clamp.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import Config, parse_args, pick_device
from utils.errors import InputError, run

# what takes seconds to import is imported where it is used, so that --help and mistakes are answered at once
if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from utils.guides.text import TextEncoder
    from utils.results.report import Report

BASELINES = ["mean", "max", "laplacian"]
PUBLISHED = "configs/paper_tables.yaml"
PICTURE_PAIRS = 4  # rows of comparison.png

ARGUMENTS = {
    "--compare": {"action": "store_true", "help": "add weight-free rules, published results, a picture"},
    "--report": {"action": "store_true", "help": "also write <test.output>/report, a page for the browser"},
    "--a": {"metavar": "PATH", "help": "image or folder of source A (IR, MRI, OVER, NEAR)"},
    "--b": {"metavar": "PATH", "help": "image or folder of source B (VI, T, UNDER, FAR)"},
    "--out": {"metavar": "PATH", "help": "fused image, or folder for them"},
    "--text-a": {"metavar": "TEXT", "help": "what A shows: the text, a .txt, or a folder of <name>.txt"},
    "--text-b": {"metavar": "TEXT", "help": "what B shows, likewise"},
    "--text-study": {"action": "store_true", "help": "fuse with own, another's, the default text and one sentence"},
    "--export": {
        "metavar": "FILE",
        "help": "write the weights in half precision, tested so: a .safetensors, or a folder to share",
    },
    "--sentence": {"metavar": "TEXT", "default": "An image.", "help": "that sentence"},
}


def main() -> None:
    config, args = parse_args(__doc__, arguments=ARGUMENTS, default="configs/sample.yaml")
    own = [args.a, args.b, args.out]
    if any(own) and not all(own):
        raise InputError("a pair of your own needs all of --a, --b and --out")
    sets_only = [flag for flag in ("text_study", "export", "report") if any(own) and getattr(args, flag)]
    if sets_only:
        raise InputError(f"--{sets_only[0].replace('_', '-')} is for test sets, not for a pair of --a and --b")
    if args.export and (args.text_study or "{task}" in (config.ckpt or "{task}")):
        raise InputError("--export tests one checkpoint on its sets; give ckpt=..., and no --text-study")
    if args.export and Path(args.export).suffix in (".pth", ".pt", ".bin", ".ckpt", ".onnx"):
        raise InputError(f"--export writes a .safetensors, or a folder, not {args.export}")
    if args.report and args.text_study:
        raise InputError("--report shows test sets; the text study draws a picture of its own")
    if not any(own) and not config.data.test:
        raise InputError("data.test names no set; give e.g. data.test=[MSRS_test], or a pair with --a, --b and --out")
    from net.checkpoint import checkpoint_of, save_weights
    from utils.data.images import stack_rows, write_image
    from utils.files import git
    from utils.results.evaluate import check_metrics
    from utils.results.report import new_report

    device = pick_device(config.device)
    check_metrics(config.test.metrics)
    config.test.compare |= args.compare
    if any(own):
        config = replace(config, ckpt=find_checkpoint(config, None))
        fuse_own(open_model(config, device), config, args, device)
        return
    make_missing(config)
    metrics, rows = {}, []
    place = Path(config.test.output) / "report"
    with new_report(place, config, git("rev-parse", "HEAD")) if args.report else nullcontext() as report:
        for name in config.data.test:
            used = replace(config, ckpt=find_checkpoint(config, name))
            model = open_model(used, device, half=bool(args.export))
            if args.export:
                check_export(args.export, model)
            if args.text_study:
                study_set(model, name, used, device, args.sentence)
            else:
                metrics[name], pictures = test_set(model, name, used, device, report)
                rows += pictures[:1]
    if report:
        print(f"open in a browser: {place}/index.html")
    if len(config.data.test) > 1 and rows:
        path = Path(config.test.output) / "comparison.png"
        write_image(path, stack_rows(rows))
        print(f"one pair of each set: {path}")
    if args.export:
        model.facts["metrics"] = metrics
        if Path(args.export).suffix == ".safetensors":
            save_weights(args.export, checkpoint_of(model))
        else:
            model.save_pretrained(args.export)
        print(f"weights in half precision, measured as above: {args.export}")


def find_checkpoint(config: Config, name: str | None) -> str | None:
    """`ckpt` with the task of a set for {task}, and the newest file for a *; `name` is None for a pair of one's own."""
    from utils.data.h5 import h5_path, task_of

    ckpt = config.ckpt
    if ckpt and "{task}" in ckpt:
        if name is None:
            example = ckpt.replace("{task}", "IVF")
            raise InputError(f"say which weights a pair of your own is for: ckpt={example} for infrared and visible")
        ckpt = ckpt.replace("{task}", task_of(h5_path(config.data.h5, name)))
    if ckpt and "*" in ckpt:
        path = Path(ckpt)
        try:
            found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))), key=lambda p: p.stat().st_mtime)
        except ValueError as error:
            raise InputError(f"ckpt={ckpt} is no pattern ({error}); a * stands for a part of a name") from error
        if not found:
            raise InputError(f"there is no checkpoint {ckpt}; train first, or give one with ckpt=...")
        ckpt = str(found[-1])
        print(f"weights: {ckpt}")
    return ckpt


def check_export(place: str, model: nn.Module) -> None:
    """InputError if a network cannot be exported to a place; better now than after the test."""
    from net.hub import Shared, check_place

    if Path(place).suffix == ".safetensors":
        return
    if not isinstance(model, Shared):
        raise InputError(f"--export to a folder is for FILM, MGFusion and what is built on them, not {model.label}")
    check_place(Path(place))


def make_missing(config: Config) -> None:
    """Make the H5 files of test sets whose images are there and which have none yet."""
    from utils.data.h5 import h5_path

    missing = [name for name in config.data.test if not h5_path(config.data.h5, name).is_file()]
    if missing:
        from data_process import find_sources, make_sets

        sources = [source for source in find_sources(config, missing) if source.names.is_file()]
        problems = make_sets(sources, config)
        if problems:
            raise InputError("\n".join(problems))


def open_model(config: Config, device: torch.device, half: bool = False) -> nn.Module:
    """The network of `ckpt`, or one without weights that the config names with ckpt=null.

    Args:
        half: round the weights to half precision, as --export writes them.
    """
    from net import build_model, load_model, prepare
    from net.checkpoint import halved

    if config.ckpt is None:
        model = build_model(**config.net)
        if any(True for _ in model.parameters()):
            raise InputError("ckpt is not given; give the weights to test with ckpt=...")
        model.to(device).eval()
    else:
        model = load_model(config.ckpt, device)
    if half:
        model.load_state_dict(halved(model.state_dict()))
    prepare(model, config.precision, config.test.tile, compile=config.compile)
    return model


def test_set(
    model: nn.Module, name: str, config: Config, device: torch.device, report: Report | None = None
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Fuse one set, save the images and the numbers, print the table; returns the network's means, and pictures."""
    from tqdm import tqdm

    from net import build_model
    from utils.data.h5 import attribute, h5_path, open_h5, text_encoder_of
    from utils.data.images import colorize, side_by_side, stack_rows, to_8bit, write_image
    from utils.data.pairs import PairDataset
    from utils.files import plain_name, replacing
    from utils.guides.clip import describe_clip, label_of, open_clip
    from utils.results.evaluate import Evaluator, average_all, fuse_set, sources_8bit
    from utils.results.table import format_table, left_out_lines, published_rows, write_results

    path, compare = h5_path(config.data.h5, name), config.test.compare or report is not None
    dataset = PairDataset([path], model.inputs, chroma=True)
    if config.text.use == "default" and "text" in model.inputs:
        if model.text is None:
            raise InputError(f"text.use=default needs weights with a default text; {config.ckpt} has none")
        dataset.only_text = model.text.default
    clip = open_clip(config.clip, model, [dataset], device)
    with open_h5(path) as file:
        dataset_name = attribute(file, "dataset") or name.rpartition("_")[0] or name
    if not plain_name(dataset_name):
        raise InputError(f"{path} is of a dataset {dataset_name!r}, which is no plain name; make it again")
    encoder = text_encoder_of(path) if "text" in model.inputs else ""
    same = [other for other in config.data.test if other.rpartition("_")[0] == dataset_name]
    folder = Path(config.test.output) / (dataset_name if same == [name] else name)

    note_encoder(model, name, encoder)
    blocks = published_rows(PUBLISHED, dataset_name) if compare else []

    rules = [rule for rule in BASELINES if compare and rule != model.config["name"]]
    models = [model, *(build_model(rule).to(device).eval() for rule in rules)]
    labels = [label_of(m) for m in models]
    evaluators = [Evaluator(config.test.metrics, device) for _ in models]
    pictures = []
    with replacing(folder, outdated=["comparison.png"]) as staged:
        fused_pairs = fuse_set(models, dataset, device, config.test.num_workers, clip=clip)
        for batch, outputs in tqdm(fused_pairs, total=len(dataset), desc=name, unit="pair"):
            image, image_a, image_b = batch["name"][0], *sources_8bit(batch)
            fused = [to_8bit(output, config.test.stretch) for output in outputs]
            for evaluator, result in zip(evaluators, fused):
                evaluator.add(image, result, image_a, image_b)
            color = colorize(fused[0], batch["chroma"][0].numpy())
            write_image(staged / "Gray" / f"{image}.png", fused[0])
            write_image(staged / "RGB" / f"{image}.png", color)
            shown = {"A": image_a, "B": image_b, labels[0]: fused[0], "in colour": color}
            shown |= dict(zip(labels[1:], fused[1:]))
            if compare and len(pictures) < PICTURE_PAIRS:
                pictures.append(side_by_side(list(shown.values()), list(shown)))
            if report:
                report.add_images(name, image, shown)

        per_image = {label: evaluator.results() for label, evaluator in zip(labels, evaluators)}
        means, left_out = average_all(per_image)
        summary = {
            "set": name,
            "dataset": dataset_name,
            "network": labels[0],
            "ckpt": config.ckpt,
            "text_encoder": encoder or None,
            "text": config.text.use,
            "clip": model.clip,
            "stretch": config.test.stretch,
            "precision": config.precision,
            "images": len(dataset),
            "metrics": config.test.metrics,
            "mean": means,
            "left_out": left_out,
            "published": dict(blocks),
        }
        write_results(staged, summary, per_image)
        if report:
            report.add_numbers(summary, per_image)
        if pictures:
            write_image(staged / "comparison.png", stack_rows(pictures))
    if model.clip:
        print(f"\nguided by {describe_clip(model.clip)}")
    print("\n" + format_table(dataset_name, config.test.metrics, means, blocks))
    names = list(per_image[labels[0]])
    print(f"measured: {len(names)} images of {name} ({names[0]} ... {names[-1]}), 8 bit by {config.test.stretch}")
    print("\n".join([*left_out_lines(left_out), f"written: {folder}"]))
    return means[labels[0]], pictures


def note_encoder(model: nn.Module, name: str, encoder: str) -> None:
    """Say so if the text of a set is of another encoder than the network was trained with."""
    if model.text and encoder not in ("", model.text.name):
        print(f"note: {name} has text of the encoder {encoder}, the network was trained with {model.text.name}")


def study_set(model: nn.Module, name: str, config: Config, device: torch.device, sentence: str) -> None:
    """The text study on one set; see utils/study.py."""
    import torch

    from utils.data.h5 import h5_path, text_encoder_of
    from utils.data.pairs import PairDataset
    from utils.files import replacing
    from utils.results.evaluate import check_inputs
    from utils.results.study import text_study

    if "text" not in model.inputs:
        raise InputError(f"{model.label} reads no text; --text-study needs a network that does")
    dataset = PairDataset([h5_path(config.data.h5, name)], model.inputs)
    check_inputs(model, dataset)
    if len(dataset) < 2:
        raise InputError(f"{name} has one pair; --text-study gives each the text of another and needs two")
    note_encoder(model, name, text_encoder_of(h5_path(config.data.h5, name)))
    (feature,) = open_text_encoder(model, config, device).encode([sentence])
    folder = Path(config.test.output) / f"{name}_text_study"
    with replacing(folder) as staged:
        text_study(model, dataset, name, sentence, torch.from_numpy(feature), config, device, staged)
    print(f"written: {folder}")


def fuse_own(model: nn.Module, config: Config, args, device: torch.device) -> None:
    """Fuse one pair, or all pairs of two folders; results have colour where a source has."""
    import torch
    from tqdm import tqdm

    from utils.data.images import (
        as_unit,
        check_writable,
        colorize,
        list_images,
        merge_chroma,
        read_image,
        to_8bit,
        write_image,
    )
    from utils.guides.clip import describe_clip, open_clip
    from utils.results.evaluate import fuse_one

    a, b, out = Path(args.a), Path(args.b), Path(args.out)
    if a.is_dir() != b.is_dir():
        raise InputError(f"--a {a} and --b {b} must be two images or two folders")
    pairs = {a.stem: (a, b, out)}
    if a.is_dir():
        found = [list_images(folder) for folder in (a, b)]
        alone = sorted(
            found[0].keys() ^ found[1].keys() | {n for f in found for n, paths in f.items() if len(paths) > 1}
        )
        if alone or not found[0]:
            names = ", ".join(alone) or "no images at all"
            raise InputError(f"the folders {a} and {b} must hold one image of each name; they do not for: {names}")
        pairs = {name: (paths[0], found[1][name][0], out / f"{name}.png") for name, paths in found[0].items()}
    else:
        check_writable(out)
    for *sources, target in pairs.values():
        if target.resolve() in [source.resolve() for source in sources]:
            raise InputError(f"--out {out} would write over the source {target}; choose another place")
    texts = own_texts(model, config, args, list(pairs), device)
    clip = open_clip(config.clip, model, [], device)
    if clip:
        print(f"guided by {describe_clip(model.clip)}")
    problems = []
    for name, (path_a, path_b, path_out) in tqdm(pairs.items(), unit="pair", disable=len(pairs) < 2):
        try:
            sources = [read_image(path) for path in (path_a, path_b)]
            (image_a, chroma_a), (image_b, chroma_b) = sources
            if image_a.shape != image_b.shape:
                sizes = " and ".join("{} x {}".format(*image.shape) for image in (image_a, image_b))
                raise InputError(f"{path_a} and {path_b} have unequal sizes, {sizes} pixels; register them first")
            images = [torch.from_numpy(as_unit(image))[None, None] for image in (image_a, image_b)]
            batch = {"name": [name], "image_a": images[0], "image_b": images[1]}
            if texts:
                batch["text"] = texts[name][None]
                batch["text_mask"] = torch.ones(batch["text"].shape[:2], dtype=torch.bool)
            (fused,) = fuse_one([model], batch, device, clip)
            chroma = merge_chroma([chroma_a, chroma_b])
            result = to_8bit(fused, config.test.stretch)
            write_image(path_out, result if chroma is None else colorize(result, chroma))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    print(f"{len(pairs)} fused, 8 bit by {config.test.stretch}: {out}")


def own_texts(model: nn.Module, config: Config, args, names: list[str], device) -> dict[str, torch.Tensor]:
    """The text feature (L, dim) of each pair: encoded from --text-a and --text-b, else the checkpoint's default.

    Empty for a network that reads no text.
    """
    import torch

    if "text" not in model.inputs:
        return {}
    if not (args.text_a and args.text_b):
        if args.text_a or args.text_b:
            raise InputError("give both --text-a and --text-b, or none for the checkpoint's default text")
        if model.text is None:
            raise InputError(f"{config.ckpt} carries no default text; describe the pair with --text-a and --text-b")
        print("no text given: the checkpoint's default text feature is used")
        return dict.fromkeys(names, model.text.default)
    encoder = open_text_encoder(model, config, device)
    pairs = [tuple(own_paragraph(text, name) for text in (args.text_a, args.text_b)) for name in names]
    return dict(zip(names, map(torch.from_numpy, encoder.encode_pairs(pairs, config.text.batch_size))))


def open_text_encoder(model: nn.Module, config: Config, device) -> TextEncoder:
    """The text encoder a network was trained with; InputError if it is of another width."""
    from utils.guides.text import TextEncoder

    trained = model.text or config.text
    encoder = TextEncoder(trained.encoder, config.text.path or trained.path, device)
    if encoder.dim != model.config["text_dim"]:
        raise InputError(
            f"the text encoder {encoder.name} is {encoder.dim} wide and {config.ckpt} takes "
            f"{model.config['text_dim']}; set text.path to the one it was trained with"
        )
    return encoder


def own_paragraph(text: str, name: str) -> str:
    """--text-a or --text-b for one pair: a folder of <name>.txt, a .txt, or the text itself."""
    path = Path(text)
    if len(text) < 256 and path.is_dir():
        path = path / f"{name}.txt"
    elif path.suffix != ".txt":
        return text
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}") from error


if __name__ == "__main__":
    run(main)
