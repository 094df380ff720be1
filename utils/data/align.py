"""Registration of pairs that are not quite registered, by the enhanced correlation coefficient (ECC).

Infrared and visible share edges, not brightness. So ECC (Evangelidis and Psarakis, PAMI 2008) compares gradient
magnitudes, each divided by its local mean: else a few strong edges would rule. A matrix (3, 3) says at which place
(x, y, 1) of B the pixel (x, y, 1) of A is.

A search over scales, angles and shifts of small images finds the beginning, ECC the rest, coarse to fine. It is sure
where no other place fits nearly as well, and both halves of the image name the same one.
"""

import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from utils.opencv import cv2

MOTIONS = ("translation", "affine", "homography")
ECC_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)  # at most 40, while this much is gained
FINEST, SMALLEST, LEVELS = 640, 24, 3  # pixels, of any level: the longer side at most, the shorter one at least
SIGMA, AROUND = 1.2, 10.0  # pixels: the blur before gradients are taken, and of their local mean
BORDER = 3  # pixels that are left out at each side: there the blur has no neighbours
SCALES = np.geomspace(0.69, 1 / 0.69, 14)  # of the search: steps that ECC bridges on the smallest level
ANGLES, REACH = (-5.0, -2.5, 0.0, 2.5, 5.0), 0.12  # degrees; shifts at most, of each side
STARTS, APART = 3, 5.0  # places that ECC starts from, and their distance in pixels of the smallest level
NEAR = 0.1  # of the shorter side: how far a corner moves on a level; no mirrored or degenerate image is within it
SURE, SPREAD = 0.25, 5.0  # the least confidence; pixels of the finest level by which halves may differ
LEAST = 0.14  # of the correlation, which unrelated images rarely reach
GAIN, ERRORS, PARTS = 0.01, 2.5, 12  # of the correlation; in its standard errors, over so many tiles along a side
TILES = 3  # along the longer side: the black and the white ones of a chessboard are the halves
MOVED, IN_PLACE = 0.5, 2.0  # pixels: for less it is not worth a warp, which blurs; for less B is in its place
FRAME_LEAST, FRAME_BENT, FRAME_RIM = 0.002, 0.1, 2  # of the image; of a frame, what is within the hull; pixels
DOUBLE = np.diag([2.0, 2.0, 1.0])  # from the pixels of a level to those of the next finer one


class Alignment(NamedTuple):
    """How B is registered to A.

    Attributes:
        matrix: (3, 3) float64; the identity if B is kept as it is.
        before, after: correlation of the gradients of A with those of B and of the warped B, at FINEST.
        shift: how far pixels of the image move, the median in pixels.
        improved: whether B fits better by the matrix, in most places; False to keep B as it is.
        confidence: 0 to 1, how much worse the next best place fits.
        spread: pixels, how far apart two halves of the image put its corners, the mean.
        sure: whether to rely on it to some pixels, be B moved or in its place already; asks for more than `improved`.
    """

    matrix: np.ndarray
    before: float
    after: float
    shift: float
    improved: bool
    confidence: float
    spread: float
    sure: bool

    def apply(self, *images: np.ndarray | None) -> list[np.ndarray | None]:
        """Images of B as A sees them, by `warp`; as they are where the alignment did not improve. None stays None."""
        return [warp(image, self.matrix) if self.improved and image is not None else image for image in images]


def align(image_a: np.ndarray, image_b: np.ndarray, motion: str) -> Alignment:
    """Register B to A, if it is shifted by at most a tenth, turned by at most 5 degrees, and 0.7 to 1.4 times as large.

    Both are (H, W) gray float32 in [0, 1], of one shape; the motion is one of MOTIONS.
    """
    scale = min(1, FINEST / max(image_a.shape))
    size = [round(scale * side) for side in image_a.shape[::-1]]
    if min(size) < SMALLEST:
        return Alignment(np.eye(3), 0.0, 0.0, 0.0, False, 0.0, np.inf, False)
    levels = [[edges_inside(image, size) for image in (image_a, image_b)]]
    while len(levels) < LEVELS and min(levels[0][0].shape) >= 2 * SMALLEST:
        levels.insert(0, [cv2.pyrDown(image) for image in levels[0]])
    fixed = motion == "translation"
    found = starts(*levels[0], (1.0,) if fixed else SCALES, (0.0,) if fixed else ANGLES)
    first = motion if fixed else "affine"
    (best, matrix), *others = sorted((refine(*levels[0], start, first) for start in found), key=lambda each: -each[0])
    second = max((fit for fit, other in others if distance(matrix, other, levels[0][0].shape) > APART), default=0.0)
    confidence = float(1 - max(second, 0) / best) if best > 0 else 0.0
    for a, b in levels[1:]:
        matrix = refine(a, b, DOUBLE @ matrix @ np.linalg.inv(DOUBLE), motion)[1]
    before, after, better = judge(*levels[-1], matrix)
    apart = spread(*levels[-1], matrix, first)
    x, y = np.divide(image_a.shape[::-1], size)
    enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # a pixel's place is that of its centre
    matrix = enlarge @ matrix @ np.linalg.inv(enlarge)
    shift = distance(matrix, np.eye(3), image_a.shape)
    improved = shift > MOVED and better and apart < 4 * SPREAD
    sure = confidence >= SURE and apart <= SPREAD and after > LEAST and (improved or shift < IN_PLACE)
    found = confidence, float(x * apart), sure
    if improved:
        return Alignment(matrix / matrix[2, 2], before, after, shift, True, *found)
    return Alignment(np.eye(3), before, before, 0.0, False, *found)


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W) or (2, H, W) of B as A sees it, uint8, uint16 or float32 in [0, 1]: bicubic, the border replicated."""
    planes = [sample(plane, matrix, cv2.INTER_CUBIC) for plane in image.reshape(-1, *image.shape[-2:])]
    warped = np.reshape(planes, image.shape)
    return warped.clip(0, 1) if image.dtype == np.float32 else warped  # OpenCV clips integers itself


def sample(
    image: np.ndarray, matrix: np.ndarray, interpolation: int = cv2.INTER_LINEAR, border: int = cv2.BORDER_REPLICATE
) -> np.ndarray:
    """An image (H, W) at the places that a matrix names."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, matrix, image.shape[::-1], flags=flags, borderMode=border)


def places(matrix: np.ndarray, shape: tuple[int, int], count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """`count` x `count` pixels (x, y) from corner to corner of (H, W), and their places: (N, 2) each."""
    pixels = np.stack(np.meshgrid(*(np.linspace(0, side - 1, count) for side in shape[::-1])), -1).reshape(-1, 2)
    return pixels, cv2.perspectiveTransform(pixels[None], matrix)[0]


def distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, int]) -> float:
    """Between the places that two matrices name, pixels: the median over the image."""
    return float(np.median(np.linalg.norm(places(first, shape)[1] - places(second, shape)[1], axis=1)))


def edges_inside(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The edges of an image in another size (W, H), without those of a frame."""
    found = edges(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    area = valid_area(image)
    if area is None:
        return found
    area = cv2.resize(area.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return found * cv2.erode(area, np.ones((7, 7)))


def edges(image: np.ndarray) -> np.ndarray:
    """Gradient magnitudes of an image (H, W) float32, divided by their local mean, at most 4."""
    image = cv2.GaussianBlur(image, (0, 0), SIGMA)
    # not cv2.magnitude, which rounds by where an array is in memory
    magnitude = np.sqrt(cv2.Sobel(image, -1, 1, 0) ** 2 + cv2.Sobel(image, -1, 0, 1) ** 2)
    around = cv2.GaussianBlur(magnitude, (0, 0), AROUND) + magnitude.mean() / 4 + 1e-6  # flat parts stay low
    return np.minimum(magnitude / around, 4)


def starts(a: np.ndarray, b: np.ndarray, scales: Sequence[float], angles: Sequence[float]) -> list[np.ndarray]:
    """The matrices of STARTS similarities that correlate best, each APART from those before it; best first."""
    height, width = a.shape
    centre, reach, found = ((width - 1) / 2, (height - 1) / 2), (round(REACH * height), round(REACH * width)), []
    for scale, angle in itertools.product(scales, angles):
        turn = np.vstack([cv2.getRotationMatrix2D(centre, angle, scale), [0, 0, 1]])
        # of the warped B, a part that is within B and, wherever it is moved, within A as far as that goes
        share = min(1 / scale, 1 - 2 * REACH)
        top, left = (round(side * (1 - share) / 2) for side in a.shape)
        down, right = min(reach[0], top), min(reach[1], left)
        part = sample(b, turn)[top : height - top, left : width - left].copy()
        area = a[top - down : height - top + down, left - right : width - left + right].copy()
        scores = cv2.matchTemplate(area, part, cv2.TM_CCOEFF_NORMED)
        for y, x in np.argwhere(scores == cv2.dilate(scores, np.ones((7, 7)))):
            found.append((scores[y, x], turn @ [[1, 0, right - x], [0, 1, down - y], [0, 0, 1]]))
    kept: list[np.ndarray] = []
    for _, matrix in sorted(found, key=lambda each: -each[0]):
        if all(distance(matrix, other, a.shape) > APART for other in kept):
            kept.append(matrix)
        if len(kept) == STARTS:
            break
    return kept


def ecc(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motion: str, inside: np.ndarray) -> np.ndarray | None:
    """The matrix that ECC finds from another one, by the pixels of B `inside`; None if it does not converge nearby."""
    start = (matrix if motion == "homography" else matrix[:2]).astype(np.float32)
    try:
        found = cv2.findTransformECC(a, b, start, getattr(cv2, f"MOTION_{motion.upper()}"), ECC_STEPS, inside, 1)[1]
    except cv2.error:
        return None
    found = np.vstack([found.astype(float), [0, 0, 1]])[:3]
    moved = np.abs(places(found, a.shape, 2)[1] - places(matrix, a.shape, 2)[1]).max()
    return found if moved < NEAR * min(a.shape) else None  # nor for NaN


def refine(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motion: str) -> tuple[float, np.ndarray]:
    """The correlation and the matrix after ECC, or before it if that made it worse."""
    found = [matrix, ecc(a, b, matrix, motion, overlap(np.eye(3), a.shape))]
    return max(((correlation(a, b, each).mean(), each) for each in found if each is not None), key=itemgetter(0))


def spread(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, motion: str) -> float:
    """How far apart, in pixels, each half of B alone puts the corners of the image: the mean; infinite if one fails.

    It is measured at half the size, which is enough and quicker.
    """
    a, b, matrix = cv2.pyrDown(a), cv2.pyrDown(b), np.linalg.inv(DOUBLE) @ matrix @ DOUBLE
    board = np.indices(a.shape) // -(-max(a.shape) // TILES)
    inside, odd = overlap(np.eye(3), a.shape), (board.sum(0) % 2).astype(np.uint8)
    halves = [ecc(a, b, matrix, motion, inside * half) for half in (odd, 1 - odd)]
    if any(half is None for half in halves):
        return np.inf
    first, second = (places(half, a.shape, 2)[1] for half in halves)
    return float(2 * np.linalg.norm(first - second, axis=1).mean())


def judge(a: np.ndarray, b: np.ndarray, matrix: np.ndarray) -> tuple[float, float, bool]:
    """Correlation before and after, and whether it gains in most places, by far more than its standard error."""
    kept, moved = (correlation(a, b, each, matrix) for each in (np.eye(3), matrix))
    parts = [-(-PARTS * side // max(a.shape)) for side in a.shape[::-1]]
    gains = cv2.resize(moved - kept, parts, interpolation=cv2.INTER_AREA)
    error, before, after = gains.std() / (gains.size - 1) ** 0.5, kept.mean().item(), moved.mean().item()
    return before, after, bool(after > LEAST and after - before > max(GAIN, ERRORS * error))


def correlation(a: np.ndarray, b: np.ndarray, matrix: np.ndarray, area: np.ndarray | None = None) -> np.ndarray:
    """Each pixel's part (H, W) in the correlation of A with the warped B, which is the mean, where `area` overlaps."""
    b, mask = sample(b, matrix), overlap(matrix if area is None else area, a.shape)
    (mean_a, std_a), (mean_b, std_b) = (map(np.ndarray.item, cv2.meanStdDev(image, mask=mask)) for image in (a, b))
    return (a - mean_a) * (b - mean_b) * mask * (mask.size / (mask.sum() * std_a * std_b + 1e-6))


def overlap(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where both images are, less their borders: (H, W) uint8, 0 or 1."""
    inside = np.pad(np.ones(np.subtract(shape, 2 * BORDER), np.uint8), BORDER)
    return inside & sample(inside, matrix, cv2.INTER_NEAREST)  # its border is 0, and so is what is outside


def valid_area(image: np.ndarray) -> np.ndarray | None:
    """Where an image (H, W) is not the black or white frame that a warp or a mount leaves; None if it has no frame.

    A frame is of the least or greatest value exactly, touches the border, and leaves a convex area, less FRAME_RIM
    pixels where the values are mixed: a black sky above roofs is none.
    """
    frame = np.zeros(np.add(image.shape, 2), np.uint8)
    for value in (image.min(), image.max()):
        same = np.pad((image == value).astype(np.uint8), 1, constant_values=1)  # one piece, around the image
        cv2.floodFill(same, None, (0, 0), 2)
        frame |= cv2.morphologyEx((same == 2).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    frame = frame[1:-1, 1:-1]
    if not FRAME_LEAST < frame.mean() < 1 - FRAME_LEAST:
        return None
    hull = cv2.fillConvexPoly(np.zeros_like(frame), cv2.convexHull(cv2.findNonZero(1 - frame)), 1)
    if (hull & frame).sum() > FRAME_BENT * frame.sum():
        return None
    return cv2.dilate(frame, np.ones((2 * FRAME_RIM + 1,) * 2, np.uint8)) == 0
