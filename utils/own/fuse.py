"""Fuse a user's own files: pairs of images, and videos."""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from net import FusionNetwork, build_model
from utils.config import Config
from utils.data.align import align
from utils.data.images import colorize, merge_chroma, side_by_side, to_8bit, write_image
from utils.data.pairs import collate
from utils.errors import InputError
from utils.files import write_file
from utils.guides import describe_guidance, label_with_remarks, open_guides
from utils.guides.guide import Guidance
from utils.guides.text import open_text_encoder
from utils.instruct.guide import NOTHING, encode_instructions
from utils.own.fit import Picture, as_picture, common_size, fit, read_picture, remark
from utils.own.job import Job, read_text
from utils.own.pairing import OwnPair
from utils.own.video import check_rates, in_step, open_frames, open_output
from utils.results.evaluate import Evaluator, average_all, fuse_batch
from utils.results.table import format_table, left_out_lines


class Fuser:
    """From two pictures to their results: the network, the rules and instructions to compare it with, the guides.

    Attributes:
        labels: of the results.
    """

    def __init__(self, model: FusionNetwork, config: Config, job: Job, device: torch.device):
        self.model, self.config, self.device = model, config, device
        self.guidances = open_guides(config, model, [], device)
        self.rules = [build_model(rule).to(device).eval() for rule in job.rules if rule != model.name]
        self.asked = encode_instructions(job.instructions, config, model, device)
        first = NOTHING if self.asked else label_with_remarks(model, self.guidances)
        self.labels = [first, *(rule.label for rule in self.rules), *job.instructions]

    def features(self, pairs: Sequence[OwnPair]) -> list[dict[str, Tensor]]:
        """The features that guide each pair, but for those that are computed from its images.

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
    ) -> np.ndarray:
        """Fuse N pairs of equal size: (labels, N, H, W) float32 in [0, 1].

        Args:
            names: of the pairs, for messages.
            pictures: A and B of each, as `utils.own.fit.fit` gives them.
            features: of each, as `features` gives them.
        """
        samples = [
            {"name": name, "image_a": torch.from_numpy(a.gray)[None], "image_b": torch.from_numpy(b.gray)[None]} | own
            for name, (a, b), own in zip(names, pictures, features)
        ]
        batch = collate(samples)
        fused = [fuse_batch([self.model, *self.rules], batch, self.device, self.guidances)]
        for asked in self.asked:
            asked = {"instruction": asked.expand(len(names), -1, -1)}
            fused.append(fuse_batch([self.model], batch | asked, self.device, self.guidances))
        return np.concatenate(fused)


def fuse_pairs(fuser: Fuser, job: Job) -> None:
    """Fuse all pairs of images, and measure the results where it is asked for.

    Raises:
        InputError: a line for each pair that could not be fused; the others are done.
    """
    if job.how:
        print(job.how)
    features, problems = fuser.features(job.pairs), []
    evaluators = [Evaluator(job.metrics, fuser.device) for _ in fuser.labels]
    bar = tqdm(list(zip(job.pairs, features)), unit="pair", disable=len(job.pairs) < 2)
    for pair, own in bar:
        try:
            a, b = fit(read_picture(pair.a), read_picture(pair.b), job.resize, f"{pair.a} and {pair.b}")
            if job.align:
                alignment = align(a.gray, b.gray, job.align)
                b = Picture(*alignment.apply(*b))
                bar.write(f"{pair.name}: {remark(alignment)}")
            fused = [to_8bit(each, job.stretch) for each in fuser([pair.name], [(a, b)], [own])[:, 0]]
            save(pair, (a, b), fused, fuser.labels)
            for evaluator, each in zip(evaluators if job.metrics else (), fused):
                evaluator.add(pair.name, each, to_8bit(a.gray, "clamp"), to_8bit(b.gray, "clamp"))
        except InputError as error:
            problems.append(str(error))
    done = len(job.pairs) - len(problems)
    if job.metrics and done:
        tell(dict(zip(fuser.labels, (evaluator.results() for evaluator in evaluators))), job)
    print(f"{done} of {len(job.pairs)} fused, 8 bit by {job.stretch}: {job.out}")
    if problems:
        raise InputError("\n".join(problems))


def save(pair: OwnPair, sources: tuple[Picture, Picture], fused: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    """Write the result of a pair, (H, W) uint8, in colour where a source is; several as a picture, and one by one."""
    chroma = merge_chroma([source.chroma for source in sources])
    results = [each if chroma is None else colorize(each, chroma) for each in fused]
    if len(results) == 1:
        return write_image(pair.out, results[0])
    columns = [colorize(to_8bit(source.gray, "clamp"), source.chroma) for source in sources]
    write_image(pair.out, side_by_side([*columns, *results], ["A", "B", *labels]))
    for number, (result, label) in enumerate(zip(results, labels)):
        words = re.sub(r"\W+", "_", label).strip("_").lower()[:60]
        write_image(pair.columns / f"{number}_{words}{pair.out.suffix}", result)


def tell(per_image: dict[str, dict[str, dict[str, float]]], job: Job) -> None:
    """Print the means of {label: {image: {metric: value}}}, and write all values to `job.table`."""
    means, left_out = average_all(per_image)
    print("\n".join([format_table(str(job.out), job.metrics, means), *left_out_lines(left_out)]))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["network", "image", *job.metrics, "stretch"])
    for label, images in per_image.items():
        rows.writerows([label, name, *row.values(), job.stretch] for name, row in images.items())
    write_file(job.table, text.getvalue())
    print(f"of each image: {job.table}")


def fuse_video(fuser: Fuser, job: Job) -> None:
    """Fuse a video, or a folder of frames, frame by frame.

    With --align B is registered by the first frames: the cameras of a rig do not move against each other.

    Raises:
        InputError: sources that do not go together; or one that ends before the other, after the result is written.
    """
    (pair,), video = job.pairs, fuser.config.video
    a, b = open_frames(pair.a), open_frames(pair.b)
    check_rates(a, b)
    names = f"{pair.a} and {pair.b}"
    common_size(a.size, b.size, job.resize, names)
    features, alignment = fuser.features(job.pairs), None
    with (
        open_output(job.out, a.fps or b.fps or job.fps, video.codec) as write,
        tqdm(total=min(a.count, b.count), unit="frame") as bar,
    ):
        for batch in batched(in_step(a, b), video.batch_size):
            pictures = [fit(as_picture(*one), as_picture(*two), job.resize, names) for one, two in batch]
            if job.align and alignment is None:
                alignment = align(*(picture.gray for picture in pictures[0]), job.align)
                bar.write(f"by the first frames: {remark(alignment)}")
            if alignment:
                pictures = [(one, Picture(*alignment.apply(*two))) for one, two in pictures]
            numbers = [f"frame {bar.n + i}" for i in range(1, len(pictures) + 1)]
            fused = fuser(numbers, pictures, features * len(pictures))[0]
            for each, sources in zip(fused, pictures):
                chroma = merge_chroma([source.chroma for source in sources])
                image = to_8bit(each, job.stretch)
                write(image if chroma is None else colorize(image, chroma))
            bar.update(len(pictures))
    print(f"{bar.n} frames fused, 8 bit by {job.stretch}: {job.out}")
    if a.read != b.read:
        short, other = sorted((a, b), key=lambda frames: frames.read)
        raise InputError(
            f"{short.path} ends after {bar.n} frames and {other.path} goes on: {job.out} has no more; cut them to the "
            "same moments if they are out of step"
        )


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
        InputError: a guide without a default feature, text for a network that reads none or was trained without.
    """
    if "text" not in guidances and any(pair.text_a for pair in pairs):
        raise InputError(f"{model.label} reads no text; leave it out, or give other weights with ckpt=...")
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
                raise InputError(f"{config.ckpt} has no default text; describe the pair with --text, or --text-a and --text-b")
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
