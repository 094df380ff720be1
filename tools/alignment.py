"""How well utils/data/align.py registers infrared and visible images: known warps of B, found again.

    python -m tools.alignment
    python -m tools.alignment --root /my/VLFDataset --sets RoadScene_train

B of every pair is warped by a random transform and registered to A by a motion. The error of a pair is the distance
between the true and the found place, the median over a grid of pixels. The published pairs are not perfectly
registered themselves: RoadScene by 1 to 2 pixels, scenes of LLVIP by 3 to 4. So errors are measured twice: from
where B is as published; and from where the same motion registers the published pair, for pairs that it moves. The
second shows whether one place is found from everywhere. Whether it is the right one, the directions of edges tell,
which the registration does not look at: for published pairs that are moved, the last columns say in how many A and B
agree better in them afterwards.

A row: medians over the pairs of the error before; of the error after, its 90th percentile, and how many failed
(above 2 pixels, or not below the error before), twice; how many were made worse by both measures; how many were kept
as they are, which counts as failed where it should not be. "as published" is not warped: after is how far pairs are
moved. "other scene" has B of another pair: all should be kept.
"""

import argparse

import numpy as np
from tqdm import tqdm

from tests.toy import SHARED
from utils.config import load_config
from utils.data.align import MOTIONS, Alignment, align, distance, overlap, warp
from utils.data.images import as_unit
from utils.data.make import SourcePairs
from utils.data.sources import Source, find_sources
from utils.errors import run_script
from utils.opencv import cv2

# what B is warped by: a translation in pixels, a rotation in degrees, corners moved by a share of the longer side
WARPS = {f"shift {pixels} px": (pixels, 0, 0) for pixels in (2, 6, 12)}
WARPS |= {f"turn {angle} deg, shift": (6, angle, 0) for angle in (1, 2, 3)} | {"corners 2 %": (0, 0, 0.02)}
RIG = "rig"  # two cameras beside each other: see `rig_warp`
ROWS = [("as published", motion) for motion in MOTIONS]
ROWS += [(name, "translation") for name in WARPS if "turn" not in name and "corners" not in name]
ROWS += [(name, "affine") for name in WARPS if "corners" not in name] + [("corners 2 %", "homography")]
ROWS += [(RIG, "affine")]
ROWS += [("other scene", motion) for motion in MOTIONS]
HEAD = "                                      before   as published        registered          of\n"
HEAD += "set, transform, motion                 median   after  90 % failed  after  90 % failed  worse kept pairs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=SHARED / "data" / "VLFDataset", help="the folder with Image/")
    parser.add_argument("--sets", nargs="+", default=["RoadScene_test", "LLVIP_test"], metavar="SET")
    args = parser.parse_args()
    config = load_config("configs/film_ivf.yaml", [f"data.root={args.root}"])
    print(HEAD)
    for source in find_sources(config, args.sets):
        pairs = read_pairs(source)
        published = {motion: [align(a, b, motion) for a, b in tqdm(pairs, leave=False)] for motion in MOTIONS}
        for name, motion in tqdm(ROWS, desc=source.name, leave=False):
            row = measure(pairs, name, motion, published[motion])
            if name == "as published":
                moved = [(a, b, found.matrix) for (a, b), found in zip(pairs, published[motion]) if found.improved]
                better = sum(directions(a, warp(b, m), m) > directions(a, b, m) for a, b, m in moved)
                row += f"   directions agree better in {better} of {len(moved)}"
            tqdm.write(f"{source.name}, {name}, {motion}".ljust(50) + row)


def read_pairs(source: Source) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a set: (H, W) float32 in [0, 1] each."""
    return [tuple(map(as_unit, pair.images)) for pair in SourcePairs(source)]


def measure(pairs: list[tuple[np.ndarray, np.ndarray]], name: str, motion: str, published: list[Alignment]) -> str:
    """The numbers of a row."""
    errors, kept = [], 0
    for number, (a, b) in enumerate(tqdm(pairs, desc=name, leave=False)):
        truth = np.eye(3)
        if name in WARPS or name == RIG:
            rng = np.random.default_rng([number, *name.encode()])
            truth = rig_warp(a.shape, rng) if name == RIG else random_warp(a.shape, *WARPS[name], rng)
            b = warp(b, np.linalg.inv(truth))
        if name == "other scene":
            b = cv2.resize(pairs[(number + len(pairs) // 2) % len(pairs)][1], a.shape[::-1])
        found = align(a, b, motion) if name != "as published" else published[number]
        kept += not found.improved
        truths = truth, truth @ published[number].matrix
        errors.append([distance(t, m, a.shape) for t in truths for m in (np.eye(3), found.matrix)])
    errors = np.array(errors).reshape(-1, 2, 2)  # pairs, truths, before and after
    before, after = errors[..., 0], errors[..., 1]
    text = f"{np.median(before[:, 0]):6.1f}"
    for truth, known in enumerate((np.full(len(pairs), True), np.array([each.improved for each in published]))):
        failed = ((after > 2) | (after >= before))[known, truth]
        middle, most = np.percentile(after[known, truth], (50, 90)) if known.any() else (np.nan, np.nan)
        share = f"{failed.sum()}/{len(failed)}" if name in (*WARPS, RIG) else "-"
        text += f"{middle:8.2f}{most:6.2f}{share:>7}"
    return text + f"{(after > before).all(axis=1).sum():7d}{kept:5d}{len(pairs):6d}"


def random_warp(shape: tuple[int, int], shift: float, angle: float, corners: float, rng) -> np.ndarray:
    """A matrix (3, 3), from places in the published image to those in the warped one.

    Args:
        shift: pixels, in a random direction; with an angle at most so many.
        angle: degrees about the centre, to the left or to the right.
        corners: how far each moves at most in x and in y, a share of the longer side.
    """
    height, width = shape
    direction = rng.uniform(0, 2 * np.pi)
    if angle:
        shift, angle = rng.uniform(0, shift), angle * rng.choice((-1, 1))
    centre = ((width - 1) / 2, (height - 1) / 2)
    turn = np.vstack([cv2.getRotationMatrix2D(centre, angle, 1), [0, 0, 1]])
    turn[:2, 2] += shift * np.array([np.cos(direction), np.sin(direction)])
    box = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float32)
    moved = box + rng.uniform(-corners, corners, box.shape).astype(np.float32) * max(shape)
    return cv2.getPerspectiveTransform(box, moved) @ turn


def rig_warp(shape: tuple[int, int], rng) -> np.ndarray:
    """As `random_warp`: a scale of 0.7 to 1.4, at most 5 degrees about the centre, and a tenth of each side."""
    height, width = shape
    scale, angle = np.exp(rng.uniform(*np.log((0.7, 1.4)))), rng.uniform(-5, 5)
    matrix = np.vstack([cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale), [0, 0, 1]])
    matrix[:2, 2] += rng.uniform(-0.1, 0.1, 2) * (width, height)
    return matrix


def directions(a: np.ndarray, b: np.ndarray, matrix: np.ndarray) -> float:
    """How well edges have one direction in A and B where both have one: the mean squared cosine, 0.5 by chance.

    Only pixels count that are in both images, before and after a warp by the matrix.
    """
    smooth = [cv2.GaussianBlur(image, (0, 0), 1.2) for image in (a, b)]
    gradients = [np.stack([cv2.Sobel(image, -1, 1, 0), cv2.Sobel(image, -1, 0, 1)]) for image in smooth]
    strength = [np.linalg.norm(gradient, axis=0) for gradient in gradients]
    edge = np.logical_and.reduce([s > np.percentile(s, 60) for s in strength]) & (overlap(matrix, a.shape) > 0)
    cosines = np.prod(gradients, axis=0).sum(axis=0)[edge] / np.prod(strength, axis=0)[edge]
    return float((cosines**2).mean())


if __name__ == "__main__":
    run_script(main)
