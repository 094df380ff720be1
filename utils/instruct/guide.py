"""Instructions: what a user asks of a fusion, "Remove the noise from the thermal image.", for a network that reads.

The feature of an instruction is the tokens of its sentences, (L, dim); one token of zeros asks for nothing. A pair has
none of its own: training draws instructions (utils/instruct/samples.py), and a user gives them.
"""

import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from net.base import FusionNetwork
from utils.check import checked
from utils.config import Config, read_yaml
from utils.data.features import FEATURES, Feature
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.guides.guidance import GUIDES, Guidance, Guide
from utils.guides.text import TextEncoder, encoder_name, open_text_encoder
from utils.instruct.samples import UNRELATED, Instruction, InstructionDraw
from utils.provenance import GuideRecord

INSTRUCTED = "models/IVF_instruct.safetensors"  # weights that ship and read instructions
INSTRUCTION = "instruction"  # the feature, and the input of a network that reads them
NOTHING = "no instruction"  # in tables and pictures
JOINED = 24  # sentences of two instructions, for each two of them


def read_instructions(path: str | Path) -> dict[str, Instruction]:
    """The entries of a file of instructions, UNRELATED last; InputError for one that is no `Instruction`."""
    entries = checked(dict[str, Instruction], read_yaml(path), str(path))
    for name, entry in entries.items():
        if (entry.want == "restored") != (entry.degrade is not None) or (name != UNRELATED and not entry.want):
            raise InputError(f"'{name}' in {path} needs `want: restored` with `degrade`, or another `want` alone")
    if UNRELATED not in entries or len(entries) < 2:
        raise InputError(f"{path} needs at least one instruction, and sentences that ask for nothing: '{UNRELATED}'")
    unrelated = entries.pop(UNRELATED)
    return entries | {UNRELATED: unrelated}


def split_sentences(text: str) -> list[str]:
    """A text cut after each full stop, question mark, exclamation mark or semicolon."""
    return re.split(r"(?<=[.!?;])\s+", text.strip())


def join_two(first: str, second: str, rng: random.Random) -> str:
    """Two sentences as one."""
    word = rng.choice([" and ", ", and ", ", also ", " but also ", "; ", ", "])
    second = second if second[:2].isupper() else second[0].lower() + second[1:]
    return first.rstrip(".!?") + word + second


def encode_instructions(
    texts: Sequence[str], config: Config, network: FusionNetwork, device: torch.device
) -> list[Tensor]:
    """The feature (L, instruction_dim) of each text, sentence by sentence; InputError if the network cannot read it."""
    if not texts:
        return []
    if INSTRUCTION not in network.inputs:
        raise InputError(f"{network.label} reads no instructions; give weights that do, e.g. ckpt={INSTRUCTED}")
    record = network.provenance.guides.get(INSTRUCTION)
    encoder = open_text_encoder(config, record, network.options["instruction_dim"], device)
    parts = [split_sentences(text) for text in texts]
    encoded = iter(encoder.encode_all([sentence for part in parts for sentence in part], config.text.batch_size))
    return [torch.cat([torch.from_numpy(next(encoded)) for _ in part]) for part in parts]


@torch.inference_mode()
def shares_of(instruction: Tensor, network: FusionNetwork) -> tuple[float, float]:
    """How much of A and of B an instruction (L, instruction_dim) leaves in a result, 0 to 1 each: following a source
    leaves nothing of the other."""
    record = network.provenance.guides.get(INSTRUCTION)
    names = str(record.options.get("instructions", "")).split(",") if record else []
    device = next(network.parameters()).device
    asked = dict(zip(names, network.strengths(instruction[None].to(device))[0].tolist()))
    return 1 - asked.get("follow_visible", 0), 1 - asked.get("follow_infrared", 0)


def sentences_to_train(instructions: dict[str, Instruction], seed: int) -> dict[tuple[str, ...], list[str]]:
    """All sentences to train with by what they say, and for each two instructions sentences that say both."""
    rng = random.Random(seed)
    sentences = {(name,): entry.train for name, entry in instructions.items()}
    names = [name for name in instructions if name != UNRELATED]
    for one, two in itertools.permutations(names, 2):
        pairs = [(rng.choice(sentences[one,]), rng.choice(sentences[two,])) for _ in range(JOINED)]
        sentences[one, two] = [join_two(*pair, rng) for pair in pairs]
    return sentences


def instructions_to_train(config: Config, dim: int | None, device: torch.device) -> InstructionDraw:
    """Instructions of the config, encoded; InputError if the network takes another width (dim) than their encoder's."""
    instructions = read_instructions(config.text.instructions)
    sentences = sentences_to_train(instructions, config.seed)
    encoder = TextEncoder(config.text.encoder, config.text.path, device)
    if encoder.dim != (dim or encoder.dim):
        raise InputError(
            f"the text encoder {encoder.name} is {encoder.dim} wide and the network takes instructions {dim} wide; set "
            f"net.instruction_dim={encoder.dim}"
        )
    encoded = iter(encoder.encode_all([each for pool in sentences.values() for each in pool], config.text.batch_size))
    features = {key: [torch.from_numpy(next(encoded)) for _ in pool] for key, pool in sentences.items()}
    del instructions[UNRELATED]
    return InstructionDraw(instructions, features)


def open_instructions(
    config: Config,
    record: GuideRecord | None,
    dim: int | None,
    datasets: list[PairDataset],
    device: torch.device,
    training: bool,
) -> Guidance:
    """Training draws instructions; otherwise nothing is asked for. See `Guide`."""
    draw = None
    if training:
        draw = instructions_to_train(config, dim, device)
        encoder, path = config.text.encoder, config.text.path
        options = {"encoder": encoder, "path": path, "instructions": ",".join(draw.instructions)}
        record = GuideRecord(encoder_name(encoder, path), options=options)
    words = f"instructions read by {record.name}" if record else "instructions"
    return Guidance(record, instead=torch.zeros(1, dim or 1), transform=draw, words=words)


FEATURES[INSTRUCTION] = Feature(INSTRUCTION, (INSTRUCTION,), None, ("instruction_encoder", "instruction_revision"))
GUIDES[INSTRUCTION] = Guide(open_instructions, None)
