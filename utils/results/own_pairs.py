"""Fuse pairs of a user: two images, two folders, or files by a pattern."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from net import FusionNetwork
from utils import distributed
from utils.config import Config
from utils.data.images import (
    as_unit,
    check_writable,
    colorize,
    list_images,
    merge_chroma,
    read_image,
    side_by_side,
    to_8bit,
    write_image,
)
from utils.data.pairs import collate
from utils.errors import InputError
from utils.guides import describe_guidance, open_guides
from utils.guides.guide import Guidance
from utils.guides.instruction import NOTHING, encode_instructions
from utils.guides.text import open_text_encoder
from utils.results.evaluate import fuse_pair


def fuse_files(model: FusionNetwork, config: Config, args: Namespace, device: torch.device) -> None:
    """Fuse one pair, or all pairs of two folders, shared by the processes; results have colour where a source has.

    Args:
        args: `a`, `b`, `out`, `text_a`, `text_b` and `instruct` of the command line. Several instructions make a
            picture of each pair, with a column for the result without any and for each.

    Raises:
        InputError: with a line for each pair that could not be fused; the others are done.
    """
    pairs = find_pairs(args.a, args.b, Path(args.out))
    guidances = open_guides(config, model, [], device)
    features = features_of_pairs(model, config, args, list(pairs), guidances, device)
    instructions = encode_instructions(args.instruct, config, model, device)
    if len(instructions) == 1:  # nothing to compare: it is what guides the pairs
        features = {name: of_pair | {"instruction": instructions[0]} for name, of_pair in features.items()}
        instructions = []
    print(f"guided by {describe_guidance(guidances)}")
    rank, ranks = distributed.place()
    share = list(enumerate(pairs.items()))[rank::ranks]
    problems = {}
    for number, (name, (path_a, path_b, path_out)) in tqdm(share, unit="pair", disable=rank > 0 or len(share) < 2):
        try:
            (image_a, chroma_a), (image_b, chroma_b) = (read_image(path) for path in (path_a, path_b))
            if image_a.shape != image_b.shape:
                sizes = " and ".join("{} x {}".format(*image.shape) for image in (image_a, image_b))
                raise InputError(f"{path_a} and {path_b} have unequal sizes, {sizes} pixels; register them first")
            images = [torch.from_numpy(as_unit(image))[None] for image in (image_a, image_b)]
            batch = collate([{"name": name} | dict(zip(("image_a", "image_b"), images)) | features[name]])
            fused = fuse_pair([model], batch, device, guidances, instructions)
            chroma = merge_chroma([chroma_a, chroma_b])
            results = [to_8bit(each, config.test.stretch) for each in fused]
            results = [each if chroma is None else colorize(each, chroma) for each in results]
            if instructions:
                sources = [to_8bit(image[0].numpy(), "clamp") for image in images]
                write_image(path_out, side_by_side([*sources, *results], ["A", "B", NOTHING, *args.instruct]))
            else:
                write_image(path_out, results[0])
        except InputError as error:
            problems[number] = str(error)
    problems = {number: problem for of_rank in distributed.exchange(problems) for number, problem in of_rank.items()}
    if problems:
        raise InputError("\n".join(problems[number] for number in sorted(problems)))
    print(f"{len(pairs)} fused, 8 bit by {config.test.stretch}: {args.out}")


def find_pairs(a: str, b: str, out: Path) -> dict[str, tuple[Path, Path, Path]]:
    """The images of A and B and where the result goes, by the names of the pairs.

    Args:
        a, b: two images; or two folders with images of equal names; or files with * for the name, "folder/*_ir.png".
        out: an image for two images, else a folder.

    Raises:
        InputError: one of each, images without a partner, a result that would replace its source.
    """
    sides = [Path(side) for side in (a, b)]
    many = [side.is_dir() or "*" in side.name for side in sides]
    if many[0] != many[1]:
        raise InputError(f"--a {a} and --b {b} must be two images or two folders")
    if many[0]:
        found = [list_images(s) if s.is_dir() else list_images(s.parent, s.name) for s in sides]
        alone = sorted(
            found[0].keys() ^ found[1].keys() | {n for f in found for n, paths in f.items() if len(paths) > 1}
        )
        if alone or not found[0]:
            names = ", ".join(alone) or "no images at all"
            raise InputError(
                f"{a} and {b} must hold one image of each name (* is the name in a pattern); they do not for: {names}"
            )
        pairs = {name: (paths[0], found[1][name][0], out / f"{name}.png") for name, paths in found[0].items()}
    else:
        check_writable(out)
        pairs = {sides[0].stem: (*sides, out)}
    for *sources, target in pairs.values():
        if target.resolve() in [source.resolve() for source in sources]:
            raise InputError(f"--out {out} would write over the source {target}; choose another place")
    return pairs


def features_of_pairs(
    model: FusionNetwork,
    config: Config,
    args: Namespace,
    names: list[str],
    guidances: Mapping[str, Guidance],
    device: torch.device,
) -> dict[str, dict[str, Tensor]]:
    """The features of each pair by guide, but those that are computed from the images.

    Text is encoded from --text-a and --text-b; what is not given is the default feature of the checkpoint.

    Raises:
        InputError: a guide without a default feature, or only one of two texts.
    """
    if bool(args.text_a) != bool(args.text_b):
        raise InputError("give both --text-a and --text-b, or none for the checkpoint's default text")
    features: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for kind, guidance in guidances.items():
        if guidance.encoder:
            continue
        if kind != "text" and guidance.instead is not None:
            for name in names:
                features[name][kind] = guidance.instead
            continue
        if kind == "text" and args.text_a:
            if guidance.instead is not None:
                raise InputError(f"the text does not count: {config.ckpt} was trained without, or text.use is default")
            encoder = open_text_encoder(config, guidance.record, model.options["text_dim"], device)
            texts = [tuple(read_text(text, name) for text in (args.text_a, args.text_b)) for name in names]
            for name, feature in zip(names, encoder.encode_pairs(texts, config.text.batch_size)):
                features[name][kind] = torch.from_numpy(feature)
            continue
        if guidance.record is None or guidance.record.default is None:
            if kind == "text":
                raise InputError(f"{config.ckpt} has no default text; describe the pair with --text-a and --text-b")
            raise InputError(f"{config.ckpt} has no default {kind}")
        print(f"no {kind} given: the checkpoint's default {kind} feature is used")
        for name in names:
            features[name][kind] = guidance.record.default
    return features


def read_text(text: str, name: str) -> str:
    """--text-a or --text-b for one pair: a folder of <name>.txt, a .txt, or the text itself."""
    path = Path(text)
    if len(text) < 256 and path.is_dir():
        path = path / f"{name}.txt"
    elif path.suffix != ".txt":
        return text
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}") from error
