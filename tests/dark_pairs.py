"""The darkest infrared-visible test pairs, side by side: do people that the infrared image shows survive at night?

    python -m tests.dark_pairs models/IVF.safetensors
    python -m tests.dark_pairs old.safetensors new.safetensors data.h5=/my/h5 test.output=out

A row is a pair: A, B, fused by each of the weights, and by the rules max and two-scale; numbers are the metric TC. The
picture is <test.output>/dark_pairs.png. It takes key=value as test.py does, and the config film_ivf_small.
"""

import sys
from pathlib import Path

import torch

from net import build_model, load_model
from utils.config import load_config
from utils.data.h5 import h5_path
from utils.data.images import side_by_side, stack_rows, to_8bit, write_image
from utils.data.pairs import PairDataset
from utils.errors import run_script
from utils.guides import open_guides
from utils.metrics import target_contrast
from utils.opencv import cv2
from utils.results.evaluate import fuse_dataset, sources_8bit

SETS, PAIRS, SIZE = ("TNO_test", "LLVIP_test"), 6, (384, 288)


def main() -> None:
    weights = [word for word in sys.argv[1:] if "=" not in word]
    config = load_config("configs/film_ivf_small.yaml", [word for word in sys.argv[1:] if "=" in word])
    device = torch.device("cpu")
    models = [*map(load_model, weights), *(build_model(rule).eval() for rule in ("max", "saliency"))]
    labels = [*(Path(path).stem for path in weights), "max", "two-scale"]
    rows = []
    for name in SETS:
        dataset = PairDataset([h5_path(config.data.h5, name)], models[0].inputs)
        brightness = {sample: dataset[i]["image_b"].mean() for i, sample in enumerate(dataset.samples)}
        dataset.samples = sorted(brightness, key=brightness.get)[:PAIRS]
        guidances = open_guides(config, models[0], [dataset], device)
        for batch, outputs in fuse_dataset(models, dataset, device, guidances):
            images = [*sources_8bit(batch), *(to_8bit(fused, "clamp") for fused in outputs)]
            levels = [torch.from_numpy(image)[None, None].double() for image in images]
            numbers = [
                "A",
                "B",
                *(f"{la} {target_contrast(f, levels[0]).item():.2f}" for la, f in zip(labels, levels[2:])),
            ]
            rows.append(side_by_side([cv2.resize(i, SIZE, interpolation=cv2.INTER_AREA) for i in images], numbers))
            print(name, batch["name"][0], *numbers[2:])
    path = Path(config.test.output) / "dark_pairs.png"
    write_image(path, stack_rows(rows))
    print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
