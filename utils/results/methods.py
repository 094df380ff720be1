"""Results of other methods, read as they are: a folder of fused images that belong to the pairs of a set."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.images import list_images, read_image
from utils.data.matching import match_files
from utils.errors import InputError, shortened


class FusedFolder(NamedTuple):
    """Fused images of one method."""

    label: str
    files: dict[str, Path]  # by the names of the pairs

    def read(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """The fused image of a pair, (H, W) uint8, gray as `read_image` makes it; nothing is stretched.

        InputError if it is not of the sources' `size`, or not of 8 bit.
        """
        image = read_image(self.files[name])[0]
        if image.dtype != np.uint8:
            raise InputError(f"{self.files[name]} has pixels of {image.dtype}; metrics are of 8 bit: save it so")
        if image.shape != size:
            here, there = ("{} x {}".format(*each) for each in (image.shape, size))
            raise InputError(f"{self.files[name]} is {here} and its sources are {there}; a result must have their size")
        return image


def label_of(word: str) -> str:
    """The label of a word of --fused, "LABEL=FOLDER" or a folder that is called like its method."""
    label, _, path = word.rpartition("=")
    return label or Path(path).name


def open_folders(words: Sequence[str], names: list[str]) -> list[FusedFolder]:
    """The methods of --fused.

    Args:
        words: see `label_of`.
        names: of the pairs; `match_files` finds their images.

    Raises:
        InputError: a folder without images, pairs without a result, two images of one name.
    """
    folders = []
    for word in words:
        folder, label = Path(word.rpartition("=")[2]), label_of(word)
        images = list_images(folder)
        if not images:
            raise InputError(f"--fused {word}: there are no images in {folder}")
        pairs, _ = match_files({name: [name] for name in names}, images)
        files = dict(pairs.values())
        lacking = [name for name in names if name not in files]
        if lacking:
            raise InputError(
                f"{folder} lacks the results of {len(lacking)} of {len(names)} pairs, or has two images of one name "
                f"({shortened(lacking)}); every method of a table must have one of each pair"
            )
        if len(images) > len(names):
            print(f"{label}: {len(images) - len(names)} images of {folder} belong to no pair and are left out")
        folders.append(FusedFolder(label, files))
    return folders
