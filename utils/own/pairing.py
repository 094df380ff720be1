"""Which images of a user belong together: two images, two folders, two patterns, or a table of pairs."""

import csv
import io
import string
from pathlib import Path
from typing import NamedTuple

from utils.data.decode import pages_of
from utils.data.decoded import stem_of
from utils.data.images import list_images
from utils.data.matching import match_files
from utils.errors import InputError, shortened
from utils.files import plain_name, read_text
from utils.own.video import frame_files

COLUMNS = ("name", "text_a", "text_b", "instruct")  # of a table, beside those of images: a, b, and for stacks c, d, ...


class OwnPair(NamedTuple):
    """A pair of a user, or a stack.

    Attributes:
        name: of the pair, unique.
        a, b: the images.
        out: where the result goes.
        text_a, text_b: what A and B show, or a file .txt with it; empty: not said.
        instruct: what is wanted; empty: nothing.
        more: further images of a stack.
    """

    name: str
    a: Path
    b: Path
    out: Path
    text_a: str = ""
    text_b: str = ""
    instruct: str = ""
    more: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, A and B first."""
        return self.a, self.b, *self.more


def find_pairs(a: Path, b: Path, out: Path) -> list[OwnPair]:
    """The pairs of two folders, or of two patterns; their results go to the folder `out`.

    Args:
        a, b: folders, or files with * for the name, "folder/*_ir.png". Images of equal names are paired. In folders,
            so are those whose names differ by a beginning or an end that all names of a side have: IR1 and VIS1.

    Raises:
        InputError: a missing source, images without a partner.
    """
    for side in (a, b):
        if "*" not in side.name and not side.is_dir():
            raise InputError(f"{side} is no folder; give two images, two folders or two patterns")
    if a == b:
        example = f'"{a}/*_ir.png" "{a}/*_vis.png"'
        raise InputError(f"which images of {a} are A and which B? Give two patterns, e.g. {example}, or a table")
    images = [list_images(side) if side.is_dir() else list_images(side.parent, side.name) for side in (a, b)]
    folders = a.is_dir() and b.is_dir()
    found, alone = match_files(*images, cutting=folders)
    if alone or not found:
        raise InputError(
            f"the images of {a} and {b} cannot be paired: each needs one partner of the same name, or of a name that "
            "differs by a beginning or an end that all of its side have (* is the name in a pattern). Without: "
            f"{shortened([path.name for path in alone]) or 'no images at all'}. Otherwise list the pairs in a table, "
            "pairs.csv"
        )
    pairs = [OwnPair(name, *files, out / f"{name}.png") for name, files in found.items()]
    if folders and any(stem_of(path) != pair.name for pair in pairs for path in (pair.a, pair.b)):
        print(f"paired by the middle of their names, e.g. {pairs[0].a.name} + {pairs[0].b.name}; --list shows all")
    return pairs


def find_stack(words: list[str]) -> list[Path]:
    """The images of a stack: files, or those of a folder or pattern, x10 after x2, or the pages of a file."""
    source = Path(words[0])
    if len(words) > 2:
        return [Path(word) for word in words]
    if source.is_file():
        return pages_of(source)
    return frame_files(source) if source.is_dir() else frame_files(source.parent, source.name)


def read_table(path: Path, out: Path) -> list[OwnPair]:
    """The pairs or stacks of a table, a CSV file with the columns a, b, ... and COLUMNS; results go to `out`, a folder.

    Paths are relative to the table's folder. A name that is not given is that of the image of A.

    Raises:
        InputError: another column, a missing value, a name given twice; names the line. Files are looked for later.
    """
    text = read_text(path, "the table")
    delimiter = next((each for each in ";\t" if each in text.partition("\n")[0]), ",")  # as some spreadsheets write
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [column.strip().lower() for column in reader.fieldnames or ()]
    images = [*string.ascii_lowercase[: max(2, sum(len(column) == 1 for column in columns))]]
    if not {*images} <= {*columns} <= {*images, *COLUMNS}:
        may = f"and may have {', '.join(COLUMNS)}"
        raise InputError(f"{path} must have the columns a and b (a stack c, d, ..., too), {may}, not {columns}")
    reader.fieldnames = columns
    pairs: dict[str, OwnPair] = {}
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"it must have {len(columns)} values, as there are columns")
            if any(row.values()):
                pair = read_row({key: value.strip() for key, value in row.items()}, path.parent, out)
                if pair.name in pairs:
                    raise InputError(f"the name '{pair.name}' is that of another pair; give names in a column name")
                pairs[pair.name] = pair
    except InputError as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if not pairs:
        raise InputError(f"{path} lists no pairs")
    return list(pairs.values())


def read_row(row: dict[str, str], folder: Path, out: Path) -> OwnPair:
    """The pair of a row of a table in `folder`; InputError for its first mistake."""
    for side in ("a", "b"):
        if not row[side]:
            raise InputError(f"no image in column {side}")
    images = [folder / row[side] for side in sorted(row) if len(side) == 1 and row[side]]
    texts = [row.get(key, "") for key in ("text_a", "text_b")]
    texts = [str(folder / text) if text.endswith(".txt") else text for text in texts]
    name = row.get("name") or stem_of(row["a"])
    if not plain_name(name):
        raise InputError(f"{name!r} is not a plain file name")
    return OwnPair(name, *images[:2], out / f"{name}.png", *texts, row.get("instruct", ""), tuple(images[2:]))
