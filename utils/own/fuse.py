"""Fuse a user's own files: pairs of images, and videos."""

import itertools
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from net import FusionNetwork
from utils import distributed
from utils.config import Config
from utils.data.align import align
from utils.data.images import colorize, merge_chroma, side_by_side, to_8bit, write_image
from utils.data.pairs import collate
from utils.errors import InputError
from utils.guides import describe_guidance, open_guides
from utils.guides.guidance import Guidance
from utils.guides.text import open_text_encoder
from utils.instruct.guide import NOTHING, encode_instructions
from utils.own.files import OwnPair, find_own, is_video, read_text
from utils.own.fit import Picture, as_picture, common_size, fit, read_picture, remark
from utils.own.video import check_together, in_step, open_frames, open_output
from utils.results.evaluate import fuse_batch


def fuse_files(model: FusionNetwork, config: Config, args: Namespace, device: torch.device) -> None:
    """Fuse what a user names, a video or pairs of images; results have colour where a source has.

    Args:
        args: of the command line: a, b, pairs, out, resize, align, text_a, text_b, instruct, overrides.

    Raises:
        InputError: of pairs with a line for each that could not be fused; the others are done.
    """
    fuse = Fuser(model, config, args, device)
    fuse_video(fuse, args) if is_video(args) else fuse_pairs(fuse, args)


class Fuser:
    """From two pictures to the result in 8 bit: a network and all that the command line says of it.

    Attributes:
        stretch: test.stretch; of a video "clamp" if the command line does not name another, as a stretch of each
            frame to its own range flickers.
        asked: the instructions to compare, if there are several.
    """

    def __init__(self, model: FusionNetwork, config: Config, args: Namespace, device: torch.device):
        self.model, self.config, self.device = model, config, device
        self.guidances = open_guides(config, model, [], device)
        self.asked = args.instruct if len(args.instruct) > 1 else []
        self.instructions = encode_instructions(self.asked, config, model, device)
        chosen = not is_video(args) or any(word.startswith("test.stretch=") for word in args.overrides)
        self.stretch = config.test.stretch if chosen else "clamp"

    def features(self, pairs: Sequence[OwnPair]) -> list[dict[str, Tensor]]:
        """What guides each pair beside its images, but for what is computed from them.

        Raises:
            InputError: as `features_of_pairs`; an instruction for a network that reads none.
        """
        features = features_of_pairs(self.model, self.config, pairs, self.guidances, self.device)
        wanted = list(dict.fromkeys(pair.instruct for pair in pairs if pair.instruct))
        encoded = dict(zip(wanted, encode_instructions(wanted, self.config, self.model, self.device)))
        print(f"guided by {describe_guidance(self.guidances)}")
        return [
            own | ({"instruction": encoded[pair.instruct]} if pair.instruct else {})
            for own, pair in zip(features, pairs)
        ]

    def __call__(
        self, names: Sequence[str], pictures: Sequence[tuple[Picture, Picture]], features: Sequence[dict[str, Tensor]]
    ) -> list[np.ndarray]:
        """Fuse pairs of equal size.

        Args:
            names: of the pairs, for messages.
            pictures: A and B of each, as `utils.own.fit.fit` gives them.
            features: of each, as `features` gives them.

        Returns:
            For each pair (H, W) uint8, or BGR (H, W, 3) where a source has colour; under several instructions a
            picture with a column for each source, for the result without any, and for each.
        """
        samples = [
            {"name": name, "image_a": torch.from_numpy(a.gray)[None], "image_b": torch.from_numpy(b.gray)[None]} | own
            for name, (a, b), own in zip(names, pictures, features)
        ]
        fused = fuse_batch([self.model], collate(samples), self.device, self.guidances, self.instructions)
        return [self.picture(a, b, fused[:, i]) for i, (a, b) in enumerate(pictures)]

    def picture(self, a: Picture, b: Picture, fused: np.ndarray) -> np.ndarray:
        """The picture of a pair and its fused images (results, H, W) in [0, 1]."""
        chroma = merge_chroma([a.chroma, b.chroma])
        results = [to_8bit(each, self.stretch) for each in fused]
        results = [each if chroma is None else colorize(each, chroma) for each in results]
        if not self.asked:
            return results[0]
        sources = [to_8bit(source.gray, "clamp") for source in (a, b)]
        return side_by_side([*sources, *results], ["A", "B", NOTHING, *self.asked])


def fuse_pairs(fuse: Fuser, args: Namespace) -> None:
    """Fuse all pairs of images, shared by the processes."""
    pairs, how = find_own(args)
    print(how, end="")
    features = fuse.features(pairs)
    rank, ranks = distributed.place()
    share = list(enumerate(zip(pairs, features)))[rank::ranks]
    problems, remarks = {}, {}
    for number, (pair, own) in tqdm(share, unit="pair", disable=rank > 0 or len(share) < 2):
        try:
            a, b = fit(read_picture(pair.a), read_picture(pair.b), args.resize, f"{pair.a} and {pair.b}")
            if args.align:
                alignment = align(a.gray, b.gray, args.align)
                b, remarks[number] = Picture(*alignment.apply(*b)), f"{pair.name}: {remark(alignment)}"
            (result,) = fuse([pair.name], [(a, b)], [own])
            write_image(pair.out, result)
        except InputError as error:
            problems[number] = str(error)
    for of_rank, said in distributed.exchange((problems, remarks)):
        problems, remarks = problems | of_rank, remarks | said
    for number in sorted(remarks):
        print(remarks[number])
    print(f"{len(pairs) - len(problems)} of {len(pairs)} fused, 8 bit by {fuse.stretch}: {args.out}")
    if problems:
        raise InputError("\n".join(problems[number] for number in sorted(problems)))


def fuse_video(fuse: Fuser, args: Namespace) -> None:
    """Fuse a video, or a folder of frames, frame by frame.

    With --align B is registered by the first frames: the cameras of a rig do not move against each other.

    Raises:
        InputError: sources that do not go together; or that frames cannot be decoded, after the others are written.
    """
    if distributed.place()[1] > 1:
        raise InputError("a video is fused by one process: python test.py ... in place of torchrun")
    video = fuse.config.video
    pairs, _ = find_own(args)
    a, b = open_frames(args.a), open_frames(args.b)
    check_together(a, b)
    names = f"{args.a} and {args.b}"
    common_size(a.size, b.size, args.resize, names)
    features, alignment = fuse.features(pairs), None
    with (
        open_output(args.out, a.fps or b.fps or video.fps, video.codec) as write,
        closing(in_step(a, b)) as frames,
        tqdm(total=a.count, unit="frame") as bar,
    ):
        for batch in batched(frames, video.batch_size):
            pictures = [fit(as_picture(*one), as_picture(*two), args.resize, names) for one, two in batch]
            if args.align and alignment is None:
                alignment = align(*(picture.gray for picture in pictures[0]), args.align)
                bar.write(f"by the first frames: {remark(alignment)}")
            if alignment:
                pictures = [(one, Picture(*alignment.apply(*two))) for one, two in pictures]
            numbers = [f"frame {bar.n + i}" for i in range(1, len(pictures) + 1)]
            for frame in fuse(numbers, pictures, features * len(pictures)):
                write(frame)
            bar.update(len(pictures))
    print(f"{bar.n} frames fused, 8 bit by {fuse.stretch}: {args.out}")
    if notes := [*a.notes(), *b.notes()]:
        raise InputError("\n".join(notes))


def batched(pairs: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items, the last perhaps shorter."""
    while batch := list(itertools.islice(pairs, size)):
        yield batch


def features_of_pairs(
    model: FusionNetwork,
    config: Config,
    pairs: Sequence[OwnPair],
    guidances: Mapping[str, Guidance],
    device: torch.device,
) -> list[dict[str, Tensor]]:
    """The features of each pair by guide, but those that are computed from the images.

    A pair without text of its own gets the default feature of the checkpoint.

    Raises:
        InputError: a guide without a default feature, text for a network that was trained without.
    """
    features: list[dict[str, Tensor]] = [{} for _ in pairs]
    for kind, guidance in guidances.items():
        if guidance.encoder:
            continue
        default = guidance.instead
        described = [i for i, pair in enumerate(pairs) if kind == "text" and pair.text_a]
        if described and default is not None:
            raise InputError(f"the text does not count: {config.ckpt} was trained without, or text.use is default")
        if default is None and len(described) < len(pairs):
            default = guidance.record and guidance.record.default
            if default is None and kind == "text":
                raise InputError(f"{config.ckpt} has no default text; describe the pair with --text-a and --text-b")
            if default is None:
                raise InputError(f"{config.ckpt} has no default {kind}")
            count = f" for {len(pairs) - len(described)} of {len(pairs)} pairs" if described else ""
            print(f"no {kind} given{count}: the checkpoint's default {kind} feature is used")
        for own in features:
            own[kind] = default
        if described:
            encoder = open_text_encoder(config, guidance.record, model.options["text_dim"], device)
            texts = [
                tuple(read_text(text, pairs[i].name) for text in (pairs[i].text_a, pairs[i].text_b)) for i in described
            ]
            for i, feature in zip(described, encoder.encode_pairs(texts, config.text.batch_size)):
                features[i][kind] = torch.from_numpy(feature)
    return features
