"""From images to paragraphs (FILM, section 3.1): caption, dense captions, segments -> prompt -> paragraph.

Beside each <name>.txt is a <name>.json that records what the paragraph was made from: the parts, the prompt and
the names of the models. Running it again makes a part only if its model, or what it is made from, has changed.
A text without a JSON, or one that differs from its JSON, was written by hand and is left alone.
"""

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from utils.config import Describe
from utils.describe import models
from utils.describe.endpoint import Endpoint
from utils.errors import InputError
from utils.files import find_file, short_digest, to_json, write_file

PARTS = ("caption", "dense", "segments", "paragraph")  # keys of the JSON, in the order they are made
FIELDS = ("modality", "width", "height", "caption", "dense", "segments")  # what a template may name


@dataclass
class Item:
    """One image to describe."""

    image: Path
    text: Path  # the file for its paragraph; the JSON is beside it
    modality: str  # a word or two for the prompt, e.g. infrared
    read: Callable[[], Image.Image]  # gives the image as 8-bit RGB; raises InputError if it cannot be read
    record: dict[str, Any] = field(default_factory=dict)  # the content of the JSON
    written_by_hand: bool = False  # the text is not the paragraph of the JSON
    text_outdated: bool = False  # the text is of another image or an earlier paragraph

    def load_record(self) -> None:
        """Read the JSON, and compare it with the image and the text.

        Nothing is kept if the image has changed since, and no part that is damaged.

        Raises:
            InputError: the image cannot be read.
        """
        image = self.read()
        try:
            old = json.loads(self.text.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            old = {}
        old = old if isinstance(old, dict) else {}
        text = self.current_text()
        self.written_by_hand = bool(text) and text != str(old.get("paragraph", "")).strip()
        digest, made_by = short_digest(image.tobytes()), old.get("made_by")
        self.text_outdated = old.get("image") != digest
        self.record = {"image": digest, "width": image.width, "height": image.height, "made_by": {}}
        if isinstance(made_by, dict) and not self.text_outdated:
            for part in PARTS:
                if part in old and isinstance(made_by.get(part), dict) and is_well_formed(part, old[part]):
                    self.record[part], self.record["made_by"][part] = old[part], made_by[part]
            self.record |= {"prompt": old["prompt"]} if "prompt" in old else {}

    def current_text(self) -> str:
        """What the text file holds now; empty if there is none."""
        return self.text.read_text(encoding="utf-8", errors="replace").strip() if self.text.is_file() else ""

    def save_record(self) -> None:
        """Write the JSON. An outdated text is removed first: a crash must not leave it beside the new JSON."""
        if self.text_outdated:
            self.text.unlink(missing_ok=True)
        self.text_outdated = False
        write_file(self.text.with_suffix(".json"), to_json(self.record, indent=1))

    def restore_text(self) -> None:
        """Write the paragraph of the record again if the text file is gone or empty."""
        if not self.current_text():
            write_file(self.text, self.record["paragraph"] + "\n")


def is_well_formed(part: str, value: Any) -> bool:
    """True if a part of a JSON has the form in which it was written; somebody may have edited the file."""
    if part in ("caption", "paragraph"):
        return isinstance(value, str) and (part == "caption" or bool(value.strip()))
    if not isinstance(value, list) or not all(isinstance(found, dict) for found in value):
        return False
    boxes = [found.get("box") for found in value]
    if not all(isinstance(box, list) and [type(side) for side in box] == [int] * 4 for box in boxes):
        return False
    return all("label" in found if part == "dense" else type(found.get("share")) is float for found in value)


Results = Iterator[tuple[Item, Any]]  # items as they are done, each with its part or with the exception


@dataclass
class Stage:
    """How one kind of part is made."""

    part: str  # one of PARTS
    model: str  # hub name, local folder, or the name at the endpoint
    make: Callable[[list[Item]], Results]  # loads the model, then gives the results
    settings: Callable[[Item], Any] = lambda item: 0  # what else a part depends on; 0 if on nothing


def describe(items: list[Item], config: Describe, device: torch.device) -> list[str]:
    """Write the paragraph of every image. Each model goes over all images before the next one is loaded.

    Returns:
        A sentence for each image that could not be described.

    Raises:
        InputError: a template, model, endpoint or key that cannot be used; what was written before is kept.
    """
    template = read_template(config)
    problems: dict[Path, str] = {}
    items = list({item.text: item for item in items}.values())  # an image may be in two splits
    for item in tqdm(items, desc="reading", unit="image"):
        try:
            item.load_record()
        except InputError as error:
            problems[item.image] = str(error)
    ours = [item for item in items if not item.written_by_hand]
    if len(ours) < len(items):
        print(f"{len(items) - len(ours)} texts were written or changed by somebody and are left as they are")
    if config.url and any("paragraph" not in item.record for item in ours):
        open_endpoint(config)  # so that a missing key is found before the other models run for hours
    written = 0
    for stage in build_stages(config, template, device):
        todo = []
        for item in ours:
            if item.image in problems:
                continue
            if not is_made(item, stage):
                todo.append(item)
            elif stage.part == "paragraph":
                item.restore_text()
        failed = run_stage(stage, todo, template) if todo else {}
        problems |= failed
        written = len(todo) - len(failed)  # in the end that of the last stage, the paragraphs
    good = sum(item.image not in problems for item in ours)
    print(f"{written} paragraphs written, {good - written} were up to date, {len(problems)} failed")
    return list(problems.values())


def build_stages(config: Describe, template: str, device: torch.device) -> list[Stage]:
    """The stages in their order. A model is loaded when its stage runs, and dropped when that ends."""
    with_image = config.way == "image"

    def make_captions(items: list[Item]) -> Results:
        return run_in_batches(models.Captioner(config.caption, device), items, config.batch_size)

    def make_dense_captions(items: list[Item]) -> Results:
        return run_in_batches(models.DenseCaptioner(config.dense, device), items, config.batch_size)

    def make_segments(items: list[Item]) -> Results:
        return run_in_batches(models.Segmenter(config.segments, device, config.points), items, config.batch_size)

    def make_paragraphs(items: list[Item]) -> Results:
        if config.url:
            return ask_endpoint(open_endpoint(config), items, config, template)
        chat = models.LocalChat(config.chat, device, config.max_tokens, with_image)
        return run_in_batches(chat, items, config.batch_size, partial(fill_template, template))

    def paragraph_settings(item: Item) -> list:
        return [config.url, with_image, config.max_tokens, fill_template(template, item)]

    paragraph = Stage("paragraph", config.chat, make_paragraphs, paragraph_settings)
    if with_image:
        return [paragraph]
    return [
        Stage("caption", config.caption, make_captions),
        Stage("dense", config.dense, make_dense_captions),
        Stage("segments", config.segments, make_segments, lambda item: config.points),
        paragraph,
    ]


def open_endpoint(config: Describe) -> Endpoint:
    """The endpoint of the config; InputError if its address or key is missing."""
    return Endpoint(config.url, config.chat, config.key, config.timeout, config.retries, config.max_tokens)


def run_stage(stage: Stage, items: list[Item], template: str) -> dict[Path, str]:
    """Make one part of every item and save it as it comes; a sentence for each image where that failed."""
    failed: dict[Path, str] = {}
    is_paragraph = stage.part == "paragraph"
    results = stage.make(items)
    for item, result in tqdm(results, desc=f"{stage.part} by {stage.model}", unit="image", total=len(items)):
        if is_paragraph and isinstance(result, str) and not result.strip():
            result = ValueError("an empty text")
        if isinstance(result, Exception):
            failed[item.image] = f"{item.image}: no {stage.part} ({str(result) or type(result).__name__})"
            continue
        item.record[stage.part] = result
        item.record["made_by"][stage.part] = {"model": stage.model, "key": part_key(item, stage)}
        if is_paragraph:
            item.record["prompt"], item.text_outdated = fill_template(template, item), True
        item.save_record()
        if is_paragraph:
            write_file(item.text, result + "\n")
    return failed


def is_made(item: Item, stage: Stage) -> bool:
    """True if the record has the part, and it was made from what it would be made from now."""
    return stage.part in item.record and item.record["made_by"][stage.part].get("key") == part_key(item, stage)


def part_key(item: Item, stage: Stage) -> str:
    """A digest of all that a part is made from."""
    return short_digest(to_json([item.record["image"], stage.model, stage.settings(item)]).encode())


def run_in_batches(model: Callable, items: list[Item], size: int, prompt_of: Callable | None = None) -> Results:
    """Run a model on `size` images at a time, and on their prompts if `prompt_of`, Item -> str, is given."""
    for first in range(0, len(items), size):
        batch = items[first : first + size]
        yield from zip(batch, run_batch(model, batch, prompt_of))


def run_batch(model: Callable, batch: list[Item], prompt_of: Callable | None) -> list:
    """A result for each item. If the batch fails, its items are run one by one, and those that fail give exceptions."""
    try:
        images = [item.read() for item in batch]
        return model(images, [prompt_of(item) for item in batch]) if prompt_of else model(images)
    except Exception as error:  # the models are not ours
        return [error] if len(batch) == 1 else [run_batch(model, [item], prompt_of)[0] for item in batch]


def ask_endpoint(endpoint: Endpoint, items: list[Item], config: Describe, template: str) -> Results:
    """Ask for the paragraphs, then print the tokens and their cost.

    Raises:
        InputError: the endpoint refuses every request; all answers that came in are given before.
    """
    chat = models.EndpointChat(endpoint, config.concurrency, config.way == "image")
    for index, answer in chat([(fill_template(template, item), item.read) for item in items]):
        yield items[index], answer
    cost = sum(count * price / 1e6 for count, price in zip(endpoint.tokens, config.price))
    counts = "{} tokens in, {} out".format(*endpoint.tokens)
    tqdm.write(f"{config.url}: {counts}, cost {cost:.4f} by describe.price")  # print would break the progress bar


def read_template(config: Describe) -> str:
    """The template of the prompt; InputError if it cannot be read, is empty or names an unknown field."""
    try:
        template = find_file(config.template).read_text(encoding="utf-8").strip()
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the template {config.template} (describe.template)") from error
    except ValueError as error:
        raise InputError(f"{config.template} is no template ({error}); write {{{{ and }}}} for plain braces") from error
    known = FIELDS if config.way == "parts" else FIELDS[:3]
    for name in sorted(names - set(known)):
        raise InputError(f"{config.template} has the unknown field {{{name}}}; with describe.way={config.way}: {known}")
    try:
        filled = template.format(modality="", width=1, height=1, caption="", dense="", segments="")
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{config.template} cannot be filled in ({error}); name its fields as {{caption}}") from error
    if not filled.strip():
        raise InputError(f"the template {config.template} (describe.template) is empty")
    return template


def fill_template(template: str, item: Item) -> str:
    """The prompt for an image: the template with the parts of its record."""
    record = item.record
    dense = [f"{found['label']} at {place_in_words(found['box'], record)}" for found in record.get("dense", [])]
    segments = []
    for found in record.get("segments", []):
        label = matching_label(found, record)
        place = place_in_words(found["box"], record) + ("" if label is None else f" ({label})")
        segments.append(f"{100 * found['share']:.0f} % of the image at {place}")
    return template.format(
        modality=item.modality,
        width=record["width"],
        height=record["height"],
        caption=record.get("caption", ""),
        dense="; ".join(dense) or "none",
        segments="; ".join(segments) or "none",
    )


def place_in_words(box: list[int], record: dict) -> str:
    """Where the centre of a box is in the image, e.g. "the top left"."""
    x, y = (box[0] + box[2]) / 2 / record["width"], (box[1] + box[3]) / 2 / record["height"]
    words = [("top", "middle", "bottom")[min(int(3 * y), 2)], ("left", "centre", "right")[min(int(3 * x), 2)]]
    return "the " + " ".join(words)


def matching_label(segment: dict, record: dict) -> str | None:
    """The dense caption whose box fits that of a segment best; None if none overlaps it by half."""
    overlaps = [(box_overlap(segment["box"], found["box"]), found["label"]) for found in record.get("dense", [])]
    best, label = max(overlaps, default=(0, None))
    return label if best >= 0.5 else None


def box_overlap(a: list[int], b: list[int]) -> float:
    """Intersection over union of two boxes [left, top, right, bottom], in [0, 1]."""
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    both = sides[0] * sides[1]
    return both / max(sum(areas) - both, 1)
