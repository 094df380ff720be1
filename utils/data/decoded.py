"""What a decoder of a format gives, and what all of them share: pages, and the limit of size."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.opencv import MAX_PIXELS

Say = Callable[[str | Path, str], None]  # gets a path, and what a user should know of it


class Decoded(NamedTuple):
    """A picture of a file.

    Attributes:
        pixels: (H, W) gray or (H, W, 3) BGR, of any type of numbers, in the units of the file.
        span: what is black and what is white, in these units; None for floats and signed integers, which do not say.
        negative: whether it is the other way round, low values white.
        pages: how many pictures the file has.
    """

    pixels: np.ndarray
    span: tuple[float, float] | None
    negative: bool = False
    pages: int = 1


def ending_of(name: str) -> str:
    """The ending of a file's name in small letters; ".nii.gz" is one."""
    return ".nii.gz" if name.lower().endswith(".nii.gz") else Path(name).suffix.lower()


def stem_of(path: str | Path) -> str:
    """The name of a file without its ending; of the page x.tif#4 it is x_4."""
    file, page = split_page(path)
    name = file.name[: len(file.name) - len(ending_of(file.name))]
    return f"{name}_{str(path).rpartition('#')[2]}" if page else name


def split_page(path: str | Path) -> tuple[Path, int | None]:
    """A file and the page that is meant: x.tif#4 is the fourth of x.tif, unless there is a file of that name."""
    file, _, page = str(path).rpartition("#")
    return (Path(file), int(page)) if file and page.isdecimal() and not Path(path).exists() else (Path(path), None)


def pick_page(path: Path, pages: int, page: int | None, say: Say, usual: int = 1) -> int:
    """The page to take, from 1 on: the one meant, else the usual one, which is said where there are several."""
    if page is None and pages > 1:
        say(path, f"has {pages} pages: number {usual} is used; {path.name}#{pages} is the last")
    if not 0 < (page or usual) <= pages:
        raise InputError(f"{path} has {pages} pages, and no number {page}")
    return page or usual


def check_size(path: Path, width: int, height: int, channels: int = 1) -> None:
    """InputError for an image with more than MAX_PIXELS."""
    if width * height * max(1, channels / 4) > MAX_PIXELS:
        many = f" of {channels} channels" if channels > 4 else ""
        raise InputError(
            f"{path} is {width} x {height} pixels{many}, and {MAX_PIXELS / 1e6:.0f} million are the most; scale it down"
        )
