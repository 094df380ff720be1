"""Instructions: what a user asks of a fusion, "Remove the noise from the thermal image.", for a network that reads.

They are apart from the paragraphs that describe a pair, since a wish is not found again among a hundred words of
description. The feature of an instruction is the tokens of its sentences, (L, dim); one token of zeros asks for
nothing. A pair has none of its own: training draws instructions (utils/instruct/samples.py), and a user gives them.
"""

import io
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from net.provenance import GuideRecord
from utils.config import INSTRUCTED, read_yaml
from utils.data.features import FEATURES, Feature
from utils.errors import InputError
from utils.files import short_digest, write_file
from utils.guides.guidance import GUIDES, Guidance, Guide
from utils.guides.text import TextEncoder, encoder_name, encoder_options

if TYPE_CHECKING:
    from net import FusionNetwork
    from utils.config import Config
    from utils.data.pairs import PairDataset

INSTRUCTION = "instruction"  # the input of a network that reads them
NOTHING = "no instruction"  # in tables and pictures
UNRELATED = "unrelated"  # the entry of sentences that ask for nothing
JOINED = 24  # sentences of two instructions, for each two of them
FIELDS = {"degrade", "want", "weight", "train", "test"}


@dataclass
class Instruction:
    """An entry of configs/instructions.yaml.

    Attributes:
        want: a key of WANTED in utils/instruct/samples.py; empty for what asks for nothing.
        degrade: a key of DEGRADATIONS there, for an instruction that undoes it.
        weight: of the loss of a sample that it is given for.
        train, test: its sentences.
    """

    want: str = ""
    degrade: str | None = None
    weight: float = 1.0
    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


@dataclass
class Sentences:
    """Instructions to train with, encoded.

    Attributes:
        instructions: by name, in the order in which the network has them.
        features: by name, "unrelated" included, the feature (L, dim) of each sentence to train with.
        joined: by two names, in both orders, features of single sentences that say both.
    """

    instructions: dict[str, Instruction]
    features: dict[str, list[Tensor]]
    joined: dict[tuple[str, str], list[Tensor]]


def read_instructions(path: str | Path) -> dict[str, Instruction]:
    """The entries of a file of instructions, that of sentences that ask for nothing last.

    Raises:
        InputError: an entry with other keys or values than those of `Instruction`, or without sentences.
    """
    entries = {}
    for name, values in read_yaml(path).items():
        if not isinstance(name, str) or "," in name:  # a checkpoint records them as words with commas between
            raise InputError(f"{name!r} in {path} is no name of an instruction: it must be a word")
        if not isinstance(values, dict) or not values.keys() <= FIELDS:
            raise InputError(f"'{name}' in {path} must have keys of {', '.join(sorted(FIELDS))} and no others")
        entry = Instruction(**values)
        lists = (entry.train, entry.test)
        if not all(isinstance(s, list) and s and all(isinstance(each, str) and each for each in s) for s in lists):
            raise InputError(f"'{name}' in {path} needs sentences under train and under test; quote those with a colon")
        if not isinstance(entry.want, str) or not isinstance(entry.degrade, str | None):
            raise InputError(f"'{name}' in {path} must have one word each under want and degrade")
        if not isinstance(entry.weight, (int, float)) or not 0 < entry.weight < 1e6:
            raise InputError(f"'{name}' in {path} has a weight that is not above 0")
        entries[name] = entry
    if UNRELATED not in entries or len(entries) < 2:
        raise InputError(f"{path} needs at least one instruction, and sentences that ask for nothing: '{UNRELATED}'")
    return {name: entries[name] for name in sorted(entries, key=lambda name: name == UNRELATED)}


def split_sentences(text: str) -> list[str]:
    """A text cut after each full stop, question mark, exclamation mark or semicolon."""
    return [part.strip() for part in re.split(r"(?<=[.!?;])\s+", text) if part.strip()]


def join_two(first: str, second: str, rng: random.Random) -> str:
    """Two sentences as one."""
    word = rng.choice([" and ", ", and ", ", also ", " but also ", "; ", ", "])
    second = second if second[:2].isupper() else second[0].lower() + second[1:]
    return first.rstrip(".!?") + word + second


def encode_once(sentences: list[str], config: "Config", device: torch.device) -> list[Tensor]:
    """Features (L, dim) of sentences to train with; kept in the H5 folder like those of paragraphs, all in one file."""
    encoder, path = config.text.encoder, config.text.path
    maker = encoder_name(encoder, path)
    digest = short_digest("\0".join([maker, *sentences]).encode())
    cache = Path(config.data.h5) / "instructions" / f"{digest}.npz"
    try:
        with np.load(cache, allow_pickle=False) as stored:
            lengths, tokens = stored["lengths"], stored["tokens"]
    except Exception:  # not there, or damaged in one of many ways
        features = TextEncoder(encoder, path, device).encode_all(sentences, config.text.batch_size)
        lengths, tokens = np.array([len(feature) for feature in features]), np.concatenate(features)
        buffer = io.BytesIO()
        np.savez(buffer, lengths=lengths, tokens=tokens)
        write_file(cache, buffer.getvalue())
    return list(torch.from_numpy(tokens).split(lengths.tolist()))


def encode_instructions(
    texts: list[str], config: "Config", network: "FusionNetwork", device: torch.device
) -> list[Tensor]:
    """The feature (L, instruction_dim) of each text, its sentences encoded one by one.

    Raises:
        InputError: the network reads no instructions, or those of another encoder.
    """
    if not texts:
        return []
    if INSTRUCTION not in network.inputs:
        raise InputError(f"{network.label} reads no instructions; give weights that do, e.g. ckpt={INSTRUCTED}")
    record = network.provenance.guides.get(INSTRUCTION)
    encoder = TextEncoder(*encoder_options(config, record), device)
    check_width(encoder.dim, network.options["instruction_dim"], encoder.name)
    parts = [split_sentences(text) or [text] for text in texts]
    encoded = iter(encoder.encode_all([sentence for part in parts for sentence in part], config.text.batch_size))
    return [torch.cat([torch.from_numpy(next(encoded)) for _ in part]) for part in parts]


def check_width(width: int, wanted: int | None, encoder: str) -> None:
    """InputError if an encoder is of another width than a network takes."""
    if width != (wanted or width):
        raise InputError(
            f"the text encoder {encoder} is {width} wide and the network takes instructions {wanted} wide; set "
            f"net.instruction_dim={width} and train, or text.path to the encoder it was trained with"
        )


def sentences_to_train(config: "Config", instructions: dict[str, Instruction], device: torch.device) -> Sentences:
    """All sentences to train with, and sentences that say two things at once, encoded."""
    rng = random.Random(config.seed)
    names = [name for name in instructions if name != UNRELATED]
    by_key: dict[str | tuple[str, str], list[str]] = {name: entry.train for name, entry in instructions.items()}
    for one in names:
        for two in names:
            if one != two:
                pairs = [(rng.choice(by_key[one]), rng.choice(by_key[two])) for _ in range(JOINED)]
                by_key[one, two] = [join_two(*pair, rng) for pair in pairs]
    all_of_them = [sentence for sentences in by_key.values() for sentence in sentences]
    encoded = iter(encode_once(all_of_them, config, device))
    features = {key: [next(encoded) for _ in sentences] for key, sentences in by_key.items()}
    return Sentences(
        {name: instructions[name] for name in names},
        {name: features[name] for name in instructions},
        {key: value for key, value in features.items() if isinstance(key, tuple)},
    )


def open_instructions(
    config: "Config",
    record: GuideRecord | None,
    dim: int | None,
    datasets: list["PairDataset"],
    device: torch.device,
    training: bool,
) -> Guidance:
    """Instructions, see `Guide`. In training the first set draws them; without one nothing is asked for.

    Raises:
        InputError: another width than the network takes.
    """
    from utils.instruct.samples import InstructionDraw

    transform = None
    if training:
        sentences = sentences_to_train(config, read_instructions(config.text.instructions), device)
        maker = encoder_name(config.text.encoder, config.text.path)
        check_width(sentences.features[UNRELATED][0].shape[1], dim, maker)
        transform = InstructionDraw(sentences)
        options = {"encoder": config.text.encoder, "path": config.text.path}
        record = GuideRecord(maker, options=options | {"instructions": ",".join(sentences.instructions)})
    words = "instructions" if record is None else f"instructions read by {record.name}"
    return Guidance(record, instead=torch.zeros(1, dim or 1), transform=transform, words=words)


FEATURES[INSTRUCTION] = Feature(INSTRUCTION, (INSTRUCTION,), None, ("instruction_encoder", "instruction_revision"))
GUIDES[INSTRUCTION] = Guide(open_instructions, None)
