"""Registration of pairs that are not quite registered, by the enhanced correlation coefficient (ECC).

Infrared and visible differ in brightness and even in sign; where their edges are is what they share. So ECC
(Evangelidis and Psarakis, PAMI 2008) compares gradient magnitudes, each divided by its local mean: else a few strong
edges would rule. A matrix (3, 3) says at which place (x, y, 1) of B the pixel (x, y, 1) of A is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.config import MOTIONS
from utils.errors import InputError, nearest
from utils.opencv import cv2

ECC_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)  # at most 40, while this much is gained
FINEST = 640  # pixels of the longer side; larger images are scaled down to it
SMALLEST = 24  # pixels of the shorter side, of any level
KEPT = (4, 2, 1)  # so many of the best matrices leave a level; the last level is the finest
SIGMA, AROUND = 1.2, 10.0  # pixels: the blur before gradients are taken, and of their local mean
BORDER = 3  # pixels that are left out at each side: there the blur has no neighbours
ANGLES = (-2, 0, 2)  # degrees: the starts of a motion that can rotate
REACH, STARTS = 0.12, 2  # the farthest start, of the shorter side; how many for each angle
FARTHEST = 0.2  # of the shorter side: how far a corner can move; no mirrored or degenerate image is within it
TILES = 12  # along the longer side, see `judge`
LEAST, GAIN, SURE = 0.14, 0.01, 3.0  # of the correlation after, of its gain, of that in standard errors
MOVED = 0.5  # pixels: for less it is not worth a warp, which blurs
DOUBLE = np.diag([2.0, 2.0, 1.0])  # from the pixels of a level to those of the next finer one


class Alignment(NamedTuple):
    """How B is registered to A.

    Attributes:
        matrix: (3, 3) float64; the identity if B is kept as it is.
        before, after: correlation of the gradient magnitudes of A with those of B and of the warped B, over the area
            that both have; of larger images scaled down to 640 pixels.
        shift: how far pixels of the image move, the median in pixels.
        improved: False to keep B as it is: nothing better was found, or nothing that is sure to be.
    """

    matrix: np.ndarray
    before: float
    after: float
    shift: float
    improved: bool


def align(image_a: np.ndarray, image_b: np.ndarray, motion: str) -> Alignment:
    """Register B to A, if it is moved by less than a tenth of the image, and rotated by a few degrees.

    Args:
        image_a, image_b: (H, W) gray float32 in [0, 1].
        motion: one of MOTIONS.

    Raises:
        InputError: another motion, or unequal shapes.
    """
    if motion not in MOTIONS:
        raise InputError(f"there is no motion '{motion}'; {nearest(motion, MOTIONS)}")
    if image_a.shape != image_b.shape:
        raise InputError(f"images of {image_a.shape} and {image_b.shape} pixels cannot be registered; scale one")
    height, width = image_a.shape
    scale = min(1, FINEST / max(height, width))
    size = round(width * scale), round(height * scale)
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
    before, after, sure = judge(*levels[-1], best[0][1])
    x, y = width / size[0], height / size[1]
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
    magnitude = cv2.magnitude(cv2.Sobel(image, -1, 1, 0), cv2.Sobel(image, -1, 0, 1))
    around = cv2.GaussianBlur(magnitude, (0, 0), AROUND) + magnitude.mean() / 4 + 1e-6  # flat parts stay low
    return np.minimum(magnitude / around, 4)


def starts(a: np.ndarray, b: np.ndarray, angles: Sequence[float]) -> list[np.ndarray]:
    """Matrices to start from: the identity, and for each angle in degrees the translations that correlate best."""
    (height, width), reach = a.shape, int(REACH * min(a.shape))
    found = [np.eye(3)]
    for angle in angles:
        turn = np.vstack([cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1), [0, 0, 1]])
        inner = sample(b, turn)[reach : height - reach, reach : width - reach].copy()
        scores = cv2.matchTemplate(a, inner, cv2.TM_CCOEFF_NORMED)  # of all translations within reach
        peaks = np.argwhere(scores == cv2.dilate(scores, np.ones((7, 7))))
        for y, x in sorted(peaks, key=lambda peak: -scores[tuple(peak)])[:STARTS]:
            found.append(turn @ [[1, 0, reach - x], [0, 1, reach - y], [0, 0, 1]])
    return found


def refine(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motions: Sequence[str]) -> tuple[float, np.ndarray]:
    """ECC by one motion after the other, without steps that make it worse: the correlation and the matrix."""
    best = agreement(a, sample(b, matrix), overlap(matrix, a.shape)).mean()
    for motion in dict.fromkeys(motions):
        start = (matrix if motion == "homography" else matrix[:2]).astype(np.float32)
        inside, model = overlap(np.eye(3), a.shape), getattr(cv2, f"MOTION_{motion.upper()}")
        try:
            found = cv2.findTransformECC(a, b, start, model, ECC_STEPS, inside, 1)[1]
        except cv2.error:  # it does not converge from here
            continue
        found = np.vstack([found.astype(float), [0, 0, 1]])[:3]
        corners, moved = places(found, a.shape, 2)
        if np.abs(moved - corners).max() < FARTHEST * min(a.shape):  # false for NaN, too
            reached = agreement(a, sample(b, found), overlap(found, a.shape)).mean()
            best, matrix = max((best, matrix), (reached, found), key=lambda each: each[0])
    return best, matrix


def judge(a: np.ndarray, b: np.ndarray, matrix: np.ndarray) -> tuple[float, float, bool]:
    """Correlation before and after, and whether the gain is sure.

    Unrelated images reach 0.03 to 0.12. A chance match gains in a few tiles and loses in others; what is right gains
    nearly everywhere, so that the mean gain is far above its standard error.
    """
    shared, tiles = overlap(matrix, a.shape), [math.ceil(TILES * side / max(a.shape)) for side in a.shape[::-1]]
    kept, moved = (agreement(a, image, shared) for image in (b, sample(b, matrix)))
    gains = cv2.resize(moved - kept, tiles, interpolation=cv2.INTER_AREA)
    error, before, after = gains.std() / math.sqrt(gains.size - 1), kept.mean().item(), moved.mean().item()
    return before, after, bool(after > LEAST and after - before > max(GAIN, SURE * error))


def overlap(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where both images are, less their borders: (H, W) uint8, 0 or 1."""
    inside = np.zeros(shape, np.uint8)
    inside[BORDER:-BORDER, BORDER:-BORDER] = 1
    return inside & sample(inside, matrix, cv2.INTER_NEAREST)  # its border is 0, and so is what is outside


def agreement(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How each pixel (H, W) counts for the correlation of two images over a mask, which is the mean; 0 outside."""
    (mean_a, std_a), (mean_b, std_b) = (map(np.ndarray.item, cv2.meanStdDev(image, mask=mask)) for image in (a, b))
    return (a - mean_a) * (b - mean_b) * (mask / (std_a * std_b + 1e-6) * (mask.size / max(1, mask.sum())))
