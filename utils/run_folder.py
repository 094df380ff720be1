"""The folder of a training run: what is needed to repeat it, its log and pictures, and how a run is resumed."""

import inspect
import itertools
import json
import logging
import math
import operator
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from net import FusionNetwork
from utils import distributed
from utils.check import checked
from utils.config import Config
from utils.data.images import side_by_side, to_8bit, write_image
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

    def __init__(self, path: Path, step: int):
        self.path = path
        with os_error_as_input_error(path):
            self.writer = SummaryWriter(path, purge_step=step + 1)

    def record(self, kind: str, record: dict) -> None:
        """One line in metrics.jsonl, and the same to TensorBoard; the record has a "step"."""
        with os_error_as_input_error(self.path):
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(to_json({"kind": kind, **record}) + "\n")
            for key, value in record.items():
                if key not in ("epoch", "step"):
                    self.writer.add_scalar(f"{kind}/{key}", value, record["step"])

    def save_pictures(self, epoch: int, number: int, batch: dict, fused: Tensor) -> None:
        """A | B | fused of every pair of a batch: pic_fusion/ckpt_<epoch>/<number>_<place in the batch>_<name>.png.

        A network that edits both sources in training gives both in place of a fused image.
        """
        folder = self.path / "pic_fusion" / f"ckpt_{epoch}"
        labels = ["A", "B", *(["fused"] if fused.shape[1] == 1 else ["A edited", "B edited"])]
        rows = torch.cat([batch["image_a"], batch["image_b"], fused.cpu().nan_to_num()], dim=1)
        for i, (name, row) in enumerate(zip(batch["name"], rows)):  # numbered: two sets may have images of one name
            row = side_by_side([to_8bit(image, "clamp") for image in row.numpy()], labels)
            write_image(folder / f"{number}_{i}_{name}.png", row)


def open_run_folder(
    config: Config, model: FusionNetwork, criterion: Loss, epoch: int, step: int, closing: ExitStack
) -> RunFolder:
    """A new run folder, or that of the run to resume, with what is needed to repeat the run, and the log started.

    A run that goes on in its folder adds code_from_epoch_<k>/ and config_from_epoch_<k>.yaml, beside the first ones.

    Args:
        epoch, step: how far the run to resume is; 0 for a new one.
        closing: keeps other runs out of the folder until it is closed.
    """
    path = folder_to_resume(config.train.resume)
    when = f"_from_epoch_{epoch + 1}" if path else ""
    if not path:
        if not plain_name(config.name):
            raise InputError(f"name is '{config.name}' and becomes part of a folder's name: no slashes, please")
        path = new_folder(Path(config.train.exp), time.strftime("%Y%m%d-%H%M%S"), config.name)
    closing.enter_context(exclusive_lock(path))
    if when:
        drop_records_after(path / "metrics.jsonl", epoch)
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
    folder = RunFolder(path, step)
    closing.callback(folder.writer.close)
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
    """The folder that a resumed run goes on in, that of its last.pth; None for a new one: what it made since an earlier
    checkpoint stays."""
    path = Path(resume or "")
    return find_file(path).resolve().parent.parent if path.parts[-2:] == ("model", "last.pth") else None


def drop_records_after(path: Path, epoch: int) -> None:
    """Forget what an interrupted run logged after the checkpoint that it is resumed from."""
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("}\n")]
    write_file(path, "".join(line for line in whole if json.loads(line)["epoch"] <= epoch))


def check_same_run(checkpoint: dict, config: Config, criterion: Loss, guidances: Mapping[str, Guidance]) -> None:
    """InputError if what decides the training differs from that of the checkpoint to resume."""
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


def mean_values(pending: list[tuple[int, list[str], dict[str, Tensor]]]) -> dict[str, float]:
    """Means over some steps and over all ranks, as Python numbers: waits for the device.

    Args:
        pending: (step, names of its samples, {loss term or "grad_norm": scalar}).

    Raises:
        InputError: a loss or gradient that is not finite, on any rank; names the first such step.
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
