"""The folder of a training run: what is needed to repeat it, its log and pictures, and how a run is resumed."""

import inspect
import itertools
import json
import logging
import math
import operator
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from net import FusionNetwork
from net.checkpoint import load_weights, read_checkpoint, save_checkpoint
from utils import distributed
from utils.check import checked
from utils.config import Config
from utils.data.images import shrunk, side_by_side, to_8bit, write_image
from utils.errors import InputError
from utils.files import (
    ROOT,
    commit,
    exclusive_lock,
    find_file,
    git,
    os_error_as_input_error,
    plain_name,
    to_json,
    write_file,
)
from utils.guides.guidance import Guidance, same_encoder
from utils.loss import Loss
from utils.provenance import Provenance
from utils.results.evaluate import sources_8bit

log = logging.getLogger("train")

# what decides a training or its best checkpoint, and so must not change where it is resumed
SAME_TO_RESUME = (
    *("net", "loss", "seed", "precision", "clip_input", "text.use", "text.folder"),
    *("data.train", "data.leave_out", "data.val", "test.stretch"),
    *("train.batch_size", "train.lr", "train.lr_step", "train.lr_gamma", "train.schedule", "train.warmup"),
    *("train.lr_low", "train.clip_grad", "train.crop", "train.pad", "train.crop_on", "train.augment"),
    *("train.best", "train.val_every"),
)


class RunFolder:
    """A run's folder, <train.exp>/<time>_<name>, open for writing."""

    def __init__(self, path: Path, epoch: int, step: int):
        self.path, self.epoch, self.step = path, epoch, step  # finished epochs, and steps that log_epoch has told of
        self.records: dict[str, list[dict]] = {"train": [], "val": []}  # since then
        with os_error_as_input_error(path):
            self.writer = SummaryWriter(path, purge_step=step + 1)

    def record(self, kind: str, record: dict) -> None:
        """One line in metrics.jsonl, and the same to TensorBoard; the record has an "epoch" and a "step"."""
        self.records[kind].append(record)
        with os_error_as_input_error(self.path):
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(to_json({"kind": kind, **record}) + "\n")
            for key, value in record.items():
                if key not in ("epoch", "step"):
                    self.writer.add_scalar(f"{kind}/{key}", value, record["step"])

    def log_epoch(self, title: str, left: float) -> None:
        """One line on what was recorded in an epoch: means over its steps, validation, and the seconds left."""
        windows = self.records["train"]
        steps = np.diff([self.step, *(window["step"] for window in windows)])
        last, means = windows[-1], {key: np.average([w[key] for w in windows], weights=steps) for key in windows[0]}
        others = ("epoch", "step", "total", "grad_norm", "lr", "pairs_per_s")
        terms = ", ".join(f"{key} {value:.4g}" for key, value in means.items() if key not in others)
        parts = [f"{title}: loss {means['total']:.4g}{terms and f' ({terms})'}"]
        for scores in self.records["val"]:
            parts += ["val " + " ".join(f"{key} {scores[key]:.4g}" for key in scores if key not in others)]
        pairs = steps.sum() / sum(steps / [window["pairs_per_s"] for window in windows])
        parts += [f"lr {last['lr']:.1e}", f"{pairs:.1f} pairs/s", f"{tqdm.format_interval(left)} left"]
        log.info("  ".join(parts))
        self.step, self.records = last["step"], {"train": [], "val": []}

    def draw(self, epoch: int, step: int, pairs: Iterable[tuple[dict, list[np.ndarray]]]) -> None:
        """A | B | fused of pairs of `fuse_dataset`, to pic_fusion/<number>_<name>/epoch_<k>.png and TensorBoard."""
        for number, (batch, (fused,)) in enumerate(pairs, start=1):
            pair = f"{number}_{batch['name'][0]}"  # numbered: two sets may have pairs of one name
            row = side_by_side([*sources_8bit(batch), to_8bit(fused, "clamp")], ["A", "B", "fused"])
            write_image(self.path / "pic_fusion" / pair / f"epoch_{epoch:04}.png", row)
            small = shrunk(row, 768)
            with os_error_as_input_error(self.path):
                self.writer.add_image(f"pairs/{pair}", small, step, dataformats="HWC")  # gray: BGR is RGB

    def save(self, checkpoint: dict, names: list[str]) -> None:
        """Write a checkpoint to model/ under some names, and as last.pth.

        last.pth comes last: a run killed in between goes on from the epoch before and makes them all again.
        """
        for name in [*names, "last.pth"]:
            save_checkpoint(self.path / "model" / name, checkpoint)
        self.epoch = checkpoint["epoch"]

    def close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the folder, as an exit of a `with`; say how a run continues that Ctrl-C or SIGTERM has ended."""
        if kind is KeyboardInterrupt:
            last = self.path / "model" / "last.pth"
            several = ["torchrun", f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE')}"]
            start = several if distributed.place()[1] > 1 else ["python"]
            words = [word for word in sys.argv if not word.startswith("train.resume=")]
            command = shlex.join([*start, *words, f"train.resume={last}"])
            print(file=sys.stderr)  # ends the line of a bar
            log.info(
                f"interrupted at epoch {self.epoch}; continue with: {command}"
                if last.is_file()
                else f"interrupted in epoch {self.epoch + 1}, before the first checkpoint; start again"
            )
        self.writer.close()


def open_run_folder(
    config: Config, model: FusionNetwork, criterion: Loss, epoch: int, step: int, closing: ExitStack
) -> RunFolder:
    """A new run folder, or that of the run to resume, with what is needed to repeat the run, and the log started.

    A run that goes on in its folder, after `epoch` and `step`, adds code_from_epoch_<k>/ and config_from_epoch_<k>.yaml
    beside the first ones. Other runs are kept out of the folder until `closing` is closed.
    """
    path = folder_to_resume(config.train.resume)
    when = f"_from_epoch_{epoch + 1}" if path else ""
    if not path:
        if not plain_name(config.name):
            raise InputError(f"name is '{config.name}' and becomes part of a folder's name: no slashes, please")
        path = new_folder(Path(config.train.exp), time.strftime("%Y%m%d-%H%M%S"), config.name)
    closing.enter_context(exclusive_lock(path))
    if when:
        drop_records_after(path / "metrics.jsonl", step)
    classes = {base for part in (*model.modules(), *criterion.modules()) for base in type(part).__mro__}
    ours = {inspect.getsourcefile(base) for base in classes if base.__module__.startswith("net.")}
    for source in (ROOT / "train.py", *map(Path, ours)):
        write_file(path / f"code{when}" / source.name, source.read_bytes())
    write_file(path / f"code{when}" / "git.txt", f"{commit() or 'no repository'}\n\n{git('diff', 'HEAD') or ''}\n")
    parameters = {"parameters": sum(p.numel() for p in model.parameters())}
    write_file(path / f"config{when}.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))
    write_file(path / f"param{when}.json", to_json(config.as_dict() | parameters, indent=1))
    handlers = [LogFile(path / "log.txt"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    folder = RunFolder(path, epoch, step)
    closing.push(folder.close)
    log.info(f"resumed from epoch {epoch} of {config.train.resume}" if config.train.resume else f"a new run: {path}")
    return folder


class LogFile(logging.FileHandler):
    """A log that cannot be written ends the run in one sentence, where logging by itself prints a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        with os_error_as_input_error(self.baseFilename):
            raise


def new_folder(parent: Path, start: str, name: str) -> Path:
    """Make <parent>/<start>_<name>; a second run of the same second gets <start>-2, and so on."""
    for count in itertools.count(1):
        folder = parent / f"{start}{f'-{count}' if count > 1 else ''}_{name}"
        with os_error_as_input_error(folder):
            parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder


def folder_to_resume(resume: str | None) -> Path | None:
    """The folder of a run to go on in; None for a new one, as what a run made since an earlier checkpoint stays."""
    path = Path(resume or "")
    return find_file(path).resolve().parent.parent if path.parts[-2:] == ("model", "last.pth") else None


def drop_records_after(path: Path, step: int) -> None:
    """Forget what an interrupted run logged after the checkpoint that it is resumed from."""
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("}\n")]
    write_file(path, "".join(line for line in whole if json.loads(line)["step"] <= step))


def resume(
    config: Config,
    model: FusionNetwork,
    criterion: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    guidances: Mapping[str, Guidance],
    steps: int,
    device: torch.device,
) -> tuple[int, int, float | None]:
    """Take up the training where the checkpoint train.resume stopped: its finished epochs, its steps and best score.

    An epoch has `steps`; a checkpoint has more than those of its epochs where train.steps ended the run. InputError if
    it cannot be resumed, or what decides a training differs.
    """
    path = config.train.resume
    checkpoint = read_checkpoint(path, "train.resume")
    if "optimizer" not in checkpoint:
        raise InputError(f"{path} holds weights only; train.resume needs a checkpoint of train.py")
    old_config = check_same_run(checkpoint, config, criterion, guidances)
    load_weights(model, checkpoint["model"], path)
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        epoch, step, best = int(checkpoint["epoch"]), int(checkpoint["step"]), checkpoint["best"]
        distributed.restore_random_states(checkpoint["rng"], device)
    except Exception as error:  # a checkpoint may hold anything
        raise InputError(f"{path} cannot be resumed: it is damaged ({error})") from error
    if step // steps != epoch or (step % steps and step != old_config.train.steps):
        raise InputError(
            f"{path} has {step} steps in {epoch} epochs, and an epoch has {steps} steps now: the training set has "
            f"changed; start a new run, e.g. with train.init={path}"
        )
    unit, done = ("steps", step) if config.train.steps else ("epochs", epoch)
    if done >= getattr(config.train, unit):
        raise InputError(f"{path} has {done} {unit} already; raise train.{unit}")
    return epoch, step, best if folder_to_resume(path) else None  # a new folder has no best.pth yet


def check_same_run(checkpoint: dict, config: Config, criterion: Loss, guidances: Mapping[str, Guidance]) -> Config:
    """The config of the run to resume; InputError if what decides the training differs now."""
    # the number of epochs says how much of the training is done
    by_share = config.train.schedule == "warmup" or criterion.follows_progress
    keys = [*SAME_TO_RESUME, "train.epochs"] if by_share else SAME_TO_RESUME
    old_config = checked(Config, checkpoint["config"], "the run to resume")
    for key in keys:
        new, old = map(operator.attrgetter(key), (config, old_config))
        if old != new:
            raise InputError(f"{key} is {new} and was {old} in the run to resume; leave it, or start a new run")
    records = Provenance.from_checkpoint(checkpoint).guides
    for kind, guidance in guidances.items():
        old, new = records.get(kind), guidance.record
        if not same_encoder(old, new):
            now, before = (f"{r.name} ({r.revision})" if r.revision else r.name for r in (new, old))
            raise InputError(f"the {kind} is of {now} and was of {before} in the run to resume; use the same one")
    return old_config


def mean_values(pending: list[tuple[int, list[str], dict[str, Tensor]]]) -> dict[str, float]:
    """Means over some steps, (step, names of its samples, {loss term or "grad_norm": scalar}), and over all ranks.

    As Python numbers: waits for the device. InputError names the first step on any rank with one that is not finite.
    """
    values = torch.stack([torch.stack([*terms.values()]) for _, _, terms in pending]).float()
    means = dict(zip(pending[0][2], distributed.mean(values.mean(dim=0)).tolist()))
    if all(map(math.isfinite, means.values())):  # a value that is not makes the mean over all ranks so, on every rank
        return means
    bad_steps = [(step, names) for (step, names, _), row in zip(pending, values) if not row.isfinite().all()]
    step, names = min(bad for of_rank in distributed.gather(bad_steps[:1]) for bad in of_rank)
    raise InputError(
        f"the loss is not finite at step {step}, samples {', '.join(names)}; training stopped, the last "
        "checkpoint is as it was. Look at these samples, lower train.lr or set train.clip_grad"
    )
