"""The models that look at an image or write its paragraph (FILM, section 3.1).

An image is a PIL image, 8-bit RGB. A box is [left, top, right, bottom] in whole pixels, with right and bottom
just outside. The models of transformers take a batch of images and return a list with one result for each; they
are imported where they are needed, as that takes seconds.
"""

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from utils.describe.endpoint import Endpoint, NoAnswer
from utils.errors import InputError

MOST_SEGMENTS = 10  # of an image; the prompt would become too long with more


@contextmanager
def loading_errors_named(model: str) -> Iterator[None]:
    """Turn every error in the block into an InputError that names the model."""
    try:
        yield
    except Exception as error:  # damaged files and unreachable hubs raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the model '{model}' cannot be loaded ({reason}); give a hub name that can be reached or a local folder"
        ) from error


def inference_dtype(device: torch.device) -> torch.dtype:
    """What models run in: on a GPU bf16, or float16 where it has none, and float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(kind: type, path: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Load a model for inference.

    Args:
        kind: a model class of transformers.
        path: hub name or local folder.
        device: where to run.
        dtype: of its weights.

    Raises:
        ValueError: weights are missing or have another shape. transformers itself would fill in random ones.
    """
    model, report = kind.from_pretrained(path, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"its weights are not those of a {type(model).__name__}")
    return model.to(device).eval()


class Captioner:
    """Writes a sentence on an image, with BLIP-2.

    Args:
        path: hub name or local folder.
        device: where to run.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, path: str, device: torch.device):
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        with loading_errors_named(path):
            self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            self.model = load(Blip2ForConditionalGeneration, path, device, inference_dtype(device))

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[str]:
        """N images of any size -> N sentences of at most 30 tokens."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=30, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


class DenseCaptioner:
    """Finds regions of an image and writes a phrase on each, with Florence-2.

    Args:
        path: hub name or local folder.
        device: where to run.

    Raises:
        InputError: the model cannot be loaded.
    """

    TASK = "<DENSE_REGION_CAPTION>"

    def __init__(self, path: str, device: torch.device):
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        with loading_errors_named(path):
            self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            self.model = load(Florence2ForConditionalGeneration, path, device, inference_dtype(device))

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[list[dict]]:
        """N images of any size -> N lists of {"label": str, "box": [left, top, right, bottom]}."""
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
    """Finds the largest segments of an image, with Segment Anything.

    Args:
        path: hub name or local folder.
        device: where to run.
        points: segments are searched from points x points places.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, path: str, device: torch.device, points: int):
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

        with loading_errors_named(path):
            model = load(AutoModelForMaskGeneration, path, device, torch.float32)  # masks are cut at thresholds
            processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
            self.pipeline = pipeline("mask-generation", model=model, image_processor=processor, device=device)
        self.points = points

    def __call__(self, images: list[Image.Image]) -> list[list[dict]]:
        """N images of any size -> N lists as `measure_masks` makes them."""
        options = dict(points_per_batch=64, points_per_crop=self.points)
        return [self.measure_masks(self.pipeline(image, **options)["masks"]) for image in images]

    @staticmethod
    def measure_masks(masks: list) -> list[dict]:
        """Sizes and boxes of masks, at most MOST_SEGMENTS, the largest first. Empty masks are left out.

        Args:
            masks: (H, W) arrays or tensors, True or nonzero inside.

        Returns:
            [{"share": part of the image in (0, 1], "box": [left, top, right, bottom]}, ...]
        """
        segments = []
        for mask in masks:
            mask = np.asarray(mask, dtype=bool)
            if mask.any():
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
                segments.append({"share": round(float(mask.mean()), 4), "box": box})
        return sorted(segments, key=lambda segment: -segment["share"])[:MOST_SEGMENTS]


class LocalChat:
    """Writes paragraphs with a chat model on this computer.

    Args:
        path: hub name or local folder.
        device: where to run.
        max_tokens: greatest length of a paragraph.
        with_image: the model gets the image as well as the prompt.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, path: str, device: torch.device, max_tokens: int, with_image: bool):
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            pipeline,
        )

        with loading_errors_named(path):
            if with_image:
                processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
                model = load(AutoModelForImageTextToText, path, device, inference_dtype(device))
                tokenizer = processor.tokenizer
                self.pipeline = pipeline("image-text-to-text", model=model, processor=processor, device=device)
            else:
                model = load(AutoModelForCausalLM, path, device, inference_dtype(device))
                tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
                self.pipeline = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)
            tokenizer.padding_side = "left"  # for texts of unequal length in one batch
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.with_image, self.options = with_image, dict(max_new_tokens=max_tokens, return_full_text=False)

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> list[str]:
        """N images of any size and their N prompts -> N texts, which may be empty."""
        chats = []
        for image, prompt in zip(images, prompts):
            both = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            chats.append([{"role": "user", "content": both if self.with_image else prompt}])
        options = self.options | {"batch_size": len(chats)}
        outputs = self.pipeline(text=chats, **options) if self.with_image else self.pipeline(chats, **options)
        return [output[0]["generated_text"].strip() for output in outputs]


class EndpointChat:
    """Writes paragraphs with a chat model at an endpoint, several at a time.

    Args:
        endpoint: where the model is.
        concurrency: requests at a time.
        with_image: the model gets the image as well as the prompt.
    """

    def __init__(self, endpoint: Endpoint, concurrency: int, with_image: bool):
        self.endpoint, self.concurrency, self.with_image = endpoint, concurrency, with_image

    def __call__(self, questions: list[tuple[str, Callable[[], Image.Image]]]) -> Iterator[tuple[int, str | NoAnswer]]:
        """Ask all questions, each a prompt and a function that reads the image.

        Yields:
            The index of a question and its answer, in the order in which the answers come in.

        Raises:
            InputError: an image cannot be read, or no question would get an answer. The answers that came in by then,
                and those to requests that were under way, are given before.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(self._answer, *question): i for i, question in enumerate(questions)}
            for future in as_completed(list(waiting)):
                if isinstance(future.exception(), InputError):
                    for other in waiting:
                        other.cancel()
                    break
                yield waiting.pop(future), future.result()
        refusal = None
        for future, index in waiting.items():  # those that were under way at the first refusal; the pool has ended
            if not future.cancelled():
                refusal = future.exception() or refusal
                if not future.exception():
                    yield index, future.result()
        if refusal:
            raise refusal

    def _answer(self, prompt: str, read: Callable[[], Image.Image]) -> str | NoAnswer:
        content: str | list[dict] = prompt
        if self.with_image:
            png = io.BytesIO()
            read().save(png, "PNG")
            url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
            content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
        try:
            return self.endpoint.ask(content)
        except NoAnswer as error:
            return error
