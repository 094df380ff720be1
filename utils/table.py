"""Result tables: the paper's form on the screen, and files."""

import csv
import io
from pathlib import Path

from utils.config import read_yaml
from utils.files import to_json, write_file
from utils.metrics import LOWER_IS_BETTER

PAPER_METRICS = ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]
PAPER_HEADER = "                 EN      SD      SF      AG     VIFF     Qabf"
LINE = "=" * 80


LABEL_WIDTH = 15


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
        names = (name + "↓" * (name in LOWER_IS_BETTER) for name in metrics)  # lower is better
        header = f"{'':<14}{''.join(f'{name:^8}' for name in names)}".rstrip()
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


def published_rows(path: str | Path, dataset: str) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Published results on a dataset: (where from and on which images, {method: {metric: mean}})."""
    return [
        (entry["source"], {label: dict(zip(entry["columns"], row)) for label, row in entry["rows"].items()})
        for entry in read_yaml(path).get(dataset, [])
    ]


def write_results(folder: Path, summary: dict, per_image: dict[str, dict[str, dict[str, float]]]) -> None:
    """metrics.json (summary and all values) and metrics.csv (a line per network and image, then the means).

    Args:
        folder: where to; both files are replaced as a whole.
        summary: JSON-ready facts of the run, with "metrics" and "mean" {label: {metric: mean}}.
        per_image: {label: {image: {metric: value}}}.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    metrics = summary["metrics"]
    table.writerow(["network", "image", *metrics, "stretch"])
    for label, images in per_image.items():
        for name, row in [*images.items(), ("mean", summary["mean"][label])]:
            table.writerow([label, name, *(row[metric] for metric in metrics), summary["stretch"]])
    write_file(folder / "metrics.csv", text.getvalue())
    write_file(folder / "metrics.json", to_json(summary | {"per_image": per_image}, indent=1))
