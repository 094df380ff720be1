"""The models that look at an image or write its paragraph (FILM, section 3.1).

An image is a PIL image, 8-bit RGB. A box is [left, top, right, bottom] in whole pixels, with right and bottom
just outside. A model takes a batch of images and returns a list with one result for each; `path` is its hub name or
its local folder. A model that cannot be loaded raises InputError.
"""

import numpy as np
import torch
from PIL import Image

from utils.guides.pretrained import from_hub_or_folder, load_whole, loading

MOST_SEGMENTS = 10  # of an image; the prompt would become too long with more


def inference_dtype(device: torch.device) -> torch.dtype:
    """The type that models compute in: on a GPU bf16, or float16 where it has none, and float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(
    model_class: str, processor_class: str, path: str, device: torch.device, dtype: torch.dtype | None = None
) -> tuple:
    """A model for inference, and the processor or tokenizer of its inputs, by their classes in transformers.

    Its weights are of `dtype`, or by default of `inference_dtype`. InputError if they cannot be loaded, all of them.
    """
    import transformers  # takes seconds

    with loading(f"the model '{path}' cannot be loaded", "give a hub name that can be reached or a local folder"):
        processor = getattr(transformers, processor_class).from_pretrained(path, **from_hub_or_folder(path))
        model = load_whole(getattr(transformers, model_class), path, dtype=dtype or inference_dtype(device))
        return model.to(device).eval(), processor


class Captioner:
    """Writes a sentence on an image, with BLIP-2."""

    def __init__(self, path: str, device: torch.device):
        self.model, self.processor = load("Blip2ForConditionalGeneration", "AutoProcessor", path, device)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[str]:
        """N images of any size -> N sentences of at most 30 tokens."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=30, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


class DenseCaptioner:
    """Finds regions of an image and writes a phrase on each, with Florence-2."""

    TASK = "<DENSE_REGION_CAPTION>"

    def __init__(self, path: str, device: torch.device):
        self.model, self.processor = load("Florence2ForConditionalGeneration", "AutoProcessor", path, device)

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
    """Finds the largest segments of an image, with Segment Anything, from a grid of points x points places."""

    def __init__(self, path: str, device: torch.device, points: int):
        from transformers import pipeline

        # float32: a mask ends where a score passes a threshold
        model, processor = load("AutoModelForMaskGeneration", "AutoImageProcessor", path, device, torch.float32)
        self.pipeline = pipeline("mask-generation", model=model, image_processor=processor, device=device)
        self.points = points

    def __call__(self, images: list[Image.Image]) -> list[list[dict]]:
        """N images of any size -> N lists as `measure_masks` makes them."""
        options = dict(points_per_batch=64, points_per_crop=self.points)
        return [measure_masks(self.pipeline(image, **options)["masks"]) for image in images]


def measure_masks(masks: list) -> list[dict]:
    """Masks (H, W), nonzero inside -> [{"share": part of the image, "box": [left, top, right, bottom]}, ...].

    At most MOST_SEGMENTS, the largest first; empty masks are left out.
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
    """Writes paragraphs of at most `max_tokens` with a chat model on this computer.

    If `with_image`, the model sees the image as well as the prompt.
    """

    def __init__(self, path: str, device: torch.device, max_tokens: int, with_image: bool):
        from transformers import pipeline

        if with_image:
            model, processor = load("AutoModelForImageTextToText", "AutoProcessor", path, device)
            tokenizer = processor.tokenizer
            self.pipeline = pipeline("image-text-to-text", model=model, processor=processor, device=device)
        else:
            model, tokenizer = load("AutoModelForCausalLM", "AutoTokenizer", path, device)
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
