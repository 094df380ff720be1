"""Can a network learn to read? The gradients along its text path, beside its convolutions and Adam's eps.

    python -m tools.text_gradients net.name=film                         the published sizes with fresh weights
    python -m tools.text_gradients models/MEF.safetensors "data.test=[SICE_test]"

It takes key=value as test.py does, and the first pairs of each set in data.test. The loss is that of a checkpoint's
training, else the published one. Adam divides a gradient by its usual size plus eps: far below eps little moves.
"""

import re
import sys

import torch
from torch import Tensor, nn

from net import FusionNetwork, build_model, load_model
from test import make_missing
from utils.config import load_config
from utils.data.h5 import h5_path
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError, run_script
from utils.guides import open_guides
from utils.loss import Loss, build_loss
from utils.results.evaluate import to_device
from utils.targets import COMPUTED_MAPS

PAIRS, EPS = 4, 1e-8  # pairs of each set, and Adam's eps


def main() -> None:
    weights = [f"ckpt={word}" for word in sys.argv[1:] if "=" not in word]
    overrides = ["data.test=[SampleIVF_train,SampleIVF_test]", *(word for word in sys.argv[1:] if "=" in word)]
    config, device = load_config("configs/sample.yaml", [*overrides, *weights]), torch.device("cpu")
    torch.manual_seed(config.seed)
    model = load_model(config.ckpt) if weights else build_model(**config.net)
    if "text" not in model.inputs or len(weights) > 1:
        raise InputError("give one checkpoint, or net.name=..., of a network that reads text")
    trained, batches = model.provenance.config or {}, []
    criterion = build_loss(trained.get("loss", config.loss))
    for name in config.data.test:
        make_missing(name, config, model)
        dataset = PairDataset([h5_path(config.data.h5, name)], model.inputs, maps={*criterion.maps} - {*COMPUTED_MAPS})
        guidances = open_guides(config, model, [dataset], device)
        for sample in (dataset[i] for i in range(min(PAIRS, len(dataset)))):
            for kind in {*criterion.maps} & {*COMPUTED_MAPS}:
                sample[kind] = torch.from_numpy(COMPUTED_MAPS[kind](255 * sample["image_a"][0].numpy()))[None] / 255
            batches.append(to_device(collate([sample]), device, guidances))
    print(f"{model.label}, loss '{criterion.name}', {len(batches)} pairs\n{'':<32}values  median |g|  below eps")
    for group, sizes in sorted(
        gradients(model, criterion, batches, 0.99 if trained else 0.0).items(), key=lambda item: item[0][:4] == "all "
    ):
        print(f"{group:<32}{sizes.shape[1]:>6}{sizes.median():>12.1e}{(sizes < EPS).float().mean():>11.1%}")


def gradients(model: FusionNetwork, criterion: Loss, batches: list[dict], progress: float) -> dict[str, Tensor]:
    """|gradient| of the loss of each batch (batches, values): of the text path by its parts, in all stages together."""
    on_path, parameters = text_path(model, batches[0]), dict(model.named_parameters())
    convolved = {id(p) for module in model.modules() if isinstance(module, nn.Conv2d) for p in module.parameters()}
    found: dict[str, list[list[Tensor]]] = {}
    for i, batch in enumerate(batches):
        total = criterion(model(*model.forward_args(batch)), **batch, progress=progress)["total"]
        slopes = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)  # 0 for what is not used
        for (name, parameter), slope in zip(parameters.items(), slopes):
            group = "all convolutions" if id(parameter) in convolved else "all others"
            if id(parameter) in on_path:  # stages.0.a.guidance.out_proj.bias -> stages.guidance.out_proj
                group = re.sub(r"\b(\d+|[a-z])\.|[._](weight|bias)$", "", name)
            thirds = [" query", " key", " value"] if group.endswith("in_proj") else [""]
            for third, part in zip(thirds, slope.abs().chunk(len(thirds))):
                found.setdefault(group + third, [[] for _ in batches])[i].append(part.flatten())
    return {group: torch.stack([torch.cat(parts) for parts in of_batches]) for group, of_batches in found.items()}


def text_path(model: FusionNetwork, batch: dict) -> set[int]:
    """Ids of the parameters of all modules whose output depends on the text and is tokens or a vector, not a map."""
    found: set[int] = set()

    def note(module: nn.Module, _, output: Tensor | tuple) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if output.requires_grad and output.ndim < 4:  # the text alone requires a gradient here
            found.update(map(id, module.parameters()))

    model.requires_grad_(False)
    with nn.modules.module.register_module_forward_hook(note):
        model(*model.forward_args(batch | {"text": batch["text"].clone().requires_grad_()}))
    model.requires_grad_(True)
    return found


if __name__ == "__main__":
    run_script(main)
