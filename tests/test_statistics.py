"""Statistics of tables: intervals, paired differences, marks, ranks."""

import math

import numpy as np
import pytest

from utils.results.statistics import differences, holm, interval, marks, mean_ranks, statistics


def rows(**columns: list[float]) -> dict:
    """{label: values of EN} as rows of a table; MSE is the same number."""
    return {
        label: {f"image{i}": {"EN": value, "MSE": value} for i, value in enumerate(values)}
        for label, values in columns.items()
    }


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = interval(rng.normal(3, 1, 40))
        covered += low < 3 < high
    assert 0.88 < covered / 200 < 0.99
    assert all(map(math.isnan, [*interval(np.array([])), *interval(np.array([2.0]))]))
    assert interval(np.arange(9.0)) == interval(np.arange(9.0))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_paired_differences_see_what_intervals_of_means_do_not():
    noise = np.random.default_rng(0).normal(0, 10, 30)
    table = rows(ours=noise, better=noise + 0.5 + 0.01 * np.arange(30), same=noise)
    of_means = statistics(table, ["EN"])["interval"]
    assert of_means["better"]["EN"][0] < of_means["ours"]["EN"][1]  # they overlap
    found = differences(table, ["EN"])
    better, same = found["better"]["EN"], found["same"]["EN"]
    assert 0.5 < better["low"] < better["mean"] < better["high"] and better["p"] < 1e-4
    assert same == {"mean": 0, "low": 0, "high": 0, "p": 1}


def test_undefined_values_are_left_out():
    found = differences(rows(ours=[1, 2, math.nan, 4], other=[2, math.inf, 5, 5]), ["EN"])["other"]["EN"]
    assert found["mean"] == 1
    assert math.isnan(differences(rows(ours=[math.nan], other=[1.0]), ["EN"])["other"]["EN"]["mean"])


def test_marks_only_where_the_difference_is_larger_than_chance():
    values = np.random.default_rng(0).normal(0, 1, 12)
    table = rows(best=values + 2, second=values + 1, third=values + 0.999 * (np.arange(12) % 2), last=values - 5)
    places = marks(table, ["EN", "MSE"])
    assert [places[label]["EN"] for label in table] == [1, 2, 0, 0]
    assert places["last"]["MSE"] == 1  # lower is better
    close = rows(one=values, other=values + np.random.default_rng(1).normal(0, 1, 12))
    assert {place for of in marks(close, ["EN"]).values() for place in of.values()} == {0}
    few = rows(one=[1.0, 2, 3, 4, 5], other=[2.0, 3, 4, 5, 6])
    assert marks(few, ["EN"]) == {"one": {"EN": 0}, "other": {"EN": 0}}


def test_ranks():
    table = rows(high=[3.0, 3], low=[1.0, 1], middle=[2.0, 1])
    assert mean_ranks(table, ["EN"]) == {"high": 1, "low": 2.75, "middle": 2.25}
    assert mean_ranks(table, ["EN", "MSE"]) == {"high": 2, "low": 2, "middle": 2}  # where the lower is better, too
