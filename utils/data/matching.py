"""Which names of two folders belong together: equal ones, or those that differ by what all names of a side have."""

import re
from itertools import product, takewhile


def match_names(one: list[str], other: list[str]) -> tuple[list[str], list[str]]:
    """Keys for two lists of names, such that equal keys belong together.

    The names themselves; or, if more find a partner so, those of one side or of both without the beginning and the end
    that all names of the side have: IR1 and VIS1.
    """
    ways = product((one, cut(one)), (other, cut(other)))
    return min(ways, key=lambda way: len(set(way[0]) ^ set(way[1])))


def cut(names: list[str]) -> list[str]:
    """Names without the beginning and end that all of them have, in whole words and numbers: 0001, not 1."""
    parts = [re.findall(r"[^\W\d_]+|\d+|[\W_]", name) for name in names]
    start = common(parts)
    end = common([part[start:][::-1] for part in parts])
    return ["".join(part[start : len(part) - end]) for part in parts]


def common(parts: list[list[str]]) -> int:
    """The number of words at the beginning that are equal in all lists."""
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*parts)))
