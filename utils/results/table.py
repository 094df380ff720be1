"""Result tables: the paper's form on the screen, and files."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from utils.config import read_yaml
from utils.data.images import stack_rows, write_image
from utils.files import to_json, write_file
from utils.metrics import LOWER_IS_BETTER, PAPER_METRICS
from utils.results.statistics import SURE

PAPER_HEADER = "                 EN      SD      SF      AG     VIFF     Qabf"
LINE = "=" * 80
LABEL_WIDTH = 15
PICTURE_PAIRS = 4  # rows of comparison.png and text_study.png


def arrow(metric: str, down: str = "↓") -> str:
    """What follows a metric's name: an arrow where lower is better."""
    return down if metric in LOWER_IS_BETTER else ""


def format_table(
    dataset: str,
    metrics: list[str],
    rows: dict[str, dict[str, float]],
    blocks: list[tuple] = (),
    sure: Mapping = {},
) -> str:
    """The table of one dataset, as the published code prints it, and the first row minus each of the others.

    Args:
        metrics: columns.
        rows: {label: {metric: mean}}.
        blocks: further (title, rows) under it, e.g. published ones.
        sure: what `statistics` says of the rows.
    """
    (first, ours), *compared = rows.items()
    compared += [row for _, block in blocks for row in block.items()]
    width = max(LABEL_WIDTH, *map(len, rows), *(len(f"- {label}") for label, _ in compared))

    def line(label: str, values: list[float | None], sign: str = "", after: Sequence[str] = ()) -> str:
        cells = ["-" if value is None else f"{value:{sign}.2f}" for value in values]
        marked = (f"{cell + mark:<8}" for cell, mark in zip(cells, after or repeat("")))
        return f"{label:<{width}} {''.join(marked)}".rstrip()

    header = PAPER_HEADER
    if metrics != PAPER_METRICS:
        header = f"{'':<14}{''.join(f'{name + arrow(name):^8}' for name in metrics)}".rstrip()
    lines = [LINE, f"The test result of {dataset}:", " " * (width - LABEL_WIDTH) + header]
    for title, block in [("", rows), *blocks]:
        lines += [f"-- {title}"] if title else []
        lines += [line(label, [row.get(metric) for metric in metrics]) for label, row in block.items()]
    halves = {k: [(high - low) / 2 for low, high in of.values()] for k, of in sure.get("interval", {}).items()}
    if any(map(math.isfinite, chain(*halves.values()))):
        lines.append("-- half of the 95 % interval of the mean, by bootstrap over the images")
        lines += [line(label, values) for label, values in halves.items()]
    if compared:
        star = "; *: more than chance (signed rank, Holm)" if sure else ""
        lines.append(f"-- {first} minus the row{star}")
    for label, row in compared:
        found = sure.get("difference", {}).get(label) if label in rows else None
        stars = ["*" if found[metric]["p"] < SURE else "" for metric in metrics] if found else ()
        lines.append(line(f"- {label}", [ours[m] - row[m] if m in row else None for m in metrics], "+", stars))
    if sure and len(rows) > 1:
        places = sorted(sure["rank"].items(), key=lambda item: item[1])
        lines += ["-- mean rank over images and metrics", ", ".join(f"{label} {rank:.2f}" for label, rank in places)]
    return "\n".join([*lines, LINE])


def left_out_lines(left_out: dict[str, dict[str, list[str]]]) -> list[str]:
    """Which images have no defined value and are in no mean, {label: {metric: images}} -> a line each."""
    return [
        f"left out of the mean {metric} of {label}, undefined there: {len(images)} ({', '.join(images[:5])})"
        for label, metrics in left_out.items()
        for metric, images in metrics.items()
    ]


def escape_latex(text: str) -> str:
    """A text as LaTeX prints it."""
    words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return re.sub(r"[&%$#_{}\\^~]", lambda sign: words.get(sign[0], "\\" + sign[0]), text)


def to_paste(summary: dict, latex: bool) -> str:
    """A table ready to paste, with a `summary` as for `write_results`: LaTeX with booktabs, or Markdown.

    Best bold, second underlined, where they are so by more than chance; rows of several seeds with their standard
    deviation; published rows apart; comments name the images that are left out of a mean.
    """
    metrics, rows, places = summary["metrics"], summary["mean"], summary["marks"]
    plus_minus = r"$\pm$" if latex else "±"
    marks = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}") if latex else ("{}", "**{}**", "<u>{}</u>")

    def escape(text: str) -> str:
        return escape_latex(text) if latex else text.replace("|", r"\|")

    def line(label: str, cells: list[str]) -> str:
        cells = [escape(label), *cells]
        return " & ".join(cells) + r" \\" if latex else f"| {' | '.join(cells)} |"

    def number(value: float | None, place: int = 0, spread: float | None = None) -> str:
        if value is None or math.isnan(value):
            return "-"
        after = "" if spread is None else f" {plus_minus} {spread:.2f}"
        return marks[place].format(f"{value:.2f}") + after

    down = r"$\downarrow$" if latex else "↓"
    lines = [line(summary["dataset"], [escape(metric) + arrow(metric, down) for metric in metrics])]
    lines.append(r"\midrule" if latex else "| --- |" + " ---: |" * len(metrics))
    for label, row in rows.items():
        spread = summary["std"].get(label, {})
        lines.append(line(label, [number(row[m], places[label][m], spread.get(m)) for m in metrics]))
    for source, block in summary["published"].items():
        head = escape(f"published: {source}")
        if latex:
            lines += [r"\midrule", rf"\multicolumn{{{len(metrics) + 1}}}{{l}}{{{head}}} \\"]
        else:
            lines.append(f"| {head} |" + " |" * len(metrics))
        lines += [line(label, [number(row.get(metric)) for metric in metrics]) for label, row in block.items()]
    if latex:
        begin = rf"\begin{{tabular}}{{l{'c' * len(metrics)}}}"
        lines = [begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]
    comments = [f"% {text}" if latex else f"<!-- {text} -->" for text in left_out_lines(summary["left_out"])]
    return "\n".join([*lines, *comments, ""])


def published_rows(
    path: str | Path, dataset: str, metrics: Sequence[str]
) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Others' results on a dataset with one of `metrics`: (where from, on which images; {method: {metric: mean}})."""
    return [
        (entry["source"], {label: dict(zip(entry["columns"], row)) for label, row in entry["rows"].items()})
        for entry in read_yaml(path).get(dataset, [])
        if {*entry["columns"]} & {*metrics}
    ]


def write_csv(
    path: Path, per_image: dict[str, dict[str, dict[str, float]]], stretch: str, as_given: Sequence[str] = ()
) -> None:
    """Write {label: {image: {metric: value}}} tidily: a row for each method, image and metric.

    `as_given`: labels of results that were read in 8 bit, and not stretched.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["method", "image", "metric", "value", "stretch"])
    for label, images in per_image.items():
        for image, values in images.items():
            how = "as given" if label in as_given else stretch
            table.writerows([label, image, metric, value, how] for metric, value in values.items())
    write_file(path, text.getvalue())


def write_results(
    folder: Path,
    summary: dict,
    per_image: dict[str, dict[str, dict[str, float]]],
    pictures: Sequence[np.ndarray] = (),
) -> None:
    """Write metrics.json (summary, all values), metrics.csv (a row for each image), table.tex and table.md (means).

    Args:
        folder: where to; every file is replaced as a whole.
        summary: JSON-ready facts of the run, with "dataset", "metrics", "stretch", "mean" {label: {metric: mean}},
            "published" {source: rows like those of mean}, "left_out" {label: {metric: images}}, "std" {label: {metric:
            deviation}} of rows that are of several seeds, what `statistics` gives, perhaps "as_given" of `write_csv`.
        per_image: {label: {image: {metric: value}}}.
        pictures: of some pairs, (H, W, 3) BGR uint8; comparison.png has them under each other.
    """
    write_csv(folder / "metrics.csv", per_image, summary["stretch"], summary.get("as_given", ()))
    write_file(folder / "table.tex", to_paste(summary, latex=True))
    write_file(folder / "table.md", to_paste(summary, latex=False))
    write_file(folder / "metrics.json", to_json(summary | {"per_image": per_image}, indent=1))
    if pictures:
        write_image(folder / "comparison.png", stack_rows(pictures))
