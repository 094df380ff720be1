"""`data_process.py describe`: Text/ of the VLF layout from Image/."""

import re

from utils import simulate
from utils.config import Config
from utils.data.sources import Source, find_sources, read_names
from utils.describe.paragraphs import Item, ParagraphWriter
from utils.errors import InputError
from utils.process import pick_device

KINDS = {  # of images, by a word in the name of their folder or files
    "ir": "infrared",
    "infrared": "infrared",
    "thermal": "thermal infrared",
    "vi": "visible light",
    "vis": "visible light",
    "visible": "visible light",
    "rgb": "visible light",
    "mri": "magnetic resonance (MRI)",
    "ct": "computed tomography (CT)",
    "pet": "positron emission tomography (PET)",
    "over": "over-exposed",
    "under": "under-exposed",
    "near": "focused on what is near",
    "far": "focused on what is far",
}


def main(config: Config, words: list[str]) -> None:
    """Write a paragraph on each image of some sets, else of the config's; InputError with a line for each failure."""
    words = words or [*config.data.train, *config.data.val, *config.data.test]
    simulate.main(config, words)
    items, problems = [], []
    for source in find_sources(config, words):
        found, wrong = list_items(source, config.describe.modality)
        items, problems = items + found, problems + wrong
    problems += ParagraphWriter(config.describe, pick_device(config.device)).write(items)
    if problems:
        raise InputError("\n".join(problems))


def list_items(source: Source, modalities: dict[str, str]) -> tuple[list[Item], list[str]]:
    """The images of both sources of a set, and a sentence for each that is missing or ambiguous."""
    items, problems = [], []
    names = read_names(source.names, problems)
    for side in (source.a, source.b):
        modality, files = modality_of(side, modalities), source.list_images(side)
        for name in names:
            try:
                items.append(Item(source.only_image(side, name, files), source.text_file(side, name), modality))
            except InputError as error:
                problems.append(str(error))
    return items, problems


def modality_of(side: str, given: dict[str, str]) -> str:
    """The kind of the images of a folder, or of files like "IR/*_ir", as `given` or by their name; empty if unknown."""
    if side in given:
        return str(given[side])
    known = [KINDS[word] for word in re.findall("[a-z]+", side.lower()) if word in KINDS]
    assumed = f"are taken as {known[-1]}" if known else "get a prompt that does not say their kind"
    print(f"images of {side} {assumed}; describe.modality can say it")
    return known[-1] if known else ""
