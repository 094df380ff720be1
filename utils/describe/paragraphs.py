"""A paragraph for every image (FILM, section 3.1): caption, dense captions, segments -> prompt -> paragraph.

Beside each <name>.txt is a <name>.json that records what the paragraph was made from: the parts, the prompt and
the names of the models. Running it again makes a part only if its model, or what it is made from, has changed.
A text without a JSON, or one that differs from its JSON, was written by hand and is left alone.
"""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.config import Describe
from utils.data.images import read_rgb
from utils.describe.endpoint import Endpoint, Refused
from utils.describe.models import Captioner, DenseCaptioner, LocalChat, Segmenter
from utils.describe.prompt import fill_template, read_template
from utils.errors import InputError
from utils.files import short_digest, to_json, write_file

PARTS = ("caption", "dense", "segments", "paragraph")  # keys of the JSON, in the order in which they are made
MADE = {"parts": PARTS, "image": ("paragraph",), "caption": ("caption", "paragraph")}  # by describe.way


@dataclass
class Item:
    """One image to describe."""

    image: Path
    text: Path  # the file for its paragraph; the JSON is beside it
    modality: str  # a word or two for the prompt, e.g. infrared; may be empty
    record: dict[str, Any] = field(default_factory=dict)  # the content of the JSON
    problem: str = ""  # why the image has no paragraph

    def read_text(self) -> str:
        """What the text file holds now; empty if there is none."""
        return self.text.read_text(encoding="utf-8", errors="replace").strip() if self.text.is_file() else ""

    def load_record(self) -> None:
        """Read the JSON, and measure the image; an image that cannot be read is a problem."""
        with contextlib.suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged
            self.record = dict(json.loads(self.text.with_suffix(".json").read_text(encoding="utf-8")))
        try:
            image = read_rgb(self.image)
        except InputError as error:
            self.problem = str(error)
            return
        self.record |= {"image": short_digest(image.tobytes()), "width": image.width, "height": image.height}
        self.record.setdefault("made_by", {})

    def save(self, part: str) -> None:
        """Write the JSON after a part was made, and the text after the paragraph."""
        if part == "paragraph":  # beside a newer JSON, which a killed run could leave, it would pass for one by hand
            self.text.unlink(missing_ok=True)
        write_file(self.text.with_suffix(".json"), to_json(self.record, indent=1))
        if part == "paragraph":
            write_file(self.text, self.record["paragraph"] + "\n")


class ParagraphWriter:
    """Writes paragraphs as a config says, by models here or an endpoint; InputError for a wrong template or key."""

    def __init__(self, config: Describe, device: torch.device):
        self.config, self.device = config, device
        alone = config.way == "caption"  # then the caption is all of the prompt, and the prompt is the paragraph
        writer = config.caption if alone else config.chat
        self.model_names = dict(zip(PARTS, (config.caption, config.dense, config.segments, writer)))
        self.template = "{caption}" if alone else read_template(config.template, config.way)
        # a missing key ends the run here, before the other models run for hours
        self.endpoint = Endpoint(config) if config.url and not alone else None

    def write(self, items: list[Item]) -> list[str]:
        """Write the paragraph of every image. Each model goes over all images before the next one is loaded.

        Returns:
            A sentence for each image that could not be described.

        Raises:
            InputError: a model cannot be loaded, or the endpoint refuses; parts that were made before are kept.
        """
        items = list({item.text: item for item in items}.values())  # an image may be in two splits
        for item in tqdm(items, desc="reading", unit="image", disable=None):
            item.load_record()
        ours = [item for item in items if item.read_text() in ("", item.record.get("paragraph"))]
        if len(ours) < len(items):
            print(f"{len(items) - len(ours)} texts were written or changed by somebody and are left as they are")
        todo: list[Item] = []
        for part in MADE[self.config.way]:
            todo = [item for item in ours if not item.problem]
            todo = [item for item in todo if item.record["made_by"].get(part, {}).get("key") != self.key(part, item)]
            if todo:
                self.make(part, todo)
        good = [item for item in ours if not item.problem]
        for item in good:
            if not item.read_text():  # somebody removed it, or a run was killed
                item.save("paragraph")
        written = sum(not item.problem for item in todo)  # of the last part, the paragraphs
        print(f"{written} paragraphs written, {len(good) - written} were up to date, {len(ours) - len(good)} failed")
        return [item.problem for item in ours if item.problem]

    def key(self, part: str, item: Item) -> str:
        """A digest of all that a part is made from."""
        asked = [self.config.url, self.config.way == "image", self.config.max_tokens, self.prompt(item)]
        settings = {"segments": self.config.points, "paragraph": asked}.get(part, 0)
        return short_digest(to_json([item.record["image"], self.model_names[part], settings]).encode())

    def prompt(self, item: Item) -> str:
        """What the chat model is asked about an image."""
        return fill_template(self.template, item.modality, item.record)

    def make(self, part: str, items: list[Item]) -> None:
        """Make one part of every item, in batches; an endpoint is asked about several images at a time."""
        model, size, threads = self.load_model(part), self.config.batch_size, 1
        if model is self.endpoint:
            size, threads = 1, self.config.concurrency
        batches = [items[first : first + size] for first in range(0, len(items), size)]
        with (
            tqdm(desc=f"{part} by {self.model_names[part]}", unit="image", total=len(items), disable=None) as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            # after a refusal or Ctrl-C, only batches under way are waited for
            for batch, _ in zip(batches, pool.map(partial(self.make_batch, part, model), batches)):
                bar.update(len(batch))
        if model is self.endpoint:
            print(self.endpoint.cost())

    def load_model(self, part: str) -> Callable:
        """The model that makes a part."""
        path = self.model_names[part]
        if part == "caption":
            return Captioner(path, self.device)
        if part == "dense":
            return DenseCaptioner(path, self.device)
        if part == "segments":
            return Segmenter(path, self.device, self.config.points)
        if self.config.way == "caption":
            return lambda images, prompts: prompts
        return self.endpoint or LocalChat(path, self.device, self.config.max_tokens, self.config.way == "image")

    def make_batch(self, part: str, model: Callable, batch: list[Item]) -> None:
        """Make one part of some items and save it, one by one if that fails; an item that fails gets its problem."""
        try:
            images = [read_rgb(item.image) for item in batch]
            results = model(images, [self.prompt(item) for item in batch]) if part == "paragraph" else model(images)
            if part == "paragraph" and not all(results):
                raise ValueError("an empty text")
        except Refused:
            raise
        except Exception as error:  # the models are not ours
            if len(batch) == 1:
                batch[0].problem = f"{batch[0].image}: no {part} ({str(error) or type(error).__name__})"
            else:
                for item in batch:
                    self.make_batch(part, model, [item])
            return
        for item, result in zip(batch, results):
            item.record[part] = result
            item.record["made_by"][part] = {"model": self.model_names[part], "key": self.key(part, item)}
            if part == "paragraph":
                item.record["prompt"] = self.prompt(item)
            item.save(part)
