"""Which images of a user belong together: two images, two folders, two patterns, or a table of pairs."""

import csv
import io
import itertools
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.data.images import check_writable, list_images
from utils.errors import InputError, shortened
from utils.files import plain_name

COLUMNS = ("a", "b", "name", "text_a", "text_b", "instruct")  # of a table of pairs; the first two are needed
SHOWN = 10  # names in a message, and pairs that are printed


class OwnPair(NamedTuple):
    """A pair of a user.

    Attributes:
        name: of the pair, unique.
        a, b: the images.
        out: where the result goes.
        text_a, text_b: what A and B show, or a file .txt with it; empty: not said.
        instruct: what is wanted; empty: nothing.
    """

    name: str
    a: Path
    b: Path
    out: Path
    text_a: str = ""
    text_b: str = ""
    instruct: str = ""

    @property
    def columns(self) -> Path:
        """Where each of several results goes by itself."""
        return self.out.with_suffix("")


def find_pairs(a: str, b: str, out: Path) -> tuple[list[OwnPair], str]:
    """The pairs of two images, two folders, or two patterns.

    Args:
        a, b: two images; two folders; or files with * for the name, "folder/*_ir.png". Images of equal names are
            paired. So are those whose names differ by a beginning or an end that all names of a side have: IR1, VIS1.
        out: an image for two images, else a folder.

    Returns:
        The pairs, and how they were found, in lines, where it was not by equal names.

    Raises:
        InputError: a missing source, one image and one folder, images without a partner, results beside their sources.
    """
    sides = [Path(side) for side in (a, b)]
    for side in sides:
        if "*" not in side.name and not side.exists():
            raise InputError(f"there is no {side}")
    many = [side.is_dir() or "*" in side.name for side in sides]
    if many[0] != many[1]:
        raise InputError(f"{a} and {b} must be two images or two folders")
    if not many[0]:
        return [OwnPair(sides[0].stem, *sides, out)], ""
    if a == b:
        raise InputError(
            f'which images of {a} are A and which B? Give two patterns, e.g. "{a}/*_ir.png" "{a}/*_vis.png", or a table'
        )
    folders = [side if side.is_dir() else side.parent for side in sides]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"-o would write over the sources in {out}, or beside them; choose another place")
    found = [list_images(side) if side.is_dir() else list_images(side.parent, side.name) for side in sides]
    cut_names = sides == folders and found[0].keys() != found[1].keys()
    if cut_names:
        matched = match_names(*(list(side) for side in found))
        found = [{new: side[old] for new, old in names.items()} for side, names in zip(found, matched)]
    check_partners(f"{a} and {b}", *found)
    names = {name: name or paths[0].stem for name, paths in found[0].items()}
    pairs = [OwnPair(names[key], found[0][key][0], found[1][key][0], out / f"{names[key]}.png") for key in found[0]]
    if not cut_names:
        return pairs, ""
    lines = ["paired by their names, without the beginning and end that all names of a side have:"]
    lines += [f"  {pair.a.name} + {pair.b.name} -> {pair.out.name}" for pair in pairs[:SHOWN]]
    lines += [f"  ... and {len(pairs) - SHOWN} more, see --list"] if len(pairs) > SHOWN else []
    return pairs, "\n".join(lines)


def check_partners(where: str, found_a: dict[str, list[Path]], found_b: dict[str, list[Path]]) -> None:
    """InputError if a name has not exactly one image on each side."""
    alone = found_a.keys() ^ found_b.keys()
    alone |= {name for found in (found_a, found_b) for name, paths in found.items() if len(paths) > 1}
    if alone or not found_a:
        files = [
            path.name for found in (found_a, found_b) for name in sorted(found) if name in alone for path in found[name]
        ]
        raise InputError(
            f"the images of {where} cannot be paired: each needs one partner of the same name, or of a name that "
            "differs by what all of its side begin or end with (* is the name in a pattern). Without: "
            f"{shortened(files) or 'no images at all'}. Otherwise list the pairs in a table, pairs.csv"
        )


def match_names(names_a: list[str], names_b: list[str]) -> list[dict[str, str]]:
    """Pair names that differ by what all names of a side have in common: ["IR1", "IR2"] and ["VIS1", "VIS2"].

    What is left of the names of both sides must be equal. There is at most one such pairing: any two ways to cut a
    beginning and an end that all names have leave the names in the same relation.

    Returns:
        For each side {what is left: name}. If there is no such pairing, the one that leaves the fewest without a
        partner.
    """
    if len(names_a) == len(names_b) == 1:
        return [{names_a[0]: names[0]} for names in (names_a, names_b)]
    words, letters = r"[^\W\d_]+|\d+|[\W_]", r"\d+|\D"  # no number is cut: thermal_0001 is 0001, not 1
    cuts = (list, partial(cut, words=words), partial(cut, words=letters))  # names as they are, and shorter and shorter
    ways = [[dict(zip(way(names), names)) for names in (names_a, names_b)] for way in cuts]
    return min(ways, key=lambda sides: len(sides[0].keys() ^ sides[1].keys()))


def cut(names: list[str], words: str) -> list[str]:
    """What is left of names without the longest beginning and end that all of them have, in whole words.

    Args:
        words: a regular expression of a word.
    """
    parts = [re.findall(words, name) for name in names]
    start = common_start(parts)
    rest = [part[start:] for part in parts]
    end = common_start([part[::-1] for part in rest])
    return ["".join(part[: len(part) - end]) for part in rest]


def common_start(parts: list[list[str]]) -> int:
    """How many words at the beginning of all are the same."""
    return sum(1 for _ in itertools.takewhile(lambda words: len(set(words)) == 1, zip(*parts)))


def read_table(path: Path, out: Path) -> list[OwnPair]:
    """The pairs of a table, a CSV file with the columns COLUMNS; paths are relative to its folder.

    Args:
        path: the table. A name that is not given is that of the image of A.
        out: the folder of the results.

    Raises:
        InputError: with a line for each mistake: another column, a missing file or value, a name given twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the table {path} ({getattr(error, 'strerror', 'not UTF-8')})") from error
    delimiter = next((each for each in ";\t" if each in text.partition("\n")[0]), ",")  # as some spreadsheets write
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [column.strip().lower() for column in reader.fieldnames or ()]
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise InputError(f"{path} has a column '{unknown[0]}'; the columns are {', '.join(COLUMNS)}")
    if not {"a", "b"} <= set(columns) or len(set(columns)) < len(columns):
        raise InputError(f"{path} must have the columns a and b, may have {', '.join(COLUMNS[2:])}, and each once")
    reader.fieldnames = columns
    problems: list[str] = []
    pairs: dict[str, OwnPair] = {}
    try:
        for row in reader:
            if None in row or None in row.values():
                problems.append(f"{path}, line {reader.line_num}: not {len(columns)} values, as there are columns")
            elif any(row.values()):
                pair, wrong = read_row({key: value.strip() for key, value in row.items()}, path.parent, out)
                if pair.name.casefold() in pairs:  # one file on some systems
                    wrong.append(f"the name '{pair.name}' is that of another pair; give names in a column name")
                problems += [f"{path}, line {reader.line_num}: {each}" for each in wrong]
                pairs[pair.name.casefold()] = pair
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}, is not a row of a table ({error})") from error
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError("\n".join([*problems[:SHOWN], *more]))
    if not pairs:
        raise InputError(f"{path} lists no pairs")
    return list(pairs.values())


def read_row(row: dict[str, str], folder: Path, out: Path) -> tuple[OwnPair, list[str]]:
    """The pair of a row, and its mistakes; `folder`: of the table."""
    images = [folder / row[side] for side in ("a", "b")]
    wrong = [
        f"there is no {image}" if row[side] else f"no image in column {side}"
        for side, image in zip(("a", "b"), images)
        if not image.is_file()
    ]
    texts = [row.get(key, "") for key in ("text_a", "text_b")]
    texts = [str(folder / text) if text.endswith(".txt") else text for text in texts]
    wrong += [f"there is no {text}" for text in texts if text.endswith(".txt") and not Path(text).is_file()]
    if bool(texts[0]) != bool(texts[1]):
        wrong.append("only one of text_a and text_b")
    name = row.get("name") or images[0].stem
    if not plain_name(name):
        wrong.append(f"{name!r} is not a plain file name")
    return OwnPair(name, *images, out / f"{name}.png", *texts, row.get("instruct", "")), wrong
