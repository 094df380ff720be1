"""Registration of pairs that are not quite registered, by the enhanced correlation coefficient (ECC).

Infrared and visible share edges, not brightness. So ECC (Evangelidis and Psarakis, PAMI 2008) compares gradient
magnitudes, each divided by its local mean: else a few strong edges would rule. A matrix (3, 3) says at which place
(x, y, 1) of B the pixel (x, y, 1) of A is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.opencv import cv2

MOTIONS = ("translation", "affine", "homography")
ECC_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)  # at most 40, while this much is gained
FINEST, SMALLEST = 640, 24  # pixels, of any level: the longer side at most, the shorter one at least
KEPT = (4, 2, 1)  # so many of the best matrices leave a level; the last level is the finest
SIGMA, AROUND = 1.2, 10.0  # pixels: the blur before gradients are taken, and of their local mean
BORDER = 3  # pixels that are left out at each side: there the blur has no neighbours
ANGLES, STARTS, REACH = (-2, 0, 2), 2, 0.12  # degrees; starts for each; the farthest one, of the shorter side
FARTHEST = 0.2  # of the shorter side: how far a corner can move; no mirrored or degenerate image is within it
TILES = 12  # along the longer side, see `judge`
LEAST, GAIN, SURE = 0.14, 0.01, 2.5  # of the correlation, which unrelated images rarely reach; of its gain; in errors
MOVED = 0.5  # pixels: for less it is not worth a warp, which blurs
DOUBLE = np.diag([2.0, 2.0, 1.0])  # from the pixels of a level to those of the next finer one


class Alignment(NamedTuple):
    """How B is registered to A.

    Attributes:
        matrix: (3, 3) float64; the identity if B is kept as it is.
        before, after: correlation of the gradients of A with those of B and of the warped B, at FINEST.
        shift: how far pixels of the image move, the median in pixels.
        improved: False to keep B as it is: nothing better was found, or nothing that is sure to be.
    """

    matrix: np.ndarray
    before: float
    after: float
    shift: float
    improved: bool

    def apply(self, *images: np.ndarray | None) -> list[np.ndarray | None]:
        """Images of B as A sees them, by `warp`; as they are where the alignment did not improve. None stays None."""
        return [warp(image, self.matrix) if self.improved and image is not None else image for image in images]


def align(image_a: np.ndarray, image_b: np.ndarray, motion: str) -> Alignment:
    """Register B to A, if it is moved by less than a tenth of the image, and rotated by a few degrees.

    Both are (H, W) gray float32 in [0, 1], of one shape; the motion is one of MOTIONS.
    """
    scale = min(1, FINEST / max(image_a.shape))
    size = [round(scale * side) for side in image_a.shape[::-1]]
    if min(size) < SMALLEST:
        return Alignment(np.eye(3), 0.0, 0.0, 0.0, improved=False)
    levels = [[edges(cv2.resize(image, size, interpolation=cv2.INTER_AREA)) for image in (image_a, image_b)]]
    while len(levels) < len(KEPT) and min(levels[0][0].shape) >= 2 * SMALLEST:
        levels.insert(0, [cv2.pyrDown(image) for image in levels[0]])
    ladder = ["translation", "translation" if motion == "translation" else "euclidean", motion]
    found = starts(*levels[0], (0,) if motion == "translation" else ANGLES)
    for number, (a, b) in enumerate(levels, start=len(KEPT) - len(levels)):
        refined = [refine(a, b, matrix, ladder[number : number + 2]) for matrix in found]
        best = sorted(refined, key=lambda each: -each[0])[: KEPT[number]]
        found = [DOUBLE @ matrix @ np.linalg.inv(DOUBLE) for _, matrix in best]
    (before, after, sure), (x, y) = judge(*levels[-1], best[0][1]), np.divide(image_a.shape[::-1], size)
    enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # a pixel's place is that of its centre
    matrix = enlarge @ best[0][1] @ np.linalg.inv(enlarge)
    shift = np.median(np.linalg.norm(np.subtract(*places(matrix, image_a.shape)), axis=1)).item()
    if sure and shift > MOVED:
        return Alignment(matrix / matrix[2, 2], before, after, shift, improved=True)
    return Alignment(np.eye(3), before, before, 0.0, improved=False)


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W) or (2, H, W) of B as A sees it, uint8, uint16 or float32 in [0, 1]: bicubic, the border replicated."""
    planes = [sample(plane, matrix, cv2.INTER_CUBIC) for plane in image.reshape(-1, *image.shape[-2:])]
    warped = np.reshape(planes, image.shape)
    return warped.clip(0, 1) if image.dtype == np.float32 else warped  # OpenCV clips integers itself


def sample(image: np.ndarray, matrix: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """An image (H, W) at the places that a matrix names."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, matrix, image.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def places(matrix: np.ndarray, shape: tuple[int, int], count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """`count` x `count` pixels (x, y) from corner to corner of (H, W), and their places: (N, 2) each."""
    pixels = np.stack(np.meshgrid(*(np.linspace(0, side - 1, count) for side in shape[::-1])), -1).reshape(-1, 2)
    return pixels, cv2.perspectiveTransform(pixels[None], matrix)[0]


def edges(image: np.ndarray) -> np.ndarray:
    """Gradient magnitudes of an image (H, W) float32, divided by their local mean, at most 4."""
    image = cv2.GaussianBlur(image, (0, 0), SIGMA)
    # not cv2.magnitude, which rounds by where an array is in memory
    magnitude = np.sqrt(cv2.Sobel(image, -1, 1, 0) ** 2 + cv2.Sobel(image, -1, 0, 1) ** 2)
    around = cv2.GaussianBlur(magnitude, (0, 0), AROUND) + magnitude.mean() / 4 + 1e-6  # flat parts stay low
    return np.minimum(magnitude / around, 4)


def starts(a: np.ndarray, b: np.ndarray, angles: Sequence[float]) -> list[np.ndarray]:
    """Matrices to start from: the identity, and for each angle in degrees the translations that correlate best."""
    (height, width), reach, found = a.shape, int(REACH * min(a.shape)), [np.eye(3)]
    for angle in angles:
        turn = np.vstack([cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1), [0, 0, 1]])
        inner = sample(b, turn)[reach : height - reach, reach : width - reach].copy()
        scores = cv2.matchTemplate(a, inner, cv2.TM_CCOEFF_NORMED)  # of all translations within reach
        peaks = sorted(np.argwhere(scores == cv2.dilate(scores, np.ones((7, 7)))), key=lambda p: -scores[tuple(p)])
        found += [turn @ [[1, 0, reach - x], [0, 1, reach - y], [0, 0, 1]] for y, x in peaks[:STARTS]]
    return found


def refine(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motions: Sequence[str]) -> tuple[float, np.ndarray]:
    """ECC by one motion after the other, without steps that make it worse: the correlation and the matrix."""
    inside, best = overlap(np.eye(3), a.shape), correlation(a, b, matrix).mean()
    for motion in dict.fromkeys(motions):
        start = (matrix if motion == "homography" else matrix[:2]).astype(np.float32)
        try:
            found = cv2.findTransformECC(a, b, start, getattr(cv2, f"MOTION_{motion.upper()}"), ECC_STEPS, inside, 1)[1]
        except cv2.error:  # it does not converge from here
            continue
        found = np.vstack([found.astype(float), [0, 0, 1]])[:3]
        near = np.abs(np.subtract(*places(found, a.shape, 2))).max() < FARTHEST * min(a.shape)  # false for NaN, too
        if near and (reached := correlation(a, b, found).mean()) > best:
            best, matrix = reached, found
    return best, matrix


def judge(a: np.ndarray, b: np.ndarray, matrix: np.ndarray) -> tuple[float, float, bool]:
    """Correlation before and after, and whether the gain is sure.

    A chance match gains in a few tiles, what is right in most: then the mean gain is far above its standard error.
    """
    kept, moved = (correlation(a, b, m, matrix) for m in (np.eye(3), matrix))
    tiles = [math.ceil(TILES * side / max(a.shape)) for side in a.shape[::-1]]
    gains = cv2.resize(moved - kept, tiles, interpolation=cv2.INTER_AREA)
    error, before, after = gains.std() / math.sqrt(gains.size - 1), kept.mean().item(), moved.mean().item()
    return before, after, bool(after > LEAST and after - before > max(GAIN, SURE * error))


def correlation(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, area: np.ndarray | None = None) -> np.ndarray:
    """Each pixel's part (H, W) in the correlation of A with the warped B, which is the mean, where `area` overlaps."""
    b, mask = sample(b, matrix), overlap(matrix if area is None else area, a.shape)
    (mean_a, std_a), (mean_b, std_b) = (map(np.ndarray.item, cv2.meanStdDev(image, mask=mask)) for image in (a, b))
    return (a - mean_a) * (b - mean_b) * mask * (mask.size / (mask.sum() * std_a * std_b + 1e-6))


def overlap(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where both images are, less their borders: (H, W) uint8, 0 or 1."""
    inside = np.pad(np.ones(np.subtract(shape, 2 * BORDER), np.uint8), BORDER)
    return inside & sample(inside, matrix, cv2.INTER_NEAREST)  # its border is 0, and so is what is outside
