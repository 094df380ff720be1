"""The darkest infrared-visible test pairs, side by side: do people that the infrared image shows survive at night?

    python -m tools.dark_pairs models/IVF.safetensors
    python -m tools.dark_pairs before.safetensors models/IVF.safetensors data.h5=/my/h5 test.output=out

For each of the six darkest pairs of a set, a picture at full size: A, B, fused by each of the weights, and by the
rules max and two-scale, above each the metric TC: <test.output>/dark_pairs/<set>_<name>.png. It takes key=value as
test.py does; the config is film_ivf_small, the sets are TNO_test and LLVIP_test.
"""

import sys
from pathlib import Path

import torch

from net import build_model, load_model
from utils.config import load_config
from utils.data.h5 import h5_path
from utils.data.images import side_by_side, to_8bit, write_image
from utils.data.pairs import PairDataset
from utils.errors import InputError, run_script
from utils.guides import open_guides
from utils.metrics import target_contrast
from utils.results.evaluate import fuse_dataset, sources_8bit

PAIRS = 6


def main() -> None:
    weights = [word for word in sys.argv[1:] if "=" not in word]
    overrides = ["data.test=[TNO_test,LLVIP_test]", *(word for word in sys.argv[1:] if "=" in word)]
    config, device = load_config("configs/film_ivf_small.yaml", overrides), torch.device("cpu")
    models = [*map(load_model, weights), *(build_model(rule).eval() for rule in ("max", "saliency"))]
    widest = max(models, key=lambda model: len(model.inputs))  # one that reads instructions gets none
    if not all(set(model.inputs) <= set(widest.inputs) for model in models):
        raise InputError("the weights are of networks with different guides; look at them one after the other")
    labels = [*weights, "max", "two-scale"]
    for name in config.data.test:
        dataset = PairDataset([h5_path(config.data.h5, name)], widest.inputs)
        brightness = {sample: dataset[i]["image_b"].mean() for i, sample in enumerate(dataset.samples)}
        dataset.samples = sorted(brightness, key=brightness.get)[:PAIRS]
        guidances = open_guides(config, widest, [dataset], device)
        for batch, outputs in fuse_dataset(models, dataset, device, guidances):
            shown = dict(zip(("A", "B"), sources_8bit(batch)))
            infrared = torch.from_numpy(shown["A"])[None, None].double()
            for label, output in zip(labels, outputs):
                fused = to_8bit(output, "clamp")
                kept = target_contrast(torch.from_numpy(fused)[None, None].double(), infrared).item()
                shown[f"{label} {kept:.2f}"] = fused
            path = Path(config.test.output) / "dark_pairs" / f"{name}_{batch['name'][0]}.png"
            write_image(path, side_by_side(list(shown.values()), list(shown)))
            print(path, *list(shown)[2:])


if __name__ == "__main__":
    run_script(main)
