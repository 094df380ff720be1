"""Pairs of two focuses or two exposures simulated from single photographs, where real ones to train on are few."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from utils.check import checked
from utils.config import Config, read_yaml
from utils.data.images import as_unit, colorize, read_image, to_8bit, write_image
from utils.data.sources import Source, find_dataset, read_names
from utils.errors import InputError
from utils.files import write_file
from utils.opencv import cv2


def focus_pair(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) uint8, sharp everywhere, focused on what is near, and on what is far.

    Depth is drawn like a scene's: the ground comes nearer downwards, with hills, or a few objects with hard edges are
    near. Where it changes smoothly, the blur does, too, and nothing is blurred in both; at a hard edge a blurred object
    bleeds over what is behind it, and what is behind a sharp one does not.
    """
    sharp = image.astype(np.float32)
    height, width = image.shape[:2]
    sigma = rng.uniform(1.2, 4.0)  # pixels
    if rng.random() < 0.5:
        depth = smooth_depth(height, width, rng)
        return tuple(round_to_8bit(blur_by(sharp, sigma * (side * depth).clip(0, 1))) for side in (-1, 1))
    near = objects(height, width, rng) if rng.random() < 0.7 else (smooth_depth(height, width, rng) > 0)
    near = cv2.GaussianBlur(near.astype(np.float32), (0, 0), 0.6)[..., None]  # an edge is not finer than a pixel
    behind = gaussian(sharp * (1 - near), sigma) / np.maximum(gaussian(1 - near, sigma), 1e-3)
    spread = gaussian(near, sigma)
    before = gaussian(sharp * near, sigma) / np.maximum(spread, 1e-3)
    return round_to_8bit(near * sharp + (1 - near) * behind), round_to_8bit(spread * before + (1 - spread) * sharp)


def exposure_pair(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) uint8 over- and underexposed by a camera with a response curve, noise and 8 bit."""
    gamma = rng.uniform(1.8, 2.4)
    toe = rng.uniform(0.0, 0.5)  # how much the response is bent to an S
    light = (image.astype(np.float32) / 255) ** gamma

    def exposed(stops: float) -> np.ndarray:
        sensor = light * 2**stops
        noise = np.sqrt(1e-6 + 2e-4 * sensor) * rng.standard_normal(light.shape, np.float32)  # readout, photons
        value = (sensor + noise).clip(0, 1) ** (1 / gamma)
        return round_to_8bit(255 * ((1 - toe) * value + toe * value**2 * (3 - 2 * value)))

    return exposed(rng.uniform(0.8, 2.5)), exposed(-rng.uniform(1.5, 4.0))


# by task: how a pair is made, and what the texts of A and of B say beside what the photograph shows
SIMULATORS: dict[str, tuple[Callable, str, str]] = {
    "MFF": (
        focus_pair,
        "What is near is in sharp focus, what is far is soft and blurred.",
        "What is far is in sharp focus, what is near is soft and blurred.",
    ),
    "MEF": (
        exposure_pair,
        "Overexposed: bright areas are burnt to white, dark areas are easy to read.",
        "Underexposed: dark areas sink into black, bright areas keep their detail.",
    ),
}


def round_to_8bit(image: np.ndarray) -> np.ndarray:
    """0..255 float as uint8."""
    return image.clip(0, 255).round().astype(np.uint8)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W, C), sigma in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def blur_by(image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Blur every pixel of (H, W, C) by its own sigma (H, W): between the nearest two of six blurred copies."""
    step = max(float(sigma.max()), 1e-3) / 5
    copies = np.stack([image, *(gaussian(image, step * i) for i in range(1, 6))])
    lower = np.minimum((sigma / step).astype(int), 4)[None, ..., None]
    share = (sigma / step)[..., None] - lower[0]
    below, above = (np.take_along_axis(copies, lower + i, axis=0)[0] for i in (0, 1))
    return (1 - share) * below + share * above


def smooth_depth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """How near each pixel is, (H, W), a plane with hills around 0; positive is near."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    plane = rng.uniform(0.5, 2) * y + rng.uniform(-1.5, 1.5) * x + rng.uniform(-0.5, 0.5)
    hills = cv2.resize(rng.standard_normal((6, 6)), (width, height), interpolation=cv2.INTER_CUBIC)
    return (plane + rng.uniform(0, 1) * hills).astype(np.float32)


def objects(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Where near objects are, (H, W) bool: ellipses and polygons."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 5)):
        centre = rng.uniform(0, 1, 2) * (width, height)
        radius = rng.uniform(0.1, 0.4) * min(height, width)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        if rng.random() < 0.5:
            axes = (int(radius), int(radius * rng.uniform(0.3, 1)))
            cv2.ellipse(mask, centre.astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, 1, -1)
        else:
            corners = centre + radius * rng.uniform(0.5, 1.5, (len(angles), 1)) * np.c_[np.cos(angles), np.sin(angles)]
            cv2.fillPoly(mask, [corners.astype(int)], 1)
    return mask > 0


@dataclass
class Origin:
    """An entry of data.simulate: the photographs are the images `image` of the dataset `of`."""

    of: str
    image: str


def main(config: Config, words: list[str]) -> None:
    """Make the sets that data.simulate asks for, images and text beside the real ones.

    A set is made from all photographs of a split and takes that split's name, so what is simulated from training images
    is trained on only. Sets that are not among `words` are left alone, and those whose split file is there are kept.

    Raises:
        InputError: a row that makes no sense, a task without a simulator, a photograph or text that is missing.
    """
    table = read_yaml(config.data.datasets)
    for dataset, origin in config.data.simulate.items():
        origin = checked(Origin, origin, f"data.simulate.{dataset}")
        splits = {word.rpartition("_")[2] for word in words if word.rpartition("_")[0] == dataset}
        if not splits and dataset not in words:
            continue
        row, real = (find_dataset(name, table, config) for name in (dataset, origin.of))
        if row.task not in SIMULATORS:
            can = " and ".join(SIMULATORS)
            raise InputError(f"{row.task} cannot be simulated (data.simulate.{dataset}); {can} can")
        if dataset in words:
            splits |= {path.stem for path in real.folder("Image").glob("*.txt")}
        for split in sorted(splits):
            made, source = (replace(each, split=split) for each in (row, real))
            if not made.names.exists():
                simulate_set(made, source, origin.image, config)


def simulate_set(made: Source, real: Source, side: str, config: Config) -> None:
    """Write images, the photograph as their truth if the row has one, texts and at last the split file."""
    problems: list[str] = []
    names, images = read_names(real.names, problems), real.list_images(side)
    problems += [f"'{name}' has no image in {real.folder('Image') / side}" for name in names if name not in images]
    if problems:
        raise InputError("\n".join([f"{made.name} was not simulated:", *(f"  {line}" for line in problems)]))
    make_pair, *sentences = SIMULATORS[made.task]
    for name in tqdm(names, desc=made.name, unit="pair", disable=None):
        gray, chroma = read_image(images[name][0])
        rng = np.random.default_rng([config.seed, *f"{made.dataset}/{name}".encode()])
        photograph = colorize(to_8bit(as_unit(gray), "clamp"), chroma)
        pair = make_pair(photograph, rng)
        needs_text = config.text.use not in ("default", "none")
        has_text = needs_text or real.text_file(side, name).is_file()
        paragraph = real.read_text(side, name) if has_text else ""
        if made.truth:
            write_image(made.image_file(made.truth, name), photograph)
        for made_side, image, sentence in zip((made.a, made.b), pair, sentences):
            write_image(made.image_file(made_side, name), image)
            if has_text:
                write_file(made.text_file(made_side, name), f"{paragraph} {sentence}\n")
    write_file(made.names, "\n".join([*names, ""]))
    print(f"{made.names}: {len(names)} pairs simulated from {real.name}, seed {config.seed}")
