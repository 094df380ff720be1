"""Fuse a user's own files: pairs of images, and videos."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from net import FusionNetwork, build_model
from utils.config import Config
from utils.data.images import (
    NEUTRAL,
    colorize,
    merge_chroma,
    quantize,
    read_exif,
    side_by_side,
    to_8bit,
    write_image,
)
from utils.data.pairs import collate
from utils.errors import InputError
from utils.files import to_json, write_file
from utils.guides import describe_guidance, label_with_remarks, open_guides
from utils.guides.text import open_users_encoder, text_use
from utils.instruct.guide import INSTRUCTION, NOTHING, encode_instructions, shares_of
from utils.metrics import measure_all
from utils.own.fit import Picture, common_size, read_picture
from utils.own.job import Job, check_no_source
from utils.own.pairing import OwnPair
from utils.own.stack import fuse_stack
from utils.own.video import InStep, open_both, open_output
from utils.own.views import Views, fade
from utils.remarks import remark
from utils.results.evaluate import average_all, fuse_batch
from utils.results.table import format_table, left_out_lines, write_csv

Shares = Sequence[float | None]  # of A, of B, and of the further images of a stack; None: its colour does not count
FAINT = 4  # levels of chroma, the mean: gray videos are not quite gray once they are decoded


class Fuser:
    """From two pictures to their results: the network, its guides, and what it is compared with.

    Args:
        pairs: their texts and instructions are used, not their images.
        rules: names of networks without weights, to compare with.
        instructions: to compare.
        color: whose colour results have, one of COLORS in utils/own/job.py.

    Attributes:
        labels: those of the results.
        features: what guides each pair, but for what is computed from its images.
        notes: what guides the pairs, in words.

    Raises:
        InputError: text or an instruction for a network that reads none; a guide without a default feature.
    """

    def __init__(
        self,
        model: FusionNetwork,
        config: Config,
        pairs: Sequence[OwnPair],
        device: torch.device,
        rules: Sequence[str] = (),
        instructions: Sequence[str] = (),
        color: str = "both",
    ):
        self.model, self.device, self.notes = model, device, []
        self.colored = color in ("a", "both"), color in ("b", "both")
        self.guidances = open_guides(config, model, [], device)
        self.features = self._features(pairs, config)
        self.rules = [build_model(rule).to(device).eval() for rule in rules if rule != model.name]
        self.asked = encode_instructions(instructions, config, model, device)
        first = NOTHING if self.asked else label_with_remarks(model, self.guidances)
        self.labels = [first, *(rule.label for rule in self.rules), *instructions]

    def _features(self, pairs: Sequence[OwnPair], config: Config) -> list[dict[str, Tensor]]:
        """A pair without text of its own gets the default feature of the checkpoint."""
        source = config.ckpt or self.model.label
        wanted = list(dict.fromkeys(pair.instruct for pair in pairs if pair.instruct))
        encoded = dict(zip(wanted, encode_instructions(wanted, config, self.model, self.device)))
        features = [{"instruction": encoded[pair.instruct]} if pair.instruct else {} for pair in pairs]
        described = [i for i, pair in enumerate(pairs) if pair.text_a]
        if described:
            encoder = open_users_encoder(config, self.model, self.guidances, self.device)
            use = text_use(config, self.guidances["text"].record)
            texts = [(pairs[i].text_a, pairs[i].text_b) for i in described]
            for i, feature in zip(described, encoder.encode_pairs(texts, config.text.batch_size, use)):
                features[i]["text"] = torch.from_numpy(feature)
        for kind, guidance in self.guidances.items():
            without = [] if guidance.encoder else [own for own in features if kind not in own]
            if without and guidance.default is None:
                raise InputError(f"{source} has no default {kind}; give --text, or --text-a and --text-b")
            if without and guidance.instead is None:
                count = f"{len(without)} of {len(pairs)}"
                self.notes.append(f"no {kind} given for {count}: the default {kind} of {source} guides them")
            for own in without:
                own[kind] = guidance.default
        self.notes.append(f"guided by {describe_guidance(self.guidances)}")
        return features

    def __call__(
        self, names: Sequence[str], pictures: Sequence[tuple[Picture, Picture]], features: dict[str, Tensor]
    ) -> np.ndarray:
        """Fuse N pairs (A, B) of one size under the same features: (labels, N, H, W) float32 in [0, 1]."""
        samples = [
            {"name": name, "image_a": torch.from_numpy(a.gray)[None], "image_b": torch.from_numpy(b.gray)[None]}
            for name, (a, b) in zip(names, pictures)
        ]
        batch = collate([sample | features for sample in samples])
        fused = [fuse_batch([self.model, *self.rules], batch, self.device, self.guidances)]
        for asked in self.asked:
            asked = {"instruction": asked.expand(len(names), -1, -1)}
            fused.append(fuse_batch([self.model], batch | asked, self.device, self.guidances))
        return np.concatenate(fused)

    def stack(self, pair: OwnPair, pictures: Sequence[Picture], features: dict[str, Tensor], task: str) -> np.ndarray:
        """Fuse the pictures of a stack, of one size, by the network: (1, H, W) float32 in [0, 1]."""

        def fuse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return self([pair.name], [(Picture(a, None), Picture(b, None))], features)[0, 0]

        return fuse_stack(fuse, [picture.gray for picture in pictures], task)[None]

    def shares(self, features: dict[str, Tensor]) -> list[Shares]:
        """How much of A's and of B's colour is in each result of a pair, of `labels`."""
        own = shares_of(features[INSTRUCTION], self.model) if INSTRUCTION in features else (1, 1)
        parts = [own, *((1, 1) for _ in self.rules), *(shares_of(asked, self.model) for asked in self.asked)]
        return [[share if counts else None for share, counts in zip(part, self.colored)] for part in parts]


def list_pairs(job: Job) -> None:
    """Print what would be fused, and do nothing (--list); InputError as of the fusion, if no network is needed."""
    failed = 0
    for pair in job.pairs:
        try:
            if job.is_video:
                a, b, fps, (height, width) = open_both(pair.a, pair.b, job.resize, job.fps, job.ranges, job.rate)
                count = min(a.expected(fps), b.expected(fps))
                said = f"{count} frames of {height} x {width}, {fps:g} a second"
            else:
                first, second, *_ = (picture.gray.shape for picture in read_stack(pair, job))
                said = "{} x {}".format(*common_size(first, second, job.resize, f"{pair.a} and {pair.b}"))
        except InputError as error:
            failed, said = failed + 1, str(error)
        print(f"{pair.name}: {' + '.join(map(str, pair.images))} -> {pair.out}: {said}")
    if failed:
        raise InputError(f"{failed} of {len(job.pairs)} cannot be fused, as is said above")
    print(f"{len(job.pairs)} would be fused")


def fuse_pairs(fuser: Fuser, job: Job) -> None:
    """Fuse all pairs of images, and measure them if the job says so; InputError with a line for each that failed."""
    problems, per_image = [], {label: {} for label in fuser.labels}
    bar = tqdm(list(zip(job.pairs, fuser.features)), unit="pair", disable=len(job.pairs) < 2 or None)
    for pair, features in bar:
        try:
            pictures, views = read_stack(pair, job), []
            for path, other in zip(pair.images[1:], pictures[1:]):
                opened = open_views(pictures[0], other, job, f"{pair.a} and {path}")
                for note in opened.notes:
                    bar.write(f"{path.name if pair.more else pair.name}: {note}")
                views.append(opened(pictures[0], other))
            pictures = [views[0].a, *(view.b for view in views)]
            a, b, *more = pictures
            check_colors(pair.a, a, b, job.task)
            if more:
                found = fuser.stack(pair, pictures, features, job.task)
                shares = [[1 if fuser.colored[0] else None] * len(pictures)]
            else:
                found = [views[0].finish(each) for each in fuser([pair.name], [(a, b)], features)[:, 0]]
                shares = fuser.shares(features)
            save(job, pair, pictures, [quantize(each, job.stretch, job.depth) for each in found], fuser.labels, shares)
            if job.metrics:
                images = [[to_8bit(each, job.stretch) for each in found]]
                images += [to_8bit(source.gray, "clamp") for source in pictures]
                for label, row in zip(fuser.labels, measure_all(*images, job.metrics, fuser.device)):
                    per_image[label][pair.name] = row
        except InputError as error:
            problems.append(str(error))
    done = len(job.pairs) - len(problems)
    if job.metrics and done:
        tell(per_image, job)
    write_ranges(job)
    print(f"{done} of {len(job.pairs)} fused, {job.depth} bit by {job.stretch}: {job.out}")
    if problems:
        raise InputError("\n".join(problems))


def write_ranges(job: Job) -> None:
    """Write beside the results which values of the sources are black and white in them, where a range was given."""
    if any(job.ranges):
        words = {f"range_{side}": found for side, found in zip("ab", job.ranges) if found}
        is_folder = job.in_folder or job.out.is_dir()
        path = job.out / "ranges.json" if is_folder else job.out.with_suffix(".ranges.json")
        write_file(path, to_json(words, indent=2))
        print(f"which values of the sources are black and white: {path}")


def read_stack(pair: OwnPair, job: Job) -> list[Picture]:
    """All images of a pair or stack, as they are; InputError as `read_picture` and `common_size`."""
    if pair.more and job.resize not in (None, "a"):
        raise InputError(f"'{pair.name}' is a stack; use --resize a, the size of its first image")
    pictures = [read_picture(path, job.ranges[i > 0]) for i, path in enumerate(pair.images)]
    for path, other in zip(pair.images[1:], pictures[1:]):
        common_size(pictures[0].gray.shape, other.gray.shape, job.resize, f"{pair.a} and {path}")
    return pictures


def check_colors(path: Path, a: Picture, b: Picture, task: str) -> None:
    """Say what the colours of sources tell about them; nothing but for infrared A."""
    if task == "IVF" and a.chroma is not None and np.abs(a.chroma.astype(np.float32) - NEUTRAL).mean() > FAINT:
        exchanged = "and B has none; these weights take infrared as A, visible as B: are they exchanged?"
        palette = "as A: a palette's brightness is no temperature; use gray"
        remark(path, f"has colour {exchanged if b.chroma is None else palette}")


def open_views(a: Picture, b: Picture, job: Job, names: str) -> Views:
    return Views(a, b, job.resize, job.align, job.align_or, job.task == "IVF", names)


def save(
    job: Job,
    pair: OwnPair,
    pictures: Sequence[Picture],
    fused: Sequence[np.ndarray],
    labels: Sequence[str],
    shares: Sequence[Shares],
) -> None:
    """Write the result of a pair or stack, (H, W) uint8 or uint16, in colour where a source is, with its tags.

    Several are written beside each other, and into a folder also each alone: <out>/<number>_<label>/<name>.png.
    """
    results, exif = [in_colour(each, pictures, share) for each, share in zip(fused, shares)], b""
    if len(results) > 1:
        for number, (label, result) in enumerate(zip(labels, results)) if job.in_folder else ():
            words = re.sub(r"\W+", "_", label.lower())[:50].strip("_")
            path = job.out / f"{number}_{words}" / pair.out.name
            check_no_source(path, job.sources)
            write_image(path, result)
        sources = [colorize(to_8bit(source.gray, "clamp"), source.chroma) for source in pictures]
        results = [side_by_side([*sources, *results], ["A", "B", *labels])]
    else:
        first = sorted(zip(pair.images, pictures, shares[0]), key=lambda each: each[1].chroma is None or not each[2])
        exif = next(filter(None, (read_exif(path) for path, *_ in first)), b"")
    write_image(pair.out, results[0], exif)


def in_colour(fused: np.ndarray, pictures: Sequence[Picture], shares: Shares) -> np.ndarray:
    """A result (H, W) in BGR (H, W, 3) where a source has colour that counts, faded by its share; else as it is."""
    colored = [
        (chroma, share) for (_, chroma), share in zip(pictures, shares) if chroma is not None and share is not None
    ]
    chroma = merge_chroma([fade(chroma, share) for chroma, share in colored])
    return fused if chroma is None else colorize(fused, chroma)


def tell(per_image: dict[str, dict[str, dict[str, float]]], job: Job) -> None:
    """Print the means of {label: {image: {metric: value}}}, and write all values to `job.table`."""
    means, left_out = average_all(per_image)
    print("\n".join([format_table(str(job.out), job.metrics, means), *left_out_lines(left_out)]))
    write_csv(job.table, per_image, job.stretch)
    print(f"of each image: {job.table}")


def fuse_video(fuser: Fuser, job: Job, codec: str | None, batch_size: int) -> None:
    """Fuse a video, or a folder of frames, frame by frame.

    The first frames decide how B is registered, and what of A and B is a frame: the cameras of a rig do not move
    against each other. InputError if the sources do not go together; and, after the result is written, if one ends long
    before the other.
    """
    (pair,), (features,), views = job.pairs, fuser.features, None
    (shares,) = fuser.shares(features)
    a, b, fps, _ = open_both(pair.a, pair.b, job.resize, job.fps, job.ranges, job.rate)
    steps = InStep(a, b, fps)
    frames, done, total = iter(steps), 0, min(a.expected(fps), b.expected(fps)) or None
    with open_output(job.out, fps, codec) as write, tqdm(total=total, unit="frame", disable=None) as bar:
        while batch := list(itertools.islice(frames, batch_size)):
            if views is None:
                views = open_views(*batch[0], job, f"{pair.a} and {pair.b}")
                for note in views.notes:
                    bar.write(f"by the first frames: {note}")
                check_colors(pair.a, *batch[0], job.task)
            batch = [views(*pictures) for pictures in batch]
            names = [f"frame {done + i}" for i in range(1, len(batch) + 1)]
            for fused, view in zip(fuser(names, [(view.a, view.b) for view in batch], features)[0], batch):
                write(in_colour(to_8bit(view.finish(fused), job.stretch), (view.a, view.b), shares))
            done += len(batch)
            bar.update(len(batch))
    for note in steps.notes:
        print(f"note: {note}")
    write_ranges(job)
    print(f"{done} frames fused, 8 bit by {job.stretch}: {job.out}")
    if steps.problem:
        raise InputError(f"{steps.problem}; {job.out} has no more")
