"""Which sentences a network reads right, and what it reads in the others.

    python -m tools.reading models/IVF_instruct.safetensors
    python -m tools.reading exp/<run>/model/last.pth text.instructions=mine.yaml

The sentences are those that were kept for testing. One is read right if the instructions that the network finds in it,
those of a strength over 1/2, are the one that was meant, or none for a sentence that asks for nothing.
"""

import sys

import torch

from net import load_model
from utils.config import load_config
from utils.errors import InputError, run_script
from utils.instruct.guide import encode_instructions, read_instructions
from utils.instruct.samples import UNRELATED


@torch.inference_mode()
def main() -> None:
    paths = [word for word in sys.argv[1:] if "=" not in word]
    if len(paths) != 1:
        raise InputError("give one checkpoint, e.g. python -m tools.reading models/IVF_instruct.safetensors")
    model = load_model(paths[0])
    config = load_config(None, [word for word in sys.argv[1:] if "=" in word])
    entries = read_instructions(config.text.instructions)
    meant = [(name, sentence) for name, entry in entries.items() for sentence in entry.test]
    features = encode_instructions([sentence for _, sentence in meant], config, model, torch.device("cpu"))
    names = model.provenance.guides["instruction"].options["instructions"].split(",")
    right = 0
    for (name, sentence), feature in zip(meant, features):
        strengths = dict(zip(names, model.strengths(feature[None])[0].tolist()))
        found = [other for other, strength in strengths.items() if strength > 0.5]
        if found == [name] or (name == UNRELATED and not found):
            right += 1
        else:
            read = ", ".join(f"{other} {strength:.2f}" for other, strength in strengths.items() if strength > 0.2)
            print(f"{name}: {sentence} -> {read or 'nothing'}")
    print(f"read right: {right} of {len(meant)}")


if __name__ == "__main__":
    run_script(main)
