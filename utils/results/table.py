"""Result tables: the paper's form on the screen, and files."""

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.config import read_yaml
from utils.data.images import stack_rows, write_image
from utils.files import to_json, write_file
from utils.metrics import LOWER_IS_BETTER

PAPER_METRICS = ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]
PAPER_HEADER = "                 EN      SD      SF      AG     VIFF     Qabf"
LINE = "=" * 80
LABEL_WIDTH = 15
PICTURE_PAIRS = 4  # rows of comparison.png and text_study.png


def arrow(metric: str, down: str = "↓") -> str:
    """What follows a metric's name: an arrow where lower is better."""
    return down if metric in LOWER_IS_BETTER else ""


def format_row(label: str, values: list[float | None], sign: str = "", width: int = LABEL_WIDTH) -> str:
    """`label` and values with two decimals, "-" where there is none, in the columns of the paper's tables."""
    cells = ("-" if value is None else f"{value:{sign}.2f}" for value in values)
    return f"{label:<{width}} {''.join(f'{cell:<8}' for cell in cells)}".rstrip()


def format_table(dataset: str, metrics: list[str], rows: dict[str, dict[str, float]], blocks: list[tuple] = ()) -> str:
    """The table of one dataset, as the published code prints it.

    Args:
        dataset: name in the title.
        metrics: columns.
        rows: {label: {metric: mean}}.
        blocks: further (title, rows) under it; with them come the differences of the first row to all others.
    """
    header = PAPER_HEADER
    if metrics != PAPER_METRICS:
        header = f"{'':<14}{''.join(f'{name + arrow(name):^8}' for name in metrics)}".rstrip()
    labels = [
        *rows,
        *(f"- {label}" for label in list(rows)[1:]),
        *(f"- {label}" for _, others in blocks for label in others),
    ]
    width = max(LABEL_WIDTH, *map(len, labels))  # as in the paper, unless a name is longer
    lines = [LINE, f"The test result of {dataset}:", " " * (width - LABEL_WIDTH) + header]
    lines += [format_row(label, [row.get(m) for m in metrics], width=width) for label, row in rows.items()]
    first, ours = next(iter(rows.items()))
    differences = []
    for title, others in [("", dict(list(rows.items())[1:])), *blocks]:
        if title:
            lines += [
                f"-- {title}",
                *(format_row(label, [row.get(m) for m in metrics], width=width) for label, row in others.items()),
            ]
        differences += [
            format_row(f"- {label}", [ours[m] - row[m] if m in row else None for m in metrics], "+", width)
            for label, row in others.items()
        ]
    if differences:
        lines += [f"-- {first} minus the row", *differences]
    return "\n".join([*lines, LINE])


def ranks(rows: dict[str, dict[str, float]], metrics: list[str]) -> dict[str, dict[str, int]]:
    """By label and metric 1 for the best and 2 for the second best, of the values as printed; 0 for the others."""
    places: dict[str, dict[str, int]] = {label: {} for label in rows}
    for metric in metrics:
        sign = 1 if metric in LOWER_IS_BETTER else -1
        values = {label: sign * round(row[metric], 2) for label, row in rows.items() if not math.isnan(row[metric])}
        order = sorted(set(values.values()))[:2]
        for label in rows:
            places[label][metric] = order.index(values[label]) + 1 if values.get(label) in order else 0
    return places


def left_out_lines(left_out: dict[str, dict[str, list[str]]]) -> list[str]:
    """Which images have no defined value and are in no mean, {label: {metric: images}} -> a line each."""
    return [
        f"left out of the mean {metric} of {label}, undefined there: {len(images)} ({', '.join(images[:5])})"
        for label, metrics in left_out.items()
        for metric, images in metrics.items()
    ]


def to_paste(summary: dict, latex: bool) -> str:
    """A table ready to paste: LaTeX with booktabs, or Markdown. Best bold, second underlined, published rows apart.

    What is left out of the means is named in comments.

    Args:
        summary: as for `write_results`.
    """
    metrics, rows, places = summary["metrics"], summary["mean"], ranks(summary["mean"], summary["metrics"])
    marks = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}") if latex else ("{}", "**{}**", "<u>{}</u>")

    def escape(text: str) -> str:
        if not latex:
            return text.replace("|", r"\|")
        words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
        return re.sub(r"[&%$#_{}\\^~]", lambda sign: words.get(sign[0], "\\" + sign[0]), text)

    def line(label: str, cells: list[str]) -> str:
        return " & ".join([escape(label), *cells]) + r" \\" if latex else f"| {' | '.join([escape(label), *cells])} |"

    def number(row: dict[str, float], metric: str, place: int = 0) -> str:
        value = row.get(metric)
        return "-" if value is None or math.isnan(value) else marks[place].format(f"{value:.2f}")

    down = r"$\downarrow$" if latex else "↓"
    heads = [escape(metric) + arrow(metric, down) for metric in metrics]
    measured = [line(label, [number(row, m, places[label][m]) for m in metrics]) for label, row in rows.items()]
    published = [
        [
            escape(f"published: {source}"),
            *(line(label, [number(row, m) for m in metrics]) for label, row in block.items()),
        ]
        for source, block in summary["published"].items()
    ]
    if latex:
        blocks = [
            [r"\midrule", rf"\multicolumn{{{len(metrics) + 1}}}{{l}}{{{head}}} \\", *body] for head, *body in published
        ]
        start = [
            rf"\begin{{tabular}}{{l{'c' * len(metrics)}}}",
            r"\toprule",
            line(summary["dataset"], heads),
            r"\midrule",
        ]
        lines = [*start, *measured, *itertools.chain(*blocks), r"\bottomrule", r"\end{tabular}"]
    else:
        blocks = [[f"| {head} |" + " |" * len(metrics), *body] for head, *body in published]
        start = [line(summary["dataset"], heads), "| --- |" + " ---: |" * len(metrics)]
        lines = [*start, *measured, *itertools.chain(*blocks)]
    comments = [f"% {line}" if latex else f"<!-- {line} -->" for line in left_out_lines(summary["left_out"])]
    return "\n".join([*lines, *comments, ""])


def published_rows(path: str | Path, dataset: str) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Published results on a dataset: (where from and on which images, {method: {metric: mean}})."""
    return [
        (entry["source"], {label: dict(zip(entry["columns"], row)) for label, row in entry["rows"].items()})
        for entry in read_yaml(path).get(dataset, [])
    ]


def write_results(
    folder: Path,
    summary: dict,
    per_image: dict[str, dict[str, dict[str, float]]],
    pictures: Sequence[np.ndarray] = (),
) -> None:
    """metrics.json (summary, all values), metrics.csv (a line per network and image, the means), table.tex, table.md.

    Args:
        folder: where to; every file is replaced as a whole.
        summary: JSON-ready facts of the run, with "dataset", "metrics", "mean" {label: {metric: mean}},
            "published" {source: rows like those of mean} and "left_out" {label: {metric: images}}.
        per_image: {label: {image: {metric: value}}}.
        pictures: of some pairs, (H, W, 3) BGR uint8; comparison.png has them under each other.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    metrics = summary["metrics"]
    table.writerow(["network", "image", *metrics, "stretch"])
    for label, images in per_image.items():
        for name, row in [*images.items(), ("mean", summary["mean"][label])]:
            table.writerow([label, name, *(row[metric] for metric in metrics), summary["stretch"]])
    write_file(folder / "metrics.csv", text.getvalue())
    write_file(folder / "table.tex", to_paste(summary, latex=True))
    write_file(folder / "table.md", to_paste(summary, latex=False))
    write_file(folder / "metrics.json", to_json(summary | {"per_image": per_image}, indent=1))
    if pictures:
        write_image(folder / "comparison.png", stack_rows(pictures))
