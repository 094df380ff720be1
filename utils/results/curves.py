"""A picture of how a training went."""

import io
import json
from pathlib import Path

from utils.files import write_file


def draw_curves(records: Path, picture: Path) -> None:
    """Loss, its terms, learning rate and validation metrics over the epochs, from metrics.jsonl to a PNG."""
    from matplotlib.figure import Figure  # half a second to import

    curves: dict[str, list[tuple[float, float]]] = {}
    epoch_steps: dict[int, list[dict]] = {}
    for record in map(json.loads, records.read_text().splitlines()):
        if record["kind"] == "train":
            epoch_steps.setdefault(record["epoch"], []).append(record)
        else:
            for key in record.keys() - {"kind", "epoch", "step"}:
                if record[key] is not None:
                    curves.setdefault(f"validation {key}", []).append((record["epoch"], record[key]))
    for epoch, steps in epoch_steps.items():  # logged in the order of time, evenly over an epoch
        for i, record in enumerate(steps):
            for key in record.keys() - {"kind", "epoch", "step", "pairs_per_s"}:
                curves.setdefault(key, []).append((epoch - 1 + (i + 1) / len(steps), record[key]))
    names = sorted(curves, key=lambda name: (name.startswith("validation"), name == "lr", name != "total", name))
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for name, axes in zip(names, figure.subplots(rows, columns, squeeze=False).flat):
        axes.plot(*zip(*curves[name]), marker="." if len(curves[name]) < 30 else None, linewidth=1)
        axes.set_title("loss" if name == "total" else name)
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    for axes in figure.axes:
        axes.set_xlabel("epoch")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_file(picture, content.getvalue())
