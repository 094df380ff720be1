"""Pairs straight from two folders of images, in place of an H5 file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.data.features import features_of
from utils.data.images import NEUTRAL, as_unit, list_images, merge_chroma, open_images
from utils.data.matching import match_names
from utils.data.pairs import StoredFeature
from utils.errors import InputError, shortened


class FolderPairs(Dataset):
    """The pairs of two folders, whole, with chroma and without features of their own: samples as of `PairDataset`.

    Args:
        a, b: the folders; images of equal names are a pair, or of names that differ by a beginning or an end that all
            of a folder have.
        inputs: what a network takes beside the images.

    Raises:
        InputError: no images, or images without a partner.
    """

    def __init__(self, a: Path, b: Path, inputs: Sequence[str] = ()):
        found = [list_images(side) for side in (a, b)]
        keys = match_names(*map(list, found))
        (of_a, of_b) = (dict(zip(names, files.values())) for names, files in zip(keys, found))
        alone = [
            path.name
            for key in {*of_a, *of_b}
            for path in (*of_a.get(key, ()), *of_b.get(key, ()))
            if len(of_a.get(key, ())) != 1 or len(of_b.get(key, ())) != 1
        ]
        if alone or not of_a:
            raise InputError(
                f"each image of {a} and {b} needs one partner of its name; without: "
                f"{shortened(sorted(alone)) or 'no images at all'}"
            )
        self.path = f"{a}+{b}"
        self.samples = [(self.path, name) for name in found[0]]
        self.files = [(of_a[key][0], of_b[key][0]) for key in keys[0]]
        self.features = {each.name: StoredFeature(lacking=self.path) for each in features_of(inputs)}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        a, b = map(str, self.files[index])
        (gray_a, chroma_a), (gray_b, chroma_b) = open_images({a: a, b: b})
        chroma = merge_chroma([chroma_a, chroma_b])
        if chroma is None:
            chroma = np.full((2, *gray_a.shape), NEUTRAL, np.uint8)
        images = {"image_a": as_unit(gray_a)[None], "image_b": as_unit(gray_b)[None], "chroma": chroma}
        given = {kind: feature.instead for kind, feature in self.features.items() if feature.instead is not None}
        tensors = {key: torch.from_numpy(image) for key, image in images.items()}
        return {"name": self.samples[index][1]} | tensors | given
