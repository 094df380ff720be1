"""Pairs straight from two folders of images, in place of an H5 file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.data.features import features_of
from utils.data.images import NEUTRAL, as_unit, list_images, merge_chroma, open_images
from utils.data.matching import match_files
from utils.data.pairs import StoredFeature
from utils.errors import InputError, shortened


class FolderPairs(Dataset):
    """The pairs of two folders, whole, with chroma and without features of their own: samples as of `PairDataset`.

    Args:
        a, b: the folders; `match_files` pairs their images.
        inputs: what a network takes beside the images.

    Raises:
        InputError: no images, or images without a partner.
    """

    def __init__(self, a: Path, b: Path, inputs: Sequence[str] = ()):
        pairs, alone = match_files(list_images(a), list_images(b))
        if alone or not pairs:
            raise InputError(
                f"each image of {a} and {b} needs one partner of its name; without: "
                f"{shortened([path.name for path in alone]) or 'no images at all'}"
            )
        self.path = f"{a}+{b}"
        self.samples, self.files = [(self.path, name) for name in pairs], list(pairs.values())
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
