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
from utils.data.align import Alignment, align
from utils.data.images import as_unit, colorize, merge_chroma, side_by_side, to_8bit, write_image
from utils.data.pairs import collate
from utils.errors import InputError
from utils.files import write_file
from utils.guides import describe_guidance, label_with_remarks, open_guides
from utils.guides.guidance import Guidance
from utils.guides.text import open_text_encoder
from utils.instruct.guide import NOTHING, encode_instructions
from utils.own.fit import Picture, fit, read_picture
from utils.own.job import Job
from utils.own.pairing import OwnPair
from utils.own.video import in_step, open_both, open_output
from utils.results.evaluate import Evaluator, average_all, fuse_batch
from utils.results.table import format_table, left_out_lines

SIDES = ("image_a", "image_b")  # keys of a batch


class Fuser:
    """From two pictures to their results: the network, its guides, and what the job compares it with.

    Attributes:
        labels: of the results.
        features: what guides each pair of the job.
    """

    def __init__(self, model: FusionNetwork, config: Config, job: Job, device: torch.device):
        self.model, self.device = model, device
        self.guidances = open_guides(config, model, [], device)
        self.features = features_of_pairs(model, config, job.pairs, self.guidances, device)
        self.rules = [build_model(rule).to(device).eval() for rule in job.rules if rule != model.name]
        self.asked = encode_instructions(job.instructions, config, model, device)
        first = NOTHING if self.asked else label_with_remarks(model, self.guidances)
        self.labels = [first, *(rule.label for rule in self.rules), *job.instructions]

    def __call__(
        self, names: Sequence[str], pictures: Sequence[tuple[Picture, Picture]], features: dict[str, Tensor]
    ) -> np.ndarray:
        """Fuse N pairs of equal size.

        Args:
            names: of the pairs, for messages.
            pictures: A and B of each.
            features: what guides them.

        Returns:
            (labels, N, H, W) float32 in [0, 1].
        """
        samples = [
            {"name": name} | {key: torch.from_numpy(side.gray)[None] for key, side in zip(SIDES, pair)} | features
            for name, pair in zip(names, pictures)
        ]
        batch = collate(samples)
        fused = [fuse_batch([self.model, *self.rules], batch, self.device, self.guidances)]
        for asked in self.asked:
            asked = {"instruction": asked.expand(len(names), -1, -1)}
            fused.append(fuse_batch([self.model], batch | asked, self.device, self.guidances))
        return np.concatenate(fused)


def features_of_pairs(
    model: FusionNetwork,
    config: Config,
    pairs: Sequence[OwnPair],
    guidances: Mapping[str, Guidance],
    device: torch.device,
) -> list[dict[str, Tensor]]:
    """The features that guide each pair, but for those that are computed from its images.

    A pair without text of its own gets the default feature of the checkpoint.

    Raises:
        InputError: text or an instruction for a network that reads none; a guide without a default feature.
    """
    features: list[dict[str, Tensor]] = [{} for _ in pairs]
    described = [i for i, pair in enumerate(pairs) if pair.text_a]
    if described:
        if "text" not in guidances or guidances["text"].instead is not None:
            raise InputError(f"{config.ckpt or model.label} reads no text, or text.use is default; leave out the text")
        encoder = open_text_encoder(config, guidances["text"].record, model.options["text_dim"], device)
        texts = [(pairs[i].text_a, pairs[i].text_b) for i in described]
        for i, feature in zip(described, encoder.encode_pairs(texts, config.text.batch_size)):
            features[i]["text"] = torch.from_numpy(feature)
    wanted = list({pair.instruct: None for pair in pairs if pair.instruct})
    encoded = dict(zip(wanted, encode_instructions(wanted, config, model, device)))
    for own, pair in zip(features, pairs):
        own |= {"instruction": encoded[pair.instruct]} if pair.instruct else {}
    for kind, guidance in guidances.items():
        without = [] if guidance.encoder else [own for own in features if kind not in own]
        default = guidance.instead
        if without and default is None:
            default = guidance.record and guidance.record.default
            if default is None:
                advice = "; describe the pair with --text, or --text-a and --text-b" if kind == "text" else ""
                raise InputError(f"{config.ckpt} has no default {kind}{advice}")
            print(f"no {kind} given for {len(without)} of {len(pairs)}: the checkpoint's default {kind} guides them")
        for own in without:
            own[kind] = default
    print(f"guided by {describe_guidance(guidances)}")
    return features


def list_pairs(job: Job) -> None:
    """Print what would be fused, and do nothing (--list); InputError as of the fusion, if no network is needed."""
    failed = 0
    for pair in job.pairs:
        try:
            if job.is_video:
                a, b, fps, (height, width) = open_both(pair.a, pair.b, job.resize, job.fps)
                said = f"{min(a.count, b.count)} frames of {height} x {width}, {fps:g} a second"
            else:
                said = "{} x {}".format(*read_pair(pair, job.resize)[0].gray.shape)
        except InputError as error:
            failed, said = failed + 1, str(error)
        print(f"{pair.name}: {pair.a} + {pair.b} -> {pair.out}: {said}")
    if failed:
        raise InputError(f"{failed} of {len(job.pairs)} cannot be fused, as is said above")
    print(f"{len(job.pairs)} would be fused")


def fuse_pairs(fuser: Fuser, job: Job) -> None:
    """Fuse all pairs of images, and measure the results if the job says so.

    Raises:
        InputError: a line for each pair that could not be fused; the others are done.
    """
    problems, evaluators = [], [Evaluator(job.metrics, fuser.device) for _ in fuser.labels]
    bar = tqdm(list(zip(job.pairs, fuser.features)), unit="pair", disable=len(job.pairs) < 2)
    for pair, features in bar:
        try:
            a, b = read_pair(pair, job.resize)
            if job.align:
                alignment = align(a.gray, b.gray, job.align)
                b = Picture(*alignment.apply(*b))
                bar.write(f"{pair.name}: {remark(alignment)}")
            fused = [to_8bit(each, job.stretch) for each in fuser([pair.name], [(a, b)], features)[:, 0]]
            save(pair, a, b, fused, fuser.labels)
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


def read_pair(pair: OwnPair, resize: str | None) -> tuple[Picture, Picture]:
    """The images of a pair in one size; InputError as `read_image` and `fit`."""
    return fit(read_picture(pair.a), read_picture(pair.b), resize, f"{pair.a} and {pair.b}")


def remark(alignment: Alignment) -> str:
    if alignment.improved:
        gain = f"{alignment.before:.3f} -> {alignment.after:.3f}"
        return f"B moved by {alignment.shift:.1f} pixels, correlation of edges {gain}"
    return f"warning: B is kept as it is, nothing is sure to fit better (correlation of edges {alignment.before:.3f})"


def save(pair: OwnPair, a: Picture, b: Picture, fused: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    """Write the result of a pair, (H, W) uint8, in colour where a source is; several as a picture, and one by one."""
    results = [in_colour(each, a, b) for each in fused]
    if len(results) == 1:
        return write_image(pair.out, results[0])
    sources = [colorize(to_8bit(source.gray, "clamp"), source.chroma) for source in (a, b)]
    write_image(pair.out, side_by_side([*sources, *results], ["A", "B", *labels]))
    for number, (result, label) in enumerate(zip(results, labels)):
        words = re.sub(r"\W+", "_", label).strip("_").lower()[:60]
        write_image(pair.out.with_suffix("") / f"{number}_{words}{pair.out.suffix}", result)


def in_colour(fused: np.ndarray, a: Picture, b: Picture) -> np.ndarray:
    """A result (H, W) uint8 in BGR (H, W, 3) where a source has colour, else as it is."""
    chroma = merge_chroma([a.chroma, b.chroma])
    return fused if chroma is None else colorize(fused, chroma)


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


def fuse_video(fuser: Fuser, job: Job, codec: str | None, batch_size: int) -> None:
    """Fuse a video, or a folder of frames, frame by frame.

    With --align B is registered by the first frames: the cameras of a rig do not move against each other.

    Raises:
        InputError: sources that do not go together; or one that ends before the other, after the result is written.
    """
    (pair,), (features,), alignment = job.pairs, fuser.features, None
    a, b, fps, _ = open_both(pair.a, pair.b, job.resize, job.fps)
    with open_output(job.out, fps, codec) as write, tqdm(total=min(a.count, b.count), unit="frame") as bar:
        for batch in batched(in_step(a, b), batch_size):
            pictures = []
            for frames in batch:
                one, two = (Picture(as_unit(gray), chroma) for gray, chroma in frames)
                one, two = fit(one, two, job.resize, f"{pair.a} and {pair.b}")
                if job.align and alignment is None:
                    alignment = align(one.gray, two.gray, job.align)
                    bar.write(f"by the first frames: {remark(alignment)}")
                pictures.append((one, Picture(*alignment.apply(*two)) if alignment else two))
            names = [f"frame {bar.n + i}" for i in range(1, len(batch) + 1)]
            for fused, sources in zip(fuser(names, pictures, features)[0], pictures):
                write(in_colour(to_8bit(fused, job.stretch), *sources))
            bar.update(len(batch))
    print(f"{bar.n} frames fused, 8 bit by {job.stretch}: {job.out}")
    if a.read != b.read:
        short, other = sorted((a, b), key=lambda frames: frames.read)
        raise InputError(f"{short.path} ends after {bar.n} frames and {other.path} goes on; {job.out} has no more")


def batched(frames: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items, the last perhaps shorter."""
    while batch := list(itertools.islice(frames, size)):
        yield batch
