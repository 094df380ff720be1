"""What of two folders belongs together: equal names, or those that differ by what all names of a side have."""

import re
from itertools import product, takewhile


def match_files(one: dict[str, list], other: dict[str, list], cutting: bool = True) -> tuple[dict[str, tuple], list]:
    """What belongs together of two sides, each {name: its files}.

    Names do that are equal; or, if more find a partner so, that are so without the beginning and the end that all names
    of one side, or of both, have: IR1 and VIS1. Not `cutting`: only equal ones.

    Returns:
        {name: (file, file of the other side)}, in the order of the first side, and all files that have not one partner.
    """
    ways = product((list(one), cut(one)), (list(other), cut(other))) if cutting else [(list(one), list(other))]
    keys = min(ways, key=lambda way: len(set(way[0]) ^ set(way[1])))
    sides = [dict(zip(names, side.values())) for names, side in zip(keys, (one, other))]
    pairs, alone = {}, []
    for key in dict.fromkeys([*keys[0], *keys[1]]):
        files = [side.get(key, []) for side in sides]
        if [len(of_side) for of_side in files] == [1, 1]:
            pairs[key or next(iter(one))] = files[0][0], files[1][0]  # nothing is left of an only name
        else:
            alone += [*files[0], *files[1]]
    return pairs, alone


def cut(names: dict[str, list]) -> list[str]:
    """Names without the beginning and end that all of them have, in whole words and numbers: 0001, not 1."""
    parts = [re.findall(r"[^\W\d_]+|\d+|[\W_]", name) for name in names]
    start = common(parts)
    end = common([part[start:][::-1] for part in parts])
    return ["".join(part[start : len(part) - end]) for part in parts]


def common(parts: list[list[str]]) -> int:
    """The number of words at the beginning that are equal in all lists."""
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*parts)))
