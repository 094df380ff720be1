"""How sure a table's numbers are: intervals of means, paired differences, ranks. Seeded: twice the same."""

import math
from itertools import pairwise

import numpy as np
from scipy.stats import rankdata, wilcoxon

from utils.files import to_json
from utils.metrics import LOWER_IS_BETTER

RESAMPLES = 2000  # of the images of a set, for the bootstrap
SURE = 0.05  # a difference counts from this p on
ALIKE = {"seed", "name", "ckpt", "device", "test", "exp", "resume", "num_workers"}  # keys that make no other method

Values = dict[str, dict[str, float]]  # {image: {metric: value}}


def sign(metric: str) -> int:
    """What makes a metric one where higher is better."""
    return -1 if metric in LOWER_IS_BETTER else 1


def column(rows: dict[str, Values], label: str, metric: str) -> np.ndarray:
    """The values of all images of a row, NaN or inf where the metric has none."""
    return np.array([values[metric] for values in rows[label].values()])


def mean(values: np.ndarray) -> float:
    """The mean of those that are defined, NaN if none is."""
    finite = values[np.isfinite(values)].tolist()
    return sum(finite) / len(finite) if finite else math.nan


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of `mean`, by the percentiles of RESAMPLES bootstrap means; NaN for one value or none."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def signed_rank(differences: np.ndarray) -> float:
    """p of the two-sided signed-rank test that n differences are around 0; those under 1e-9 and undefined do not count.

    1 if none is left. n images cannot give less than 2 ** (1 - n).
    """
    differences = differences[np.isfinite(differences) & (np.abs(differences) > 1e-9)]
    return float(wilcoxon(differences).pvalue) if len(differences) else 1.0


def holm(p: list[float]) -> list[float]:
    """p values corrected for their number, by the step-down of Holm (1979)."""
    order, corrected, largest = np.argsort(p), [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = largest
    return corrected


def statistics(rows: dict[str, Values], metrics: list[str]) -> dict:
    """What a table says beside its means, JSON-ready: "interval", "difference", "marks" and "rank"."""
    return {
        "interval": {label: {metric: interval(column(rows, label, metric)) for metric in metrics} for label in rows},
        "difference": differences(rows, metrics),
        "marks": marks(rows, metrics),
        "rank": mean_ranks(rows, metrics),
    }


def differences(rows: dict[str, Values], metrics: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Each further row less the first, over the images where both have a value.

    Returns:
        {label: {metric: {"mean", "low", "high", "p"}}}: the mean and its `interval`, and p of `signed_rank`, corrected
        for the rows of the table.
    """
    first, *others = rows
    table: dict[str, dict] = {label: {} for label in others}
    for metric in metrics:
        found = [column(rows, label, metric) - column(rows, first, metric) for label in others]
        for label, x, p in zip(others, found, holm([signed_rank(x) for x in found])):
            low, high = interval(x)
            table[label][metric] = {"mean": mean(x), "low": low, "high": high, "p": p}
    return table


def marks(rows: dict[str, Values], metrics: list[str]) -> dict[str, dict[str, int]]:
    """By label and metric 1 for the best row, 2 for the second, 0 for the others.

    A row has its mark only if it differs from the next one by more than chance (signed rank, SURE): never on sets of
    five images or fewer, where no p can be so small.
    """
    places = {label: dict.fromkeys(metrics, 0) for label in rows}
    for metric in metrics:
        found = {label: sign(metric) * column(rows, label, metric) for label in rows}
        means = {label: mean(x) for label, x in found.items() if np.isfinite(x).any()}
        order = sorted(means, key=means.get, reverse=True)
        for place, (label, following) in enumerate(pairwise(order[:3]), start=1):
            if signed_rank(found[label] - found[following]) > SURE:
                break
            places[label][metric] = place
    return places


def mean_ranks(rows: dict[str, Values], metrics: list[str]) -> dict[str, float]:
    """By label the mean over images and metrics of a row's place among all rows, 1 the best; ties share places."""
    found = np.array([[sign(metric) * column(rows, label, metric) for metric in metrics] for label in rows])
    defined = np.isfinite(found).all(axis=0)  # (metrics, images)
    return dict(zip(rows, rankdata(-found, axis=0)[:, defined].mean(axis=1).tolist()))


def rank_changes(by_stretch: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """A line for each rank by means that depends on how results become 8 bit, {stretch: {label: {metric: mean}}}."""
    lines, (usual, *_) = [], by_stretch
    for metric in next(iter(by_stretch[usual].values())):
        places = {
            stretch: rankdata([-sign(metric) * row[metric] for row in means.values()], method="min").astype(int)
            for stretch, means in by_stretch.items()
        }
        for i, (label, place) in enumerate(zip(by_stretch[usual], places[usual])):
            others = [f"{of[i]} by {stretch}" for stretch, of in places.items() if of[i] != place]
            if others:
                lines.append(f"{metric}: {label} is {place} by {usual}, and {', '.join(others)}")
    return ["-- ranks that change with the way to 8 bit", *(lines or ["none"])]


def pool_seeds(rows: dict[str, Values], configs: dict[str, dict | None]) -> tuple[dict[str, Values], Values]:
    """Rows of trainings whose configs are one but for the seed, and for what changes no result, as one row.

    Args:
        configs: of the rows that have been trained, by label; None where it is not known.

    Returns:
        The rows, with the mean over the runs of each image and metric in place of such a group's first row, and by its
        label the standard deviation of the runs' means.
    """
    kinds: dict[str, list[str]] = {}
    for label in rows:
        config = {k: v for k, v in (configs.get(label) or {}).items() if k not in ALIKE}
        config["train"] = {k: v for k, v in config.get("train", {}).items() if k not in ALIKE}
        kinds.setdefault(to_json(config) if configs.get(label) else label, []).append(label)
    table, spread = {}, {}
    for runs in kinds.values():
        if len({(configs.get(run) or {}).get("seed") for run in runs}) < len(runs):  # two checkpoints of one run
            table |= {run: rows[run] for run in runs}
            continue
        label, values = runs[0], rows[runs[0]]
        if len(runs) > 1:
            label, metrics = f"{label} ({len(runs)} seeds)", next(iter(values.values()))
            found = {metric: np.array([column(rows, run, metric) for run in runs]) for metric in metrics}
            means = {metric: x.mean(axis=0).tolist() for metric, x in found.items()}
            values = {image: {metric: means[metric][i] for metric in metrics} for i, image in enumerate(values)}
            spread[label] = {metric: float(x.mean(axis=1).std(ddof=1)) for metric, x in found.items()}
        table[label] = values
    return table, spread
