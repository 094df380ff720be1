"""A paragraph for every image (FILM, section 3.1): caption, dense captions, segments -> prompt -> paragraph.

Beside each <name>.txt is a <name>.json that records what the paragraph was made from: the parts, the prompt and
the names of the models. Running it again makes a part only if its model, or what it is made from, has changed.
A text without a JSON, or one that differs from its JSON, was written by hand and is left alone.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.config import Describe
from utils.data.images import read_rgb
from utils.describe.endpoint import Endpoint, Refused
from utils.describe.models import Captioner, DenseCaptioner, EndpointChat, LocalChat, Segmenter
from utils.describe.prompt import fill_template, read_template
from utils.errors import InputError
from utils.files import short_digest, to_json, write_file

PARTS = ("caption", "dense", "segments", "paragraph")  # keys of the JSON, in the order in which they are made


@dataclass
class Item:
    """One image to describe."""

    image: Path
    text: Path  # the file for its paragraph; the JSON is beside it
    modality: str  # a word or two for the prompt, e.g. infrared; may be empty
    record: dict[str, Any] = field(default_factory=dict)  # the content of the JSON
    written_by_hand: bool = False  # the text is not the paragraph of the JSON
    problem: str = ""  # why the image has no paragraph

    def read_text(self) -> str:
        """What the text file holds now; empty if there is none."""
        return self.text.read_text(encoding="utf-8", errors="replace").strip() if self.text.is_file() else ""

    def load_record(self) -> None:
        """Read the JSON, and compare it with the text. InputError if the image cannot be read."""
        image = read_rgb(self.image)
        try:
            self.record = dict(json.loads(self.text.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # there is none, or it is no JSON of ours
            self.record = {}
        self.written_by_hand = self.read_text() not in ("", self.record.get("paragraph"))
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
    """Writes paragraphs as a config says.

    Args:
        config: the models, the prompt and how they are used.
        device: where models run that are not at an endpoint.

    Raises:
        InputError: the template cannot be used, or the endpoint has no key.
    """

    def __init__(self, config: Describe, device: torch.device):
        self.config, self.device = config, device
        self.with_image = config.way == "image"
        self.model_names = dict(zip(PARTS, (config.caption, config.dense, config.segments, config.chat)))
        self.template = read_template(config.template, config.way)
        self.endpoint = None
        if config.url:  # a missing key ends the run here, before the other models run for hours
            limits = config.timeout, config.retries, config.max_tokens
            self.endpoint = Endpoint(config.url, config.chat, config.key, *limits)

    def write(self, items: list[Item]) -> list[str]:
        """Write the paragraph of every image. Each model goes over all images before the next one is loaded.

        Returns:
            A sentence for each image that could not be described.

        Raises:
            InputError: a model cannot be loaded, or the endpoint refuses; parts that were made before are kept.
        """
        items = list({item.text: item for item in items}.values())  # an image may be in two splits
        for item in tqdm(items, desc="reading", unit="image"):
            try:
                item.load_record()
            except InputError as error:
                item.problem = str(error)
        ours = [item for item in items if not item.written_by_hand]
        if len(ours) < len(items):
            print(f"{len(items) - len(ours)} texts were written or changed by somebody and are left as they are")
        todo: list[Item] = []
        for part in PARTS[-1:] if self.with_image else PARTS:
            todo = [item for item in ours if not item.problem and not self.is_made(part, item)]
            if todo:
                self.make(part, todo)
        good = [item for item in ours if not item.problem]
        for item in good:
            if not item.read_text():  # somebody removed it, or a run was killed
                item.save("paragraph")
        written = sum(not item.problem for item in todo)  # of the last part, the paragraphs
        print(f"{written} paragraphs written, {len(good) - written} were up to date, {len(ours) - len(good)} failed")
        return [item.problem for item in ours if item.problem]

    def is_made(self, part: str, item: Item) -> bool:
        """True if the record has the part, made from what it would be made from now."""
        return item.record["made_by"].get(part, {}).get("key") == self.key(part, item)

    def key(self, part: str, item: Item) -> str:
        """A digest of all that a part is made from."""
        settings: Any = 0
        if part == "segments":
            settings = self.config.points
        if part == "paragraph":
            settings = [self.config.url, self.with_image, self.config.max_tokens, self.prompt(item)]
        return short_digest(to_json([item.record["image"], self.model_names[part], settings]).encode())

    def prompt(self, item: Item) -> str:
        """What the chat model is asked about an image."""
        return fill_template(self.template, item.modality, item.record)

    def make(self, part: str, items: list[Item]) -> None:
        """Make one part of every item, in batches; an endpoint is asked about several images at a time."""
        model, size, threads = self.load_model(part), self.config.batch_size, 1
        if isinstance(model, EndpointChat):
            size, threads = 1, self.config.concurrency
        with (
            tqdm(desc=f"{part} by {self.model_names[part]}", unit="image", total=len(items)) as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            batches = [items[first : first + size] for first in range(0, len(items), size)]
            jobs = {pool.submit(self.make_batch, part, model, batch): batch for batch in batches}
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update(len(jobs[job]))
            finally:  # after a refusal or Ctrl-C, only those under way are waited for
                pool.shutdown(cancel_futures=True)
        if isinstance(model, EndpointChat):
            tokens = self.endpoint.tokens()
            cost = sum(count * price / 1e6 for count, price in zip(tokens, self.config.price))
            counts = "{} tokens in, {} out".format(*tokens)
            print(f"{self.config.url}: {counts}, cost {cost:.4f} by describe.price")

    def load_model(self, part: str) -> Callable:
        """The model that makes a part."""
        path = self.model_names[part]
        if part == "caption":
            return Captioner(path, self.device)
        if part == "dense":
            return DenseCaptioner(path, self.device)
        if part == "segments":
            return Segmenter(path, self.device, self.config.points)
        if self.endpoint:
            return EndpointChat(self.endpoint, self.with_image)
        return LocalChat(path, self.device, self.config.max_tokens, self.with_image)

    def make_batch(self, part: str, model: Callable, batch: list[Item]) -> None:
        """Make one part of a few items, and save it or note the problem of each."""
        for item, result in zip(batch, self.run(part, model, batch)):
            if isinstance(result, Exception):
                item.problem = f"{item.image}: no {part} ({str(result) or type(result).__name__})"
                continue
            item.record[part] = result
            item.record["made_by"][part] = {"model": self.model_names[part], "key": self.key(part, item)}
            if part == "paragraph":
                item.record["prompt"] = self.prompt(item)
            item.save(part)

    def run(self, part: str, model: Callable, batch: list[Item]) -> list:
        """A result for each item. If a batch fails, its items run one by one, and those that fail give exceptions."""
        try:
            images = [read_rgb(item.image) for item in batch]
            if part != "paragraph":
                return model(images)
            texts = model(images, [self.prompt(item) for item in batch])
            return [text or ValueError("an empty text") for text in texts]
        except Refused:
            raise
        except Exception as error:  # the models are not ours
            return [error] if len(batch) == 1 else [self.run(part, model, [item])[0] for item in batch]
