"""Train a fusion network.

    python train.py --config configs/film_ivf.yaml
    python train.py --config configs/film_ivf.yaml train.lr=1e-4 train.batch_size=8
    python train.py --config configs/film_ivf.yaml train.resume=exp/<run>/model/last.pth
    torchrun --nproc_per_node=2 train.py --config configs/film_ivf.yaml

A run writes exp/<time>_<name>/: code/ (this script, the network's file, git commit and diff), model/
(last.pth, best.pth, epoch_<k>.pth), pic_fusion/ckpt_<epoch>/ (A | B | fused), log.txt, metrics.jsonl,
curves.png, TensorBoard events, config.yaml and param.json. train.batch_size counts the pairs of a step over all
processes, so the number of processes does not change the training, but for batch normalisation
(MGFusion) on CPUs, where every process has the statistics of its own pairs.
"""

import functools
import inspect
import itertools
import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from net import build_model, prepare
from net.checkpoint import load_weights, read_checkpoint, save_checkpoint
from utils import distributed
from utils.config import Config, Train, parse_args
from utils.data.h5 import h5_path, text_encoder_of
from utils.data.images import side_by_side, to_8bit, write_image
from utils.data.pairs import PairDataset, collate, default_text
from utils.errors import InputError, enough_memory, nearest, run, shown
from utils.files import alone, git, plain_name, to_json, write_file, writing
from utils.guides.clip import describe_clip, open_clip
from utils.guides.text import encoder_name
from utils.loss import FusionLoss
from utils.metrics import LOWER_IS_BETTER
from utils.results.curves import draw_curves
from utils.results.evaluate import (
    Evaluator,
    average,
    check_inputs,
    check_metrics,
    fuse,
    fuse_set,
    sources_8bit,
    split,
    to_device,
)

# what decides a training, and so must not change where it is resumed
SAME_TO_RESUME = ["net", "loss", "seed", "precision", "data.train", "data.leave_out", "train.batch_size"]
SAME_TO_RESUME += [
    "train.lr",
    "train.lr_step",
    "train.lr_gamma",
    "train.schedule",
    "train.warmup",
    "train.lr_low",
    "train.clip_grad",
    "train.crop",
]
SAME_TO_RESUME += ["train.augment", "clip_input", "text.use"]

LESS_MEMORY = "compute a step in parts (train.accumulate=2), blocks twice (train.checkpointing=true), or smaller crops"

log = logging.getLogger("train")


def main() -> None:
    with ExitStack() as held:
        train_network(held)


def train_network(held: ExitStack) -> None:
    """The training; `held` keeps its folder from other runs until it ends, well or not."""
    config, _ = parse_args(__doc__)
    train = config.train
    rank, world, device = distributed.start(config.device)
    main_process = rank == 0
    torch.manual_seed(config.seed + rank)
    check_metrics([train.best, *config.test.metrics])

    # network, loss, optimiser
    model = build_model(**config.net).to(device)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"net.name '{config.net['name']}' has no weights to train")
    if world > 1 and device.type == "cuda":  # statistics of the whole step, whatever the number of processes
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    criterion = build_loss(config.loss).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=train.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(train))
    first_epoch, step, best = 0, 0, None

    # data: every random draw depends on seed, epoch and sample alone, not on the process or worker
    if not config.data.train:
        raise InputError("data.train names no set; give e.g. data.train=[MSRS_train]")
    crops_guide = train.crop and config.clip_input == "crop"  # CLIP sees what the network sees
    inputs = [key for key in model.inputs if not (key == "clip" and crops_guide)]
    paths = [h5_path(config.data.h5, name) for name in config.data.train]
    dataset = PairDataset(paths, inputs, train.crop, train.augment, config.seed)
    dataset.leave_out(config.data.leave_out)
    if train.batch_size % (world * train.accumulate) or len(dataset) < train.batch_size:
        raise InputError(
            f"train.batch_size={train.batch_size} must be a multiple of the {world} processes times "
            f"train.accumulate={train.accumulate}, and at most the {len(dataset)} training pairs"
        )
    sampler = DistributedSampler(dataset, world, rank, shuffle=True, seed=config.seed, drop_last=True)
    loader = DataLoader(
        dataset,
        batch_size=train.batch_size // world,
        sampler=sampler,
        num_workers=train.num_workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    paths = [h5_path(config.data.h5, name) for name in config.data.val]
    val_set = PairDataset(paths, model.inputs) if paths else None

    # what guides the fusion: text features, CLIP vectors or nothing
    used = [each for each in (dataset, val_set) if each]
    for each in used:
        check_inputs(model, each)
    if "text" in model.inputs:
        model.text = text_of(config, dataset)
        for each in used if config.text.use == "default" else ():
            each.only_text = model.text.default
    if "clip" in inputs and train.crop and not dataset.clip:
        raise InputError(
            "clip_input=image needs CLIP vectors in the H5; make it with this config, or set clip_input=crop"
        )
    clip = open_clip(config.clip, model, used, device)

    # go on where a checkpoint stopped
    if train.resume:
        checkpoint = read_checkpoint(train.resume)
        if "optimizer" not in checkpoint:
            raise InputError(f"{train.resume} holds weights only; train.resume needs a checkpoint of train.py")
        check_same_run(checkpoint, config, model)
        load_weights(model, checkpoint["model"], train.resume)
        try:
            optimizer.load_state_dict(checkpoint["optimizer"])
            scheduler.load_state_dict(checkpoint["scheduler"])
            first_epoch, step, best = int(checkpoint["epoch"]), int(checkpoint["step"]), checkpoint["best"]
            torch.set_rng_state(checkpoint["rng"][rank % len(checkpoint["rng"])])
        except Exception as error:  # a checkpoint may hold anything
            raise InputError(f"{train.resume} cannot be resumed: it is damaged ({error})") from error
        if first_epoch >= train.epochs:
            raise InputError(f"{train.resume} has {first_epoch} epochs already; raise train.epochs")

    prepare(model, config.precision, config.test.tile, train.checkpointing, config.compile)
    net = DistributedDataParallel(model) if world > 1 else model
    net.inputs = model.inputs
    folder = open_run_folder(config, model, first_epoch, held) if main_process else None
    with writing(folder):
        writer = SummaryWriter(folder, purge_step=step + 1) if main_process else None
    guide = describe_clip(model.clip) if model.clip else f"text of {model.text.name}" if model.text else "nothing"
    log.info(
        f"{config.net['name']}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}, "
        f"{config.precision}, guided by {guide}; {len(dataset)} pairs, {train.batch_size} a step "
        f"({world} processes x {train.accumulate} parts x {train.batch_size // world // train.accumulate}), "
        f"{len(loader)} steps an epoch, {train.epochs} epochs"
    )

    started = time.monotonic()
    for epoch in range(first_epoch + 1, train.epochs + 1):
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        net.train()
        pending, window = [], time.monotonic()  # what has not been logged yet
        bar = tqdm(loader, desc=f"epoch {epoch}/{train.epochs}", unit="step", disable=not main_process)
        for i, batch in enumerate(bar):
            optimizer.zero_grad(set_to_none=True)
            fused, losses = [], []
            for part in split(batch, train.accumulate):
                more = len(losses) + 1 < train.accumulate  # the processes add their gradients with the last part
                with net.no_sync() if more and world > 1 else nullcontext(), enough_memory("train", LESS_MEMORY):
                    part = to_device(part, device, clip)
                    fused.append(fuse(net, part))
                    terms = criterion(fused[-1], part["image_a"], part["image_b"])
                    (terms["total"] / train.accumulate).backward()
                fused[-1] = fused[-1].detach()
                losses.append(torch.stack([*terms.values()]).detach())
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad or math.inf)
            optimizer.step()
            step += 1

            values = torch.cat([torch.stack(losses).mean(dim=0), norm[None]])
            pending.append((step, batch["name"], values))
            if main_process and i < train.pictures:
                save_pictures(folder / "pic_fusion" / f"ckpt_{epoch}" / str(i), batch, torch.cat(fused))
            if len(pending) == train.log_every or i + 1 == len(loader):  # waits for the device, as pictures do
                means = log_values(pending, [*terms, "grad_norm"])
                seconds, window = time.monotonic() - window, time.monotonic()
                pairs = train.batch_size * len(pending) / seconds
                progress = (epoch - first_epoch - 1 + (i + 1) / len(loader)) / (train.epochs - first_epoch)
                left = (time.monotonic() - started) * (1 / progress - 1)
                pending = []
                if main_process:
                    lr = optimizer.param_groups[0]["lr"]
                    record = {"epoch": epoch, "step": step, **means, "lr": lr, "pairs_per_s": pairs}
                    write_record(folder, writer, step, "train", record)
                    speed = f"{pairs:.1f} pairs/s, {tqdm.format_interval(left)} left"
                    bar.set_postfix_str(f"loss {means['total']:.4f}, lr {lr:.1e}, {speed}")
        scheduler.step()

        # validation on whole images, shared by the processes
        scores = {}
        distributed.same_buffers(model)  # running statistics of batch normalisation, where every process has its own
        if val_set and epoch % train.val_every == 0:
            metrics = list(dict.fromkeys([train.best, *config.test.metrics]))
            scores = validate(model, val_set, metrics, config, device, (rank, world), clip)
        better = bool(scores) and is_better(scores[train.best], best, train.best)
        if better:
            best = scores[train.best]

        rng = distributed.gather(torch.get_rng_state())
        if main_process:
            if scores:
                write_record(folder, writer, step, "val", {"epoch": epoch, "step": step, **scores})
                log.info(f"epoch {epoch}: " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()))
            checkpoint = {
                "net": model.config,
                "model": model.state_dict(),
                "text": model.text and vars(model.text),
                "clip": model.clip,
                "config": config.as_dict(),
                "commit": git("rev-parse", "HEAD"),
                "epoch": epoch,
                "step": step,
                "best": best,
                "scores": scores,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": rng,
            }
            kept = [f"epoch_{epoch}.pth"] if epoch % train.save_every == 0 else []
            # last.pth comes last: a run killed in between goes on from the epoch before and makes them all again
            for name in [*(["best.pth"] if better else []), *kept, "last.pth"]:
                save_checkpoint(folder / "model" / name, checkpoint)
            if kept or epoch == train.epochs:
                draw_curves(folder / "metrics.jsonl", folder / "curves.png")

    if main_process:
        writer.close()
        log.info(f"trained in {time.monotonic() - started:.0f} s; weights in {folder / 'model'}")
    distributed.stop()


def learning_rate(train: Train) -> Callable[[int], float]:
    """The learning rate of an epoch, counted from 0, in units of train.lr."""
    if train.schedule == "step":
        return lambda epoch: train.lr_gamma ** (epoch // train.lr_step)
    low, top = train.lr_low / train.lr, train.warmup
    return lambda epoch: float(np.interp(epoch, [0, top, max(train.epochs - 1, top + 1)], [low, 1, low]))


def text_of(config: Config, dataset: PairDataset) -> SimpleNamespace:
    """What a checkpoint records of the text encoder; InputError if a training set was made with another one."""
    name = encoder_name(config.text.encoder, config.text.path)
    for path in dict.fromkeys(path for path, _ in dataset.samples):
        recorded = text_encoder_of(path)
        if recorded not in ("", name):
            raise InputError(
                f"{path} has text of the encoder {recorded}, the config names {name}; set text.encoder and text.path "
                "as for data_process.py, so that the checkpoint records the right one"
            )
    return SimpleNamespace(encoder=config.text.encoder, path=config.text.path, name=name, default=default_text(dataset))


def check_same_run(checkpoint: dict, config: Config, model: torch.nn.Module) -> None:
    """InputError if what decides the training differs from that of the checkpoint to resume."""
    keys = SAME_TO_RESUME + ["train.epochs"] * (config.train.schedule == "warmup")  # its way down ends with them
    for key in keys:
        *parents, last = key.split(".")
        new, default = (functools.reduce(getattr, [*parents, last], c) for c in (config, Config()))
        # the default where the run is older than the key
        old = functools.reduce(dict.get, parents, checkpoint["config"]).get(last, default)
        if old != new:
            raise InputError(f"{key} is {new} and was {old} in the run to resume; leave it, or start a new run")
    old, new = (clip and clip["revision"] for clip in (checkpoint.get("clip"), model.clip))
    if old != new:
        raise InputError(f"the CLIP is {model.clip} and was {checkpoint.get('clip')} in the run to resume; set clip=")


def build_loss(options: dict) -> FusionLoss:
    """The loss of the config; InputError for an option it does not have."""
    known = inspect.signature(FusionLoss).parameters
    for key, value in options.items():
        if key not in known:
            raise InputError(f"loss.{key} is not an option of the loss; {nearest(key, known)}")
        kind = type(known[key].default)  # a number or a word
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise InputError(f"loss.{key} must be like {known[key].default!r}, not {shown(value)}")
    return FusionLoss(**options)


def open_run_folder(config: Config, model: torch.nn.Module, first_epoch: int, held: ExitStack) -> Path:
    """A new run folder, or that of the checkpoint to resume; what is needed to repeat the run goes in.

    It is kept from other runs until `held` is closed.
    """
    if config.train.resume and Path(config.train.resume).parent.name == "model":
        folder = Path(config.train.resume).parent.parent
        held.enter_context(alone(folder))
        drop_records_after(folder / "metrics.jsonl", first_epoch)
    else:
        if not plain_name(config.name):
            raise InputError(f"name is '{config.name}' and becomes part of a folder's name: no slashes, please")
        folder = new_folder(Path(config.train.exp), time.strftime("%Y%m%d-%H%M%S"), config.name)
        held.enter_context(alone(folder))
    for name in ("code", "model", "pic_fusion"):
        (folder / name).mkdir(exist_ok=True)
    # a variant and its base
    ancestors = [k for k in type(model).__mro__ if issubclass(k, torch.nn.Module) and k.__module__.startswith("net.")]
    for source in (__file__, *map(inspect.getsourcefile, ancestors)):
        write_file(folder / "code" / Path(source).name, Path(source).read_bytes())
    write_file(folder / "code" / "git.txt", f"{git('rev-parse', 'HEAD')}\n\n{git('diff', 'HEAD')}\n")
    settings = config.as_dict()
    write_file(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    settings["parameters"] = sum(p.numel() for p in model.parameters())
    write_file(folder / "param.json", to_json(settings, indent=1))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[LogFile(folder / "log.txt"), logging.StreamHandler()],
        force=True,
    )
    return folder


class LogFile(logging.FileHandler):
    """A log that cannot be written ends the run in one sentence, where logging by itself prints a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        with writing(self.baseFilename):
            raise


def new_folder(parent: Path, start: str, name: str) -> Path:
    """Make <parent>/<start>_<name>; a second run of the same second gets <start>-2, and so on."""
    for count in itertools.count(1):
        folder = parent / f"{start}{f'-{count}' if count > 1 else ''}_{name}"
        with writing(folder):
            parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder


def drop_records_after(path: Path, epoch: int) -> None:
    """Forget what an interrupted run logged after the checkpoint that it is resumed from."""
    if path.is_file():
        whole = [line for line in path.read_text().splitlines(True) if line.endswith("}\n")]
        write_file(path, "".join(line for line in whole if json.loads(line)["epoch"] <= epoch))


def log_values(pending: list[tuple], keys: list[str]) -> dict[str, float]:
    """Means over the steps since the last log line and over all ranks.

    Raises:
        InputError: a loss or gradient that is not finite, on any rank; names the first such step.
    """
    values = torch.stack([v for _, _, v in pending]).float()
    finite = values.isfinite().tolist()
    # the gradient is that of all ranks: look at it only where every rank's loss is finite
    found = []
    for check in (lambda row: all(row[:-1]), lambda row: row[-1]):
        bad = [(step, names) for (step, names, _), row in zip(pending, finite) if not check(row)]
        found += [(step, name) for of_rank in distributed.gather(bad[:1]) for step, names in of_rank for name in names]
        if found:
            break
    if found:
        first = min(step for step, _ in found)
        names = ", ".join(name for step, name in found if step == first)
        raise InputError(
            f"the loss is not finite at step {first}, samples {names}; training stopped, the last checkpoint is "
            "as it was. Look at these samples, lower train.lr or set train.clip_grad"
        )
    return dict(zip(keys, distributed.mean(values.mean(dim=0)).tolist()))


def write_record(folder: Path, writer: SummaryWriter, step: int, kind: str, record: dict) -> None:
    """One line in metrics.jsonl, and the same to TensorBoard."""
    with writing(folder):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(to_json({"kind": kind, **record}) + "\n")
        for key, value in record.items():
            if key not in ("epoch", "step"):
                writer.add_scalar(f"{kind}/{key}", value, step)


def save_pictures(prefix: Path, batch: dict, fused: torch.Tensor) -> None:
    """A | B | fused of every pair of a batch, as <prefix>_<place in the batch>_<name>.png."""
    pairs = zip(batch["name"], batch["image_a"], batch["image_b"], fused.nan_to_num())
    for i, (name, *images) in enumerate(pairs):  # numbered: two sets may have images of one name
        row = side_by_side([to_8bit(image[0].cpu().numpy(), "clamp") for image in images], ["A", "B", "fused"])
        write_image(f"{prefix}_{i}_{name}.png", row)


def validate(
    model, dataset: PairDataset, metrics: list[str], config: Config, device, share: tuple, clip
) -> dict[str, float]:
    """Mean metrics over a set of whole images, 8 bit by test.stretch."""
    model.eval()
    evaluator = Evaluator(metrics, device)
    pairs = fuse_set([model], dataset, device, config.train.num_workers, share, clip)
    bar = tqdm(pairs, desc="validation", unit="pair", total=len(dataset) // share[1], disable=share[0] > 0, leave=False)
    for i, (batch, (fused,)) in enumerate(bar):  # numbered by rank and place: two sets may have images of one name
        evaluator.add(f"{share[0]}_{i}", to_8bit(fused, config.test.stretch), *sources_8bit(batch))
    return average({key: row for part in distributed.gather(evaluator.results()) for key, row in part.items()})[0]


def is_better(score: float, best: float | None, metric: str) -> bool:
    """True if a validation score beats the best so far."""
    if best is None or math.isnan(score):
        return not math.isnan(score)
    return score < best if metric in LOWER_IS_BETTER else score > best


if __name__ == "__main__":
    run(main)
