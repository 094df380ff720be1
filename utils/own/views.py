"""What two pictures show of one scene: fitted to one size, B registered to A, and where one of them counts alone.

A counts alone where B shows nothing: outside a B that is moved or padded, and on its black or white frame; and B
likewise. There the other is filled up by it before they are fused, and replaces the result afterwards.
"""

from typing import NamedTuple

import numpy as np

from utils.data.align import Alignment, align, sample, valid_area
from utils.data.images import NEUTRAL
from utils.errors import InputError
from utils.opencv import cv2
from utils.own.fit import Picture, common_size, fit

ALIGN_OR = ("a", "b", "plain")  # A alone, B alone, or both as they are
FEATHER = 8  # pixels, over which a source that counts alone passes into the fused image


class View(NamedTuple):
    """Two pictures to fuse, and what becomes of the result.

    Attributes:
        alone: (H, W) float32 in [0, 1], how far `only` replaces the result; None where nothing does.
        only: (H, W) float32 in [0, 1], of the source that counts alone.
    """

    a: Picture
    b: Picture
    alone: np.ndarray | None = None
    only: np.ndarray | None = None

    def finish(self, fused: np.ndarray) -> np.ndarray:
        """Results (..., H, W) float32."""
        return fused if self.alone is None else fused + self.alone * (self.only - fused)


class Views:
    """Brings pairs of pictures to one view; all those of a video alike, as the first pair needs it.

    Args:
        a, b: the first pair.
        resize: one of RESIZE, or None.
        motion: one of MOTIONS to register B to A by it, or None.
        otherwise: one of ALIGN_OR, which counts where the registration is not sure; None to refuse such a pair.
        frames: whether to look for black and white frames.
        names: of A and B, for messages.

    Attributes:
        notes: what was done, in sentences without the pair's name.

    Raises:
        InputError: sizes that do not go together; a registration that is not sure.
    """

    def __init__(
        self,
        a: Picture,
        b: Picture,
        resize: str | None,
        motion: str | None,
        otherwise: str | None,
        frames: bool,
        names: str,
    ):
        self.notes: list[str] = []
        sizes = a.gray.shape, b.gray.shape
        size = common_size(*sizes, resize, names)
        self.fits = [fit(own, size, resize) for own in sizes]
        areas = []  # where A and B show something
        for name, picture, fitted in zip("AB", (a, b), self.fits):
            if remark := fitted.remark():
                self.notes.append("{} ({} x {} pixels): {}".format(name, *picture.gray.shape, remark))
            area = valid_area(picture.gray) if frames else None
            if area is not None:
                share = 100 * (1 - area.mean())
                self.notes.append(f"{name} has a black or white frame, {share:.1f} % of it: the other counts there")
            area = np.ones(picture.gray.shape, np.uint8) if area is None else area.astype(np.uint8)
            areas.append(fitted.apply(area, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT))
        self.alignment: Alignment | None = None
        self.moved = False
        if motion:
            grays = (fitted.picture(picture).gray for fitted, picture in zip(self.fits, (a, b)))
            self.alignment = align(*grays, motion)
            self.moved = self.alignment.improved and self.alignment.sure
            self.notes.append(self._judge(otherwise, names))
            if self.moved:
                areas[1] = sample(areas[1], self.alignment.matrix, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
            elif not self.alignment.sure and otherwise in ("a", "b"):
                areas[otherwise == "a"][:] = 0  # of the other one
        self.alone = weights(*areas)

    def _judge(self, otherwise: str | None, names: str) -> str:
        """What the alignment did, in words; InputError if it is not sure and nothing is to count otherwise."""
        found = self.alignment
        sure = f"confidence {found.confidence:.2f}, halves of the image differ by {found.spread:.1f} pixels"
        edges = f"correlation of edges {found.before:.3f}"
        if self.moved:
            return f"B moved by {found.shift:.1f} pixels ({sure}, {edges} -> {found.after:.3f})"
        if found.sure:
            return f"B is in its place already ({sure}, {edges})"
        if otherwise is None:
            advice = "with --align-or a or b that one is taken alone, with plain they are fused as they are"
            raise InputError(f"{names} are not registered for sure ({sure}), and not fused; {advice}")
        taken = {"a": "A is taken alone", "b": "B is taken alone", "plain": "both are fused as they are"}[otherwise]
        return f"warning: B is not registered for sure ({sure}, {edges}): {taken}"

    def __call__(self, a: Picture, b: Picture) -> View:
        a, b = (fitted.picture(picture) for fitted, picture in zip(self.fits, (a, b)))
        if self.moved:
            b = Picture(*self.alignment.apply(*b))
        if self.alone is None:
            return View(a, b)
        alone_a, alone_b = self.alone
        gray_a, gray_b = a.gray + alone_b * (b.gray - a.gray), b.gray + alone_a * (a.gray - b.gray)
        only = np.where(alone_a >= alone_b, a.gray, b.gray)
        one, two = (
            Picture(gray, fade(chroma, 1 - less))
            for gray, chroma, less in ((gray_a, a.chroma, alone_b), (gray_b, b.chroma, alone_a))
        )
        return View(one, two, np.maximum(alone_a, alone_b), only)


def weights(area_a: np.ndarray, area_b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """How far A and B count alone, (H, W) float32 in [0, 1], by where they show something; None where neither does."""
    alone = []
    for own, other in ((area_a, area_b), (area_b, area_a)):
        far = cv2.distanceTransform(other, cv2.DIST_L2, 5) if not other.all() else np.float32(FEATHER)
        alone.append(own * np.clip(1 - far / FEATHER, 0, 1).astype(np.float32))
    return tuple(alone) if any(map(np.any, alone)) else None


def fade(chroma: np.ndarray | None, share: float | np.ndarray) -> np.ndarray | None:
    """Chroma (2, H, W) uint8, `share` times as far from gray; None stays None."""
    if chroma is None:
        return None
    return (NEUTRAL + share * (chroma.astype(np.float32) - NEUTRAL)).round().astype(np.uint8)
