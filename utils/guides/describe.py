"""From images to paragraphs (FILM, section 3.1): caption, dense captions, segments -> prompt -> paragraph.

Beside each <name>.txt lies a <name>.json with what it was made of: the parts, the prompt and the names
of the models. A repetition goes by it: a part is made again only if its model, or what it is made from,
has changed. A text without a JSON was not written here and is left alone.
"""

import base64
import hashlib
import io
import json
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from utils.config import Describe
from utils.data.images import as_unit, colorize, read_image, to_8bit
from utils.errors import InputError
from utils.files import to_json, write_file
from utils.guides.endpoint import Endpoint, NoAnswer

FIELDS = ("modality", "width", "height", "caption", "dense", "segments")  # what a template may name


@dataclass
class Item:
    """One image to describe."""

    image: Path
    text: Path  # where its paragraph goes
    modality: str
    record: dict[str, Any] = field(default_factory=dict)  # the JSON beside the text
    own: bool = False  # the text is not the paragraph of the JSON: somebody wrote or changed it
    stale: bool = False  # the text is of another image

    def open(self) -> Image.Image:
        """The image as 8-bit RGB; InputError if it cannot be read."""
        gray, chroma = read_image(self.image)
        return Image.fromarray(cv2.cvtColor(colorize(to_8bit(as_unit(gray), "clamp"), chroma), cv2.COLOR_BGR2RGB))

    def start(self) -> None:
        """Take up what is known of the image: nothing if the image is another one now, no part that is damaged."""
        image, path = self.open(), self.text.with_suffix(".json")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            record = {}
        record = record if isinstance(record, dict) else {}
        written = self.text.read_text(encoding="utf-8", errors="replace").strip() if self.text.is_file() else ""
        self.own = bool(written) and written != str(record.get("paragraph", "")).strip()
        known, made_by = digest(np.asarray(image).tobytes()), record.get("made_by")
        self.stale = record.get("image") != known
        self.record = {"image": known, "width": image.width, "height": image.height, "made_by": {}}
        if isinstance(made_by, dict) and not self.stale:
            for stage, form in FORMS.items():
                if stage in record and isinstance(made_by.get(stage), dict) and form(record[stage]):
                    self.record[stage], self.record["made_by"][stage] = record[stage], made_by[stage]
            self.record |= {"prompt": record["prompt"]} if "prompt" in record else {}

    def save(self) -> None:
        """Write the JSON. A text of another image, or of another paragraph, goes first: it must not stand beside it."""
        if self.stale:
            self.text.unlink(missing_ok=True)
        self.stale = False
        write_file(self.text.with_suffix(".json"), to_json(self.record, indent=1))


def is_list_of(keys: set[str]) -> Callable[[Any], bool]:
    """A check for a list of dicts with such keys and a box [left, top, right, bottom]."""

    def check(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(found, dict)
            and keys <= found.keys()
            and isinstance(found.get("box"), list)
            and [type(side) for side in found["box"]] == [int] * 4
            for found in value
        )

    return check


FORMS: dict[str, Callable[[Any], bool]] = {  # of the parts in a JSON
    "caption": lambda value: isinstance(value, str),
    "dense": is_list_of({"label"}),
    "segments": lambda value: is_list_of({"share"})(value) and all(type(found["share"]) is float for found in value),
    "paragraph": lambda value: isinstance(value, str) and bool(value.strip()),
}


# items -> each with its part, or an exception, as they come
Answer = Callable[[list[Item]], Iterator[tuple[Item, Any]]]


@dataclass
class Stage:
    """One kind of part: what makes it from a list of items, and what it depends on."""

    name: str
    model: str
    depends: Callable[[Item], Any]
    load: Callable[[], Answer]


def describe(items: list[Item], config: Describe, device: torch.device) -> list[str]:
    """Write the paragraph of every image, model by model over all of them.

    Returns:
        A sentence for each image that could not be described.

    Raises:
        InputError: a template, model, endpoint or key that cannot be used; what was written before stays.
    """
    template = read_template(config)
    problems: dict[Path, str] = {}
    items = list({item.text: item for item in items}.values())  # an image may be in two splits
    for item in tqdm(items, desc="reading", unit="image"):
        try:
            item.start()
        except InputError as error:
            problems[item.image] = str(error)
    mine = [item for item in items if not item.own]
    if len(mine) < len(items):
        print(f"{len(items) - len(mine)} texts were written or changed by somebody and are left as they are")
    if config.url and any("paragraph" not in item.record for item in mine):
        open_endpoint(config)  # a missing key is told before the other models are run
    made = 0
    for stage in stages(config, template, device):
        todo = [item for item in mine if item.image not in problems and not is_made(item, stage)]
        if not todo:
            continue
        answer, last = stage.load(), stage.name == "paragraph"
        for item, result in tqdm(answer(todo), desc=f"{stage.name} by {stage.model}", unit="image", total=len(todo)):
            if last and isinstance(result, str) and not result.strip():
                result = ValueError("an empty text")
            if isinstance(result, Exception):
                problems[item.image] = f"{item.image}: no {stage.name} ({str(result) or type(result).__name__})"
                continue
            item.record[stage.name] = result
            item.record["made_by"][stage.name] = {"model": stage.model, "key": key_of(item, stage)}
            if last:
                item.record["prompt"], item.stale = prompt_of(item, template), True
            item.save()
            if last:
                write_file(item.text, result + "\n")
                made += 1
        del answer  # before the next model is loaded
    good = sum(item.image not in problems for item in mine)
    print(f"{made} paragraphs written, {good - made} were up to date, {len(problems)} failed")
    return list(problems.values())


def open_endpoint(config: Describe) -> Endpoint:
    """The endpoint of the config; InputError if its address or key is missing."""
    return Endpoint(config.url, config.chat, config.key, config.timeout, config.retries, config.max_tokens)


def stages(config: Describe, template: str, device: torch.device) -> Iterator[Stage]:
    """The stages in their order. A model lives for its stage alone."""
    size = config.batch_size
    if config.way == "parts":
        caption = lambda: batched(Captioner(config.caption, device), size)  # noqa: E731
        dense = lambda: batched(DenseCaptioner(config.dense, device), size)  # noqa: E731
        segments = lambda: batched(Segmenter(config.segments, device, config.points), size)  # noqa: E731
        yield Stage("caption", config.caption, lambda item: 0, caption)
        yield Stage("dense", config.dense, lambda item: 0, dense)
        yield Stage("segments", config.segments, lambda item: config.points, segments)
    sees, endpoints = config.way == "image", []

    def chat() -> Answer:
        if config.url:
            endpoints.append(open_endpoint(config))
            return lambda todo: ask(endpoints[0], todo, template, sees, config.concurrency)
        model = LocalChat(config.chat, device, config.max_tokens, sees)
        return batched(model, size, lambda item: prompt_of(item, template))

    depends = lambda item: [config.url, sees, config.max_tokens, prompt_of(item, template)]  # noqa: E731
    yield Stage("paragraph", config.chat, depends, chat)
    for endpoint in endpoints:
        cost = sum(count * price / 1e6 for count, price in zip(endpoint.tokens, config.price))
        counts = "{} tokens in, {} out".format(*endpoint.tokens)
        print(f"{config.url}: {counts}, cost {cost:.4f} by describe.price")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def key_of(item: Item, stage: Stage) -> str:
    """What a part was made from."""
    return digest(to_json([item.record["image"], stage.model, stage.depends(item)]).encode())


def is_made(item: Item, stage: Stage) -> bool:
    """True if a part would be made from the same again. A paragraph whose file is gone or empty is written."""
    made = stage.name in item.record and item.record["made_by"].get(stage.name, {}).get("key") == key_of(item, stage)
    if (
        made
        and stage.name == "paragraph"
        and not (item.text.is_file() and item.text.read_text(encoding="utf-8").strip())
    ):
        write_file(item.text, item.record["paragraph"] + "\n")
    return made


def read_template(config: Describe) -> str:
    """The prompt's template; InputError if it cannot be read or names what there is not."""
    try:
        template = Path(config.template).read_text(encoding="utf-8").strip()
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


def prompt_of(item: Item, template: str) -> str:
    """The template with the parts of an image filled in."""
    record = item.record
    dense = [f"{found['label']} at {place(found['box'], record)}" for found in record.get("dense", [])]
    segments = [
        f"{100 * found['share']:.0f} % of the image at {place(found['box'], record)}{name_of(found, record)}"
        for found in record.get("segments", [])
    ]
    return template.format(
        modality=item.modality,
        width=record["width"],
        height=record["height"],
        caption=record.get("caption", ""),
        dense="; ".join(dense) or "none",
        segments="; ".join(segments) or "none",
    )


def place(box: list[int], record: dict) -> str:
    """Where a box lies, in words, e.g. "the top left"."""
    x, y = (box[0] + box[2]) / 2 / record["width"], (box[1] + box[3]) / 2 / record["height"]
    words = [("top", "middle", "bottom")[min(int(3 * y), 2)], ("left", "centre", "right")[min(int(3 * x), 2)]]
    return "the " + " ".join(words)


def name_of(segment: dict, record: dict) -> str:
    """The dense caption whose box fits a segment's best, if one fits by half."""
    fits = [(overlap(segment["box"], found["box"]), found["label"]) for found in record.get("dense", [])]
    best, label = max(fits, default=(0, ""))
    return f" ({label})" if best >= 0.5 else ""


def overlap(one: list[int], two: list[int]) -> float:
    """Intersection over union of two boxes [left, top, right, bottom]."""
    sides = [max(0, min(one[i + 2], two[i + 2]) - max(one[i], two[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    both = sides[0] * sides[1]
    return both / max(sum(areas) - both, 1)


def batched(model: Callable, size: int, prompt: Callable[[Item], str] | None = None) -> Answer:
    """A model over images, and perhaps prompts, in batches; where one fails, one by one, with what each raises."""

    def answer(batch: list[Item]) -> list:
        try:
            images = [item.open() for item in batch]
            return model(images, [prompt(item) for item in batch]) if prompt else model(images)
        except Exception as error:  # the models are not ours
            return [error] if len(batch) == 1 else [answer([item])[0] for item in batch]

    def answers(todo: list[Item]) -> Iterator[tuple[Item, Any]]:
        for first in range(0, len(todo), size):
            batch = todo[first : first + size]
            yield from zip(batch, answer(batch))

    return answers


def ask(
    endpoint: Endpoint, todo: list[Item], template: str, sees: bool, concurrency: int
) -> Iterator[tuple[Item, str | Exception]]:
    """The answers of an endpoint, several asked for at a time; all that came in are given before an InputError is."""

    def one(item: Item) -> str | Exception:
        content: str | list[dict] = prompt_of(item, template)
        try:
            if sees:
                png = io.BytesIO()
                item.open().save(png, "PNG")
                url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
                content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": url}}]
            return endpoint.ask(content)
        except NoAnswer as error:
            return error

    with ThreadPoolExecutor(concurrency) as pool:
        waiting = {pool.submit(one, item): item for item in todo}
        for future in as_completed(list(waiting)):
            if isinstance(future.exception(), InputError):
                for other in waiting:
                    other.cancel()
                break
            yield waiting.pop(future), future.result()
    fatal = None
    for future, item in waiting.items():  # what was under way when no other question would fare better
        if not future.cancelled():
            fatal = future.exception() or fatal
            if not future.exception():
                yield item, future.result()
    if fatal:
        raise fatal


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Whatever goes wrong in loading a model becomes an InputError that names it."""
    try:
        yield
    except Exception as error:  # damaged files and unreachable hubs raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the model '{model}' cannot be loaded ({reason}); give a hub name that can be reached or a local folder"
        ) from error


def load(kind: type, path: str, device: torch.device) -> torch.nn.Module:
    """A model, in half precision on a GPU; ValueError if its weights are not all there."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model, report = kind.from_pretrained(path, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"its weights are not those of a {type(model).__name__}")
    return model.to(device).eval()


class Captioner:
    """A sentence on an image, by BLIP-2."""

    def __init__(self, path: str, device: torch.device):
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        with loading(path):
            self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            self.model = load(Blip2ForConditionalGeneration, path, device)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[str]:
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=30, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


class DenseCaptioner:
    """Phrases with boxes, by Florence-2: [{"label": str, "box": [left, top, right, bottom]}, ...], in pixels."""

    TASK = "<DENSE_REGION_CAPTION>"

    def __init__(self, path: str, device: torch.device):
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        with loading(path):
            self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            self.model = load(Florence2ForConditionalGeneration, path, device)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[list[dict]]:
        inputs = self.processor(text=[self.TASK] * len(images), images=images, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=256, num_beams=1, do_sample=False)
        results = []
        for text, image in zip(self.processor.batch_decode(tokens, skip_special_tokens=False), images):
            found = self.processor.post_process_generation(text, task=self.TASK, image_size=image.size)[self.TASK]
            pairs = zip(found["labels"], found["bboxes"])
            results.append([{"label": label, "box": [round(float(x)) for x in box]} for label, box in pairs])
        return results


class Segmenter:
    """The larger segments, by Segment Anything: [{"share": of the image, "box": [left, top, right, bottom]}, ...]."""

    def __init__(self, path: str, device: torch.device, points: int):
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        with loading(path):
            model, processor = (
                load(AutoModelForMaskGeneration, path, device),
                AutoImageProcessor.from_pretrained(path, trust_remote_code=False),
            )
            self.masks = pipeline("mask-generation", model=model, image_processor=processor, device=device)
        self.points = points

    def __call__(self, images: list[Image.Image]) -> list[list[dict]]:
        return [self.describe(self.masks(image, points_per_batch=64, points_per_crop=self.points)) for image in images]

    @staticmethod
    def describe(found: dict) -> list[dict]:
        """Masks as sizes and boxes, the ten largest, the largest first."""
        segments = []
        for mask in found["masks"]:
            mask = np.asarray(mask, dtype=bool)
            if mask.any():
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
                segments.append({"share": round(float(mask.mean()), 4), "box": box})
        return sorted(segments, key=lambda segment: -segment["share"])[:10]


class LocalChat:
    """A chat model of transformers; with `sees` it gets the image, too."""

    def __init__(self, path: str, device: torch.device, max_tokens: int, sees: bool):
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            pipeline,
        )

        with loading(path):
            if sees:
                reader = AutoProcessor.from_pretrained(path, trust_remote_code=False)
                model, tokenizer = load(AutoModelForImageTextToText, path, device), reader.tokenizer
                self.pipe = pipeline("image-text-to-text", model=model, processor=reader, device=device)
            else:
                model, tokenizer = (
                    load(AutoModelForCausalLM, path, device),
                    AutoTokenizer.from_pretrained(path, trust_remote_code=False),
                )
                self.pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)
            tokenizer.padding_side = "left"  # for texts of unequal length in one batch
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.sees, self.options = sees, dict(max_new_tokens=max_tokens, return_full_text=False)

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[str]:
        chats = []
        for image, prompt in zip(images, prompts):
            seen = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            chats.append([{"role": "user", "content": seen if self.sees else prompt}])
        options = self.options | {"batch_size": len(chats)}
        outputs = self.pipe(text=chats, **options) if self.sees else self.pipe(chats, **options)
        return [one[0]["generated_text"].strip() for one in outputs]
