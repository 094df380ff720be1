"""Train a fusion network.

    python train.py --config configs/film_ivf.yaml
    python train.py --config configs/film_ivf.yaml train.lr=1e-4 train.batch_size=8
    python train.py --config configs/film_ivf.yaml train.resume=exp/<run>/model/last.pth
    torchrun --nproc_per_node=2 train.py --config configs/film_ivf.yaml

A run writes exp/<time>_<name>/: code/ (this script, the network's files, git commit and diff), model/
(last.pth, best.pth, epoch_<k>.pth), pic_fusion/ckpt_<epoch>/ (A | B | fused), log.txt, metrics.jsonl,
TensorBoard events, config.yaml and param.json. train.batch_size counts the pairs of a step over
all processes, and the loss is a mean over images, so neither the number of processes nor train.accumulate
changes the training. Exceptions are batch normalisation (MGFusion) on CPUs, where every process and part has
the statistics of its own pairs, and the L2 term of the loss, which is off.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from net import FusionNetwork, build_model, configure_compute
from net.checkpoint import load_weights, read_checkpoint, save_checkpoint, start_from
from utils import distributed
from utils.config import Config, Train, parse_args
from utils.data.h5 import check_shape, h5_path, recorded_task
from utils.data.images import to_8bit
from utils.data.pairs import PairDataset, collate
from utils.data.sources import find_set
from utils.errors import InputError, enough_memory, run_script
from utils.files import commit
from utils.guides import describe_guidance, open_guides
from utils.guides.guidance import Guidance
from utils.loss import Loss, build_loss
from utils.metrics import LOWER_IS_BETTER, check_metrics
from utils.process import set_up_process, worker_count
from utils.provenance import Provenance
from utils.results.evaluate import (
    Evaluator,
    applicable,
    average,
    fuse_dataset,
    sources_8bit,
    split_batch,
    to_device,
)
from utils.run_folder import check_same_run, folder_to_resume, mean_values, open_run_folder

LESS_MEMORY = "compute a step in parts (train.accumulate=2), blocks twice (train.checkpointing=true), or smaller crops"

log = logging.getLogger("train")


def main() -> None:
    config, _ = parse_args(__doc__)
    with ExitStack() as closing:
        train_network(config, closing)


def train_network(config: Config, closing: ExitStack) -> None:
    """The training; `closing` holds the run folder, and lets it go when the training ends, well or not."""
    train = config.train
    set_up_process(config.precision)
    rank, world, device = distributed.start(config.device)
    main_process = rank == 0
    torch.manual_seed(config.seed + rank)
    check_metrics([train.best, *config.test.metrics])

    # network, loss, optimiser
    model = new_model(config).to(device)
    if world > 1 and device.type == "cuda":  # statistics of the whole step, whatever the number of processes
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    criterion = build_loss(config.loss).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(train))

    # data, and what guides the fusion: text features, CLIP vectors or nothing
    dataset, val_set = open_sets(config, model, criterion, world)
    metrics, note = validation_metrics(config)
    sampler = DistributedSampler(dataset, world, rank, shuffle=True, seed=config.seed, drop_last=True)
    loader = DataLoader(
        dataset,
        batch_size=train.batch_size // world,
        sampler=sampler,
        num_workers=worker_count(train.num_workers),
        persistent_workers=train.num_workers > 0,
        collate_fn=collate,
        drop_last=True,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # for the seeds of workers, which a resumed run draws once more
    )
    guidances = open_guides(config, model, [dataset, *([val_set] if val_set else [])], device, training=True)

    first_epoch, step, best = 0, 0, None
    if train.resume:
        first_epoch, step, best = resume(config, model, criterion, optimizer, scheduler, guidances, device)
    configure_compute(config.precision, config.test.tile, train.checkpointing, config.compile)
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    folder = open_run_folder(config, model, criterion, first_epoch, step, closing) if main_process else None
    padded = f" ({dataset.padded} smaller than train.crop, padded)" if dataset.padded else ""
    log.info(
        f"{model.name}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}, {config.precision}, "
        f"guided by {describe_guidance(guidances)}; {len(dataset)} pairs{padded}, {train.batch_size} a step "
        f"({world} processes x {train.accumulate} parts x {train.batch_size // world // train.accumulate}), "
        f"{len(loader)} steps an epoch, {train.epochs} epochs{note and f'; note: {note}'}"
    )

    started, code = time.monotonic(), commit()
    for epoch in range(first_epoch + 1, train.epochs + 1):
        progress = (epoch - 1) / train.epochs
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        net.train()
        pending, window = [], time.monotonic()  # steps that are not logged yet, and since when
        bar = tqdm(loader, desc=f"epoch {epoch}/{train.epochs}", unit="step", disable=not main_process)
        for i, batch in enumerate(bar):
            optimizer.zero_grad(set_to_none=True)
            fused, losses = [], []
            with enough_memory("train", LESS_MEMORY):
                for part in split_batch(batch, train.accumulate):
                    last_part = len(losses) + 1 == train.accumulate  # the processes add their gradients with it
                    with nullcontext() if last_part or world == 1 else net.no_sync():
                        part = to_device(part, device, guidances)
                        output = net(*model.forward_args(part))
                        terms = criterion(output, **part, **model.loss_inputs(part), progress=progress)
                        (terms["total"] / train.accumulate).backward()
                    fused.append(output.detach())
                    losses.append({key: value.detach() for key, value in terms.items()})
                if i == 0:
                    distributed.check_gradients(model)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad or math.inf)
                optimizer.step()
            step += 1

            values = {key: torch.stack([each[key] for each in losses]).mean() for key in losses[0]}
            pending.append((step, batch["name"], values | {"grad_norm": norm}))
            if main_process and i < train.pictures:
                folder.save_pictures(epoch, i, batch, torch.cat(fused))
            if len(pending) == train.log_every or i + 1 == len(loader):  # waits for the device, as pictures do
                means = mean_values(pending)
                seconds, window = time.monotonic() - window, time.monotonic()
                pairs = train.batch_size * len(pending) / seconds
                done = (epoch - first_epoch - 1 + (i + 1) / len(loader)) / (train.epochs - first_epoch)
                left = tqdm.format_interval((time.monotonic() - started) * (1 / done - 1))
                pending = []
                if main_process:
                    lr = optimizer.param_groups[0]["lr"]
                    folder.record("train", {"epoch": epoch, "step": step, **means, "lr": lr, "pairs_per_s": pairs})
                    bar.set_postfix_str(f"loss {means['total']:.4f}, lr {lr:.1e}, {pairs:.1f} pairs/s, {left} left")
        scheduler.step()

        # validation on whole images, shared by the processes
        distributed.same_buffers(model)  # running statistics of batch normalisation, where every process has its own
        scores = {}
        if val_set and epoch % train.val_every == 0:
            scores = validate(model, val_set, metrics, config, device, (rank, world), guidances)
        better = bool(scores) and is_better(scores[train.best], best, train.best)
        best = scores[train.best] if better else best

        rng = distributed.random_states(device)
        if main_process:
            if scores:
                folder.record("val", {"epoch": epoch, "step": step, **scores})
                log.info(f"epoch {epoch}: " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()))
            records = {kind: guidance.record for kind, guidance in guidances.items() if guidance.record}
            checkpoint = model.checkpoint(Provenance(records, config.as_dict(), code, epoch))
            checkpoint |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            checkpoint |= {"step": step, "best": best, "scores": scores, "rng": rng}
            kept = [f"epoch_{epoch}.pth"] if epoch % train.save_every == 0 else []
            # last.pth comes last: a run killed in between goes on from the epoch before and makes them all again
            for name in [*(["best.pth"] if better else []), *kept, "last.pth"]:
                save_checkpoint(folder.path / "model" / name, checkpoint)

    if main_process:
        log.info(f"trained in {time.monotonic() - started:.0f} s; weights in {folder.path / 'model'}")
    distributed.stop()


def new_model(config: Config) -> FusionNetwork:
    """The network of the config, with fresh weights or those of train.init.

    Raises:
        InputError: it has no weights to train, or keeps some as they are and train.init does not give them.
    """
    model = build_model(**config.net)
    trains = [p.requires_grad for p in model.parameters()]
    if not any(trains):
        raise InputError(f"net.name '{config.net['name']}' has no weights to train")
    if not all(trains) and not (config.train.init or config.train.resume):
        raise InputError(f"net.name '{config.net['name']}' trains a part of its weights; give the others as train.init")
    if config.train.init and not config.train.resume:  # a run that goes on has its own
        start_from(model, config.train.init)
    return model


def learning_rate(train: Train) -> Callable[[int], float]:
    """The learning rate of an epoch, counted from 0, in units of train.lr."""
    if train.schedule == "step":
        return lambda epoch: train.lr_gamma ** (epoch // train.lr_step)
    low, top = train.lr_low / train.lr, train.warmup
    return lambda epoch: float(np.interp(epoch, [0, top, max(train.epochs - 1, top + 1)], [low, 1, low]))


def open_sets(
    config: Config, model: FusionNetwork, criterion: Loss, world: int
) -> tuple[PairDataset, PairDataset | None]:
    """The training set, and the set to validate on if there is one.

    Every random draw depends on seed, epoch and sample alone, not on the process or worker.

    Raises:
        InputError: no set, one that was made with another config, pairs smaller than the crop, or fewer pairs than a
            step takes.
    """
    train = config.train
    if not config.data.train:
        raise InputError("data.train names no set; give e.g. data.train=[MSRS_train]")
    paths, val_paths = (
        [h5_path(config.data.h5, name) for name in names] for names in (config.data.train, config.data.val)
    )
    for key, path in [("data.train", path) for path in paths] + [("data.val", path) for path in val_paths]:
        if not path.is_file():
            find_set(config, key, path.stem)  # refuses a dataset without a split
        check_shape(path, config.data, training=key == "data.train")
    dataset = PairDataset(
        paths,
        model.inputs,
        crop=train.crop,
        pad=train.pad,
        augment=train.augment,
        seed=config.seed,
        maps=criterion.maps,
        leave_out=config.data.leave_out,
        crop_on=train.crop_on,
    )
    if train.batch_size % (world * train.accumulate) or len(dataset) < train.batch_size:
        raise InputError(
            f"train.batch_size={train.batch_size} must be a multiple of the {world} processes times "
            f"train.accumulate={train.accumulate}, and at most the {len(dataset)} training pairs"
        )
    return dataset, PairDataset(val_paths, model.inputs) if val_paths else None


def resume(
    config: Config,
    model: FusionNetwork,
    criterion: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    guidances: Mapping[str, Guidance],
    device: torch.device,
) -> tuple[int, int, float | None]:
    """Take up the training where the checkpoint train.resume stopped: its epochs, steps and best score.

    Raises:
        InputError: it cannot be resumed, or what decides a training differs.
    """
    path = config.train.resume
    checkpoint = read_checkpoint(path)
    if "optimizer" not in checkpoint:
        raise InputError(f"{path} holds weights only; train.resume needs a checkpoint of train.py")
    check_same_run(checkpoint, config, criterion, guidances)
    load_weights(model, checkpoint["model"], path)
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        epoch, step, best = int(checkpoint["epoch"]), int(checkpoint["step"]), checkpoint["best"]
        distributed.restore_random_states(checkpoint["rng"], device)
    except Exception as error:  # a checkpoint may hold anything
        raise InputError(f"{path} cannot be resumed: it is damaged ({error})") from error
    if epoch >= config.train.epochs:
        raise InputError(f"{path} has {epoch} epochs already; raise train.epochs")
    return epoch, step, best if folder_to_resume(config.train.resume) else None  # a new folder has no best.pth yet


def validation_metrics(config: Config) -> tuple[list[str], str]:
    """train.best and test.metrics, as far as they say something of the validation sets, and a note on the others.

    Raises:
        InputError: train.best says nothing of them.
    """
    tasks = {name: recorded_task(h5_path(config.data.h5, name)) for name in config.data.val}
    metrics, note = applicable(list(dict.fromkeys([config.train.best, *config.test.metrics])), tasks)
    if config.train.best not in metrics:
        raise InputError(f"train.best={config.train.best} cannot choose the best epoch: {note}")
    return metrics, note


def validate(
    model: FusionNetwork,
    dataset: PairDataset,
    metrics: list[str],
    config: Config,
    device: torch.device,
    share: tuple[int, int],
    guidances: Mapping[str, Guidance],
) -> dict[str, float]:
    """Means of `metrics` over a set of whole images, 8 bit by test.stretch; `share` = (rank, ranks)."""
    model.eval()
    rank, ranks = share
    evaluator = Evaluator(metrics, device)
    pairs = fuse_dataset([model], dataset, device, guidances, config.train.num_workers, share)
    bar = tqdm(pairs, desc="validation", unit="pair", total=len(dataset) // ranks, disable=rank > 0, leave=False)
    for i, (batch, (fused,)) in enumerate(bar):  # numbered by rank and place: two sets may have images of one name
        evaluator.add(f"{rank}_{i}", to_8bit(fused, config.test.stretch), *sources_8bit(batch))
    return average({key: row for part in distributed.gather(evaluator.results) for key, row in part.items()})[0]


def is_better(score: float, best: float | None, metric: str) -> bool:
    """True if a validation score beats the best so far."""
    if best is None or math.isnan(score):
        return not math.isnan(score)
    return score < best if metric in LOWER_IS_BETTER else score > best


if __name__ == "__main__":
    run_script(main)
