"""Make tests/sample again: twelve small pairs of the four tasks, from images that scikit-image carries.

    python -m tools.make_sample

- MFF: real depth. The motorcycle stereo pair's left image, blurred by its distance from the plane in
  focus with the pair's disparity map, farther layers behind nearer ones; the sharp image is the truth.
- MEF: exposures of photographs, two stops over and three under in linear light, clipped to 8 bit.
- IVF: simulated. The infrared image is a guess at warmth from colour, the visible one a dark photograph
  with noise. The test pair is a street at night that is drawn over photographs of brick and gravel: one
  person stands in the dark, another one before the glare of a lamp.
- MIF: simulated. A phantom as MRI and as a colour-coded PET image with hot regions.

Text features are MiniLM's (384), in half precision.
"""

from itertools import pairwise

import cv2
import numpy as np
from skimage import data

from tests.toy import ROOT
from utils.files import to_json, write_file
from utils.guides.text import TextEncoder

SAMPLE = ROOT / "tests" / "sample"
H, W = 192, 256

# (dataset, task, folders, {name: (split, text of A, text of B)})
TEXTS = {
    ("IVF", "IR", "VI"): {
        "rocket": (
            "train",
            "The rocket and the floodlights at its foot glow warm; the lattice towers and the sky are cold and dark.",
            "At dusk a rocket stands on its pad between lattice towers, barely visible but for the floodlights.",
        ),
        "coffee": (
            "train",
            "The warm liquid in the cup and the wooden table stand out bright, the saucer and spoon stay cold.",
            "A dim picture of a coffee cup on a saucer with a spoon, standing on a table with wood grain.",
        ),
        "street": (
            "test",
            "Two people on foot and the head of a lamp glow warm; the brick wall and the gravel are cold and dark.",
            "At night a lamp glares beside a brick wall; one person stands before it, one in the dark.",
        ),
    },
    ("MIF", "MRI", "T"): {
        "slice1": (
            "train",
            "An oval head slice with a bright skull ring, two dark ventricles and gray tissue with soft shading.",
            "A color coded uptake map with one hot focus right of the center and cool tissue elsewhere.",
        ),
        "slice2": (
            "train",
            "A large round slice, the skull bright, the ventricles dark, a paler disc above and between them.",
            "The uptake is high in one small region between the ventricles; the rest is blue and cool.",
        ),
        "slice3": (
            "test",
            "A tilted oval slice with a bright rim; two dark ventricles lie on either side of the midline.",
            "A single hot region near the lower center of the map, with a weak halo around it.",
        ),
    },
    ("MEF", "OVER", "UNDER"): {
        "coffee": (
            "train",
            "The overexposed picture shows the dark coffee and the shadow of the cup; the saucer is burnt out.",
            "The underexposed picture keeps the rim and the saucer; the coffee and the wood sink into black.",
        ),
        "rocket": (
            "train",
            "Sky, towers and rocket can be seen, but the floodlights at its foot are burnt out.",
            "Only the floodlights and the rocket stand out; the sky and the towers are nearly black.",
        ),
        "chelsea": (
            "test",
            "A cat's fur is bright with details in the shadows; the white of its muzzle and chest is burnt out.",
            "A cat's eyes and bright fur are well exposed, while the dark stripes and background are lost.",
        ),
    },
    ("MFF", "NEAR", "FAR"): {
        "motorcycle1": (
            "train",
            "The seat of a motorcycle is sharp; the bench and the workshop wall behind it are out of focus.",
            "The wooden wall, the bench and the tools behind are sharp; the seat in front is blurred.",
        ),
        "motorcycle2": (
            "train",
            "A wheel and the chain guard near the camera are sharp, the floor behind is soft.",
            "The wheel in front and the exhaust are blurred, the floor in the distance is sharper.",
        ),
        "motorcycle3": (
            "test",
            "Headlamp, fork and red mudguard of the motorcycle are in focus, the shelf behind is blurred.",
            "The boxes on the shelf behind are in focus, the motorcycle in front of them is blurred.",
        ),
    },
}
CROPS = {"motorcycle1": (0, 0), "motorcycle2": (300, 60), "motorcycle3": (100, 440)}  # top, left; they do not overlap


def photograph(name: str) -> np.ndarray:
    """A colour photograph of scikit-image, (H, W, 3) BGR float in [0, 1]."""
    image = getattr(data, name)()[..., ::-1]
    scale = max(H / image.shape[0], W / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top = (image.shape[0] - H) // 2
    return image[top : top + H, :W].astype(np.float32) / 255


def ivf(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulated infrared (gray) and low-light visible (BGR)."""
    if name == "street":
        return street(rng)
    image = photograph(name)
    blue, _, red = cv2.split(image)
    warmth = np.clip(1.6 * (red - 0.7 * blue), 0, 1) * 0.75 + 0.2 * image.mean(axis=2)
    infrared = cv2.GaussianBlur(warmth, (0, 0), 1.5) + rng.normal(0, 0.01, (H, W))
    visible = 0.45 * image**1.4 + rng.normal(0, 0.012, image.shape)
    return infrared, visible


def street(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Infrared (gray) and visible (BGR) of two people at night; the nearer one stands before a lamp."""
    y, x = np.mgrid[:H, :W].astype(np.float32)
    ground = np.clip(y - 128, 0, 1)
    scene = texture("brick", W) * (1 - ground) + 0.8 * texture("gravel", 128) * ground
    coat = cv2.GaussianBlur(texture("grass", W), (0, 0), 1.2)
    from_lamp = (x - 200) ** 2 + (y - 70) ** 2
    visible = scene * (0.12 + 0.75 * np.exp(-from_lamp / 6000))
    infrared = 0.16 + 0.1 * cv2.GaussianBlur(scene, (0, 0), 1.5) + 0.05 * ground
    for person in (walker(62, 168, 78), walker(180, 164, 82)):
        visible += person * (0.05 + 0.06 * coat - visible)
        infrared += person * (0.6 + 0.35 * coat - infrared)
    infrared = cv2.GaussianBlur(infrared, (0, 0), 0.8)
    post = (np.abs(x - 200) < 2) & (y > 70) & (y < 158)
    visible[post], infrared[post] = 0.3, 0.2
    infrared += 0.7 * (from_lamp < 30)
    glare = 1.6 * np.exp(-from_lamp / 900) + 0.35 * np.exp(-from_lamp / 5000)
    colour = visible[..., None] * (1, 0.9, 0.85) + glare[..., None] * (0.75, 0.95, 1)
    return infrared + rng.normal(0, 0.01, (H, W)), colour + rng.normal(0, 0.012, (H, W, 3))


def texture(name: str, side: int) -> np.ndarray:
    """A texture of scikit-image as tiles of a side, (H, W) in [0, 1]; turned, so that bricks lie flat."""
    tile = cv2.resize(np.rot90(getattr(data, name)()), (side, side), interpolation=cv2.INTER_AREA)
    return np.tile(tile, (2, 2))[:H, :W].astype(np.float32) / 255


def walker(x: float, foot: float, height: float) -> np.ndarray:
    """The mask (H, W) in [0, 1] of a person on foot, `foot` and `height` in pixels."""
    fine = 8  # drawn so many times larger
    mask, unit = np.zeros((H * fine, W * fine), np.uint8), height / 100

    def at(right: float, up: float) -> tuple[int, int]:
        return round((x + right * unit) * fine), round((foot - up * unit) * fine)

    cv2.ellipse(mask, at(0, 92), (round(6.5 * unit * fine), round(8 * unit * fine)), 0, 0, 360, 255, -1)
    cv2.fillPoly(mask, [np.array([at(*corner) for corner in ((-12, 80), (12, 80), (10, 45), (-10, 45))])], 255)
    neck, arms = ((0, 84), (0, 76)), (((-9, 77), (-15, 58), (-13, 44)), ((9, 77), (16, 60), (19, 46)))
    legs = ((-4, 48), (-10, 24), (-14, 2)), ((4, 48), (9, 26), (13, 2))
    for limb in (neck, *arms, *legs):
        cv2.polylines(mask, [np.array([at(*joint) for joint in limb])], False, 255, round(8 * unit * fine))
    return cv2.resize(mask, (W, H), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def mef(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two stops over and three under, in linear light."""
    linear = photograph(name) ** 2.2
    return tuple(np.clip(linear * 2.0**stops, 0, 1) ** (1 / 2.2) for stops in (2, -3))


def mif(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A phantom as MRI (gray) and as colour-coded uptake (BGR)."""
    side = 192
    phantom = cv2.resize(data.shepp_logan_phantom().astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-25, 25), rng.uniform(0.85, 1.05))
    phantom = cv2.warpAffine(phantom, turn, (side, side))
    texture = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 1.2)
    inside = phantom > 0.02
    mri = np.clip(phantom * 0.9 + inside * (0.15 + 0.08 * texture), 0, 1)
    y, x = np.mgrid[:side, :side] / side
    uptake = 0.25 * inside
    cy, cx = {"slice1": (0.52, 0.68), "slice2": (0.49, 0.51), "slice3": (0.66, 0.5)}[name]
    uptake = uptake + 0.7 * inside * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.006)
    uptake = cv2.GaussianBlur(uptake.astype(np.float32), (0, 0), 4)
    color = cv2.applyColorMap((np.clip(uptake, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET) / 255
    return mri, color * np.clip(uptake * 6, 0, 1)[..., None]


def mff(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Focus on the near and on the far end of the scene, by its disparity map."""
    left, _, disparity = data.stereo_motorcycle()
    image = left[..., ::-1].astype(np.float32) / 255
    unknown = ~np.isfinite(disparity)
    disparity = cv2.inpaint(np.where(unknown, 0, disparity).astype(np.float32), unknown.astype(np.uint8), 3, 0)
    top, left_edge = CROPS[name]
    window = np.s_[top : top + H, left_edge : left_edge + W]
    return tuple(refocus(image, disparity, focus)[window] for focus in (48, 12))


def refocus(image: np.ndarray, disparity: np.ndarray, focus: float, layers: int = 16) -> np.ndarray:
    """A thin lens by layers: each is blurred by its distance from `focus` (disparity), far to near."""
    edges = np.linspace(disparity.min(), disparity.max() + 1e-3, layers + 1)
    result = np.zeros_like(image)
    for low, high in pairwise(edges):
        # everything behind the layer's far edge is filled from the layer, so that no dark seams show
        mask = (disparity >= low).astype(np.float32)
        radius = 0.11 * abs((low + high) / 2 - focus)
        size = 2 * int(np.ceil(radius)) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)).astype(np.float32)
        kernel /= kernel.sum()
        alpha = cv2.filter2D(mask, -1, kernel)[..., None]
        color = cv2.filter2D(image * mask[..., None], -1, kernel) / np.maximum(alpha, 1e-3)
        result = result * (1 - alpha) + color * alpha
    return result


def main() -> None:
    encoder = TextEncoder("auto")
    for (task, a, b), pairs in TEXTS.items():
        folders = {kind: SAMPLE / kind / task / f"Sample{task}" for kind in ("Image", "Text", "TextFeature")}
        for split in ("train", "test"):
            folders["Image"].mkdir(parents=True, exist_ok=True)
            names = [name for name, (its_split, _, _) in pairs.items() if its_split == split]
            (folders["Image"] / f"{split}.txt").write_text("\n".join(names) + "\n")
        for seed, (name, (_, *texts)) in enumerate(pairs.items()):
            images = {"IVF": ivf, "MIF": mif, "MEF": mef, "MFF": mff}[task](name, np.random.default_rng(seed))
            for folder, image, text in zip((a, b), images, texts):
                for kind in ("Image", "Text"):
                    (folders[kind] / folder).mkdir(parents=True, exist_ok=True)
                pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
                cv2.imwrite(str(folders["Image"] / folder / f"{name}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
                (folders["Text"] / folder / f"{name}.txt").write_text(text + "\n")
            folders["TextFeature"].mkdir(parents=True, exist_ok=True)
            features = encoder.encode_all(texts)
            note = {"encoder": encoder.name, "rows_of_a": len(features[0])}
            write_file(folders["TextFeature"] / f"{name}.json", to_json(note))
            np.save(folders["TextFeature"] / f"{name}.npy", np.concatenate(features).astype(np.float16))


if __name__ == "__main__":
    main()
