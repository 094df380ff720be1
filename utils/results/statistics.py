"""How sure a table's numbers are: intervals of means, paired differences, ranks. Seeded: twice the same."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import rankdata, wilcoxon

from utils.metrics import LOWER_IS_BETTER

RESAMPLES = 2000  # of the images of a set, for the bootstrap
SURE = 0.05  # a difference counts from this p on

Values = dict[str, dict[str, float]]  # {image: {metric: value}}


@dataclass
class Difference:
    """The mean of a row less that of the first row, over the images where both have a value."""

    mean: float
    low: float  # 95 % interval of the mean, by the bootstrap
    high: float
    p: float  # two-sided signed-rank test (Wilcoxon), times Holm's factor for the rows of the table


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of n values, by the percentiles of RESAMPLES bootstrap means; NaN for one or none."""
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


def column(rows: dict[str, Values], label: str, metric: str) -> np.ndarray:
    """The values of all images of a row, NaN or inf where the metric has none."""
    return np.array([values[metric] for values in rows[label].values()])


def intervals(rows: dict[str, Values], metrics: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """The interval of each mean, {label: {metric: (low, high)}}."""
    found = {label: {metric: column(rows, label, metric) for metric in metrics} for label in rows}
    return {k: {metric: interval(x[np.isfinite(x)]) for metric, x in of.items()} for k, of in found.items()}


def differences(rows: dict[str, Values], metrics: list[str]) -> dict[str, dict[str, Difference]]:
    """Each further row against the first, {label: {metric: Difference}}."""
    first, *others = rows
    table: dict[str, dict[str, Difference]] = {label: {} for label in others}
    for metric in metrics:
        pairs = [column(rows, label, metric) - column(rows, first, metric) for label in others]
        for label, x, p in zip(others, pairs, holm([signed_rank(x) for x in pairs])):
            x = x[np.isfinite(x)]
            table[label][metric] = Difference(float(x.mean()) if len(x) else math.nan, *interval(x), p)
    return table


def statistics(rows: dict[str, Values], metrics: list[str]) -> dict:
    """All of the above and below of a table, JSON-ready: "interval", "difference", "marks" and "rank"."""
    compared = differences(rows, metrics) if len(rows) > 1 else {}
    return {
        "interval": intervals(rows, metrics),
        "difference": {
            label: {metric: asdict(each) for metric, each in row.items()} for label, row in compared.items()
        },
        "marks": marks(rows, metrics),
        "rank": mean_ranks(rows, metrics),
    }


def rank_changes(by_stretch: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """A line for each rank by means that depends on how results become 8 bit, {stretch: {label: {metric: mean}}}."""
    lines, (usual, *_) = [], by_stretch
    for metric in next(iter(by_stretch[usual].values())):
        sign = 1 if metric in LOWER_IS_BETTER else -1
        places = {
            stretch: dict(
                zip(means, rankdata([sign * row[metric] for row in means.values()], method="min").astype(int))
            )
            for stretch, means in by_stretch.items()
        }
        for label, place in places[usual].items():
            others = [f"{of[label]} by {stretch}" for stretch, of in places.items() if of[label] != place]
            if others:
                lines.append(f"{metric}: {label} is {place} by {usual}, and {', '.join(others)}")
    return (
        ["-- ranks that change with the way to 8 bit", *lines] if lines else ["no rank changes with the way to 8 bit"]
    )


def pool_seeds(rows: dict[str, Values], runs: list[list[str]]) -> tuple[dict[str, Values], dict[str, dict[str, float]]]:
    """Rows of runs that differ by their seed alone as one row.

    Args:
        runs: the labels of each such group.

    Returns:
        The rows, with the mean over the runs of each image and metric in place of a group's first row, and by its label
        the standard deviation of the runs' means.
    """
    pooled, spread, first = dict(rows), {}, {labels[0]: labels for labels in runs if len(labels) > 1}
    for labels in first.values():
        for label in labels:
            del pooled[label]
    table: dict[str, Values] = {}
    for label in rows:
        if label in first:
            metrics = next(iter(rows[label].values()))
            found = {metric: np.array([column(rows, run, metric) for run in first[label]]) for metric in metrics}
            new = f"{label} ({len(first[label])} seeds)"
            table[new] = {
                image: {metric: float(x[:, i].mean()) for metric, x in found.items()}
                for i, image in enumerate(rows[label])
            }
            spread[new] = {metric: float(x.mean(axis=1).std(ddof=1)) for metric, x in found.items()}
        elif label in pooled:
            table[label] = rows[label]
    return table, spread


def marks(rows: dict[str, Values], metrics: list[str]) -> dict[str, dict[str, int]]:
    """By label and metric 1 for the best row, 2 for the second, 0 for the others.

    A row has its mark only if it differs from the next one by more than chance (signed rank, SURE): never on sets of
    five images or fewer, where no p can be so small.
    """
    places = {label: dict.fromkeys(metrics, 0) for label in rows}
    for metric in metrics:
        sign = 1 if metric in LOWER_IS_BETTER else -1
        found = {label: column(rows, label, metric) for label in rows}
        means = {k: sign * x[np.isfinite(x)].mean() for k, x in found.items() if np.isfinite(x).any()}
        order = sorted(means, key=means.get)
        for place, (label, following) in enumerate(pairwise(order[:3]), start=1):
            if signed_rank(found[label] - found[following]) > SURE:
                break
            places[label][metric] = place
    return places


def mean_ranks(rows: dict[str, Values], metrics: list[str]) -> dict[str, float]:
    """By label the mean over images and metrics of a row's place among all rows, 1 the best; ties share places."""
    labels = list(rows)
    found = np.array(
        [[column(rows, label, metric) for metric in metrics] for label in labels]
    )  # (rows, metrics, images)
    sign = np.array([1 if metric in LOWER_IS_BETTER else -1 for metric in metrics])[:, None]
    defined = np.isfinite(found).all(axis=0)
    ranks = rankdata(sign * found, axis=0)[:, defined]
    return dict(zip(labels, ranks.mean(axis=1).tolist()))
