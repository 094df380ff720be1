"""Train a fusion network.

    python train.py --config configs/film_ivf.yaml
    python train.py --config configs/film_ivf.yaml train.lr=1e-4 train.batch_size=8
    python train.py --config configs/film_ivf.yaml "train.resume=exp/*_film_ivf"     the newest run of this name
    torchrun --nproc_per_node=2 train.py --config configs/film_ivf.yaml

A run writes exp/<time>_<name>/: code/ (this script, the network's files, git commit and diff), model/
(last.pth, best.pth, epoch_<k>.pth), pic_fusion/ (a few whole pairs as they become), log.txt, metrics.jsonl,
TensorBoard events, config.yaml and param.json. train.batch_size counts the pairs of a step over
all processes, and the loss is a mean over images, so neither the number of processes nor train.accumulate
changes the training. Exceptions are batch normalisation (MGFusion) on CPUs, where every process and part has
the statistics of its own pairs, and the L2 term of the loss, which is off.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from itertools import islice

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset
from tqdm import tqdm

from net import FusionNetwork, build_model, configure_compute
from net.checkpoint import start_from
from utils import distributed
from utils.config import Config, Train, parse_args
from utils.data.h5 import check_shape, h5_path, recorded_task
from utils.data.images import to_8bit
from utils.data.pairs import PairDataset, collate
from utils.data.sources import find_set
from utils.errors import InputError, enough_memory, interrupt, run_script
from utils.files import commit, newest_checkpoint
from utils.guides import describe_guidance, open_guides
from utils.guides.guidance import Guidance
from utils.loss import Loss, build_loss
from utils.metrics import LOWER_IS_BETTER, check_metrics, measure_all
from utils.process import set_up_process, worker_count
from utils.provenance import Provenance
from utils.results.evaluate import (
    applicable,
    average,
    fuse_dataset,
    sources_8bit,
    split_batch,
    to_device,
)
from utils.run_folder import mean_values, open_run_folder, resume

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
    train.resume = newest_checkpoint(train.resume, "train.resume")
    train.init = newest_checkpoint(train.init, "train.init")

    # network, loss, optimiser
    model = new_model(config).to(device)
    if world > 1 and device.type == "cuda":  # statistics of the whole step, whatever the number of processes
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    criterion = build_loss(config.loss).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, fused=True)

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
    shown = val_set or dataset.whole()
    shown = Subset(shown, sorted({*np.linspace(0, len(shown) - 1, train.pictures).astype(int).tolist()}))

    # how far: train.steps says it in place of train.epochs, and may end the last epoch early
    if train.steps:
        train.epochs = math.ceil(train.steps / len(loader))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(train))
    first_epoch, first_step, best = 0, 0, None
    if train.resume:
        first_epoch, first_step, best = resume(
            config, model, criterion, optimizer, scheduler, guidances, len(loader), device
        )
    configure_compute(config.precision, config.test.tile, train.checkpointing, config.compile)
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    folder = open_run_folder(config, model, criterion, first_epoch, first_step, closing) if main_process else None
    padded = f" ({dataset.padded} smaller than train.crop, padded)" if dataset.padded else ""
    log.info(
        f"{model.name}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}, {config.precision}, "
        f"guided by {describe_guidance(guidances)}; {len(dataset)} pairs{padded}, {train.batch_size} a step "
        f"(processes x parts x pairs: {world} x {train.accumulate} x {train.batch_size // world // train.accumulate}), "
        f"{len(loader)} steps an epoch, {train.epochs} epochs{note and f'; note: {note}'}"
    )

    started, code = time.monotonic(), commit()
    step, last_step = first_step, train.steps or train.epochs * len(loader)
    for epoch in range(first_epoch + 1, train.epochs + 1):
        progress = (epoch - 1) / train.epochs
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        net.train()
        before, end = (epoch - 1) * len(loader), min(epoch * len(loader), last_step)  # steps
        pending, window = [], time.monotonic()  # steps that are not logged yet, and since when
        batches, title = islice(loader, step - before, end - before), f"epoch {epoch}/{train.epochs}"
        bar = tqdm(batches, title, end - step, leave=False, unit="step", disable=not main_process or None)
        for batch in bar:
            optimizer.zero_grad(set_to_none=True)
            losses = []
            with enough_memory("train", LESS_MEMORY):
                for part in split_batch(batch, train.accumulate):
                    last_part = len(losses) + 1 == train.accumulate  # the processes add their gradients with it
                    with nullcontext() if last_part or world == 1 else net.no_sync():
                        part = to_device(part, device, guidances)
                        output = net(*model.forward_args(part))
                        terms = criterion(output, **part, **model.loss_inputs(part), progress=progress)
                        (terms["total"] / train.accumulate).backward()
                    losses.append({key: value.detach() for key, value in terms.items()})
                if step == first_step:
                    distributed.check_gradients(model)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad or math.inf)
                optimizer.step()
            step += 1

            values = {key: torch.stack([each[key] for each in losses]).mean() for key in losses[0]}
            pending.append((step, batch["name"], values | {"grad_norm": norm}))
            if len(pending) == train.log_every or step == end:  # waits for the device
                means = mean_values(pending)
                seconds, window = time.monotonic() - window, time.monotonic()
                pairs = train.batch_size * len(pending) / seconds
                pending = []
                if main_process:
                    lr = optimizer.param_groups[0]["lr"]
                    folder.record("train", {"epoch": epoch, "step": step, **means, "lr": lr, "pairs_per_s": pairs})
                    bar.set_postfix_str(f"loss {means['total']:.4f}, lr {lr:.1e}, {pairs:.1f} pairs/s")
        if step == epoch * len(loader):
            scheduler.step()

        # validation on whole images, shared by the processes, and pictures of some
        model.eval()
        distributed.same_buffers(model)  # running statistics of batch normalisation, where every process has its own
        scores = {}
        if val_set and (epoch % train.val_every == 0 or step == train.steps):
            scores = validate(model, val_set, metrics, config, device, (rank, world), guidances)
        better = bool(scores) and is_better(scores[train.best], best, train.best)
        best = scores[train.best] if better else best

        rng = distributed.random_states(device)
        if main_process:
            if scores:
                folder.record("val", {"epoch": epoch, "step": step, **scores})
            records = {kind: guidance.record for kind, guidance in guidances.items() if guidance.record}
            checkpoint = model.checkpoint(Provenance(records, config.as_dict(), code, step // len(loader)))
            checkpoint |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            checkpoint |= {"step": step, "best": best, "scores": scores, "rng": rng}
            kept = step % (train.save_every * len(loader)) == 0
            folder.save(checkpoint, [*(["best.pth"] if better else []), *([f"epoch_{epoch}.pth"] if kept else [])])
            if epoch % train.val_every == 0 or epoch == train.epochs:
                folder.draw(epoch, step, fuse_dataset([model], shown, device, guidances))
            folder.log_epoch(title, (time.monotonic() - started) * (last_step - step) / (step - first_step))

    if main_process:
        log.info(f"trained in {time.monotonic() - started:.0f} s; weights in {folder.path / 'model'}")
    distributed.stop()


def new_model(config: Config) -> FusionNetwork:
    """The network of the config, with fresh weights or those of train.init; InputError if nothing can train it."""
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

    Every random draw depends on seed, epoch and sample alone, not on the process or worker. InputError: no set, one
    that was made with another config, pairs smaller than the crop, or fewer pairs than a step takes.
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


def validation_metrics(config: Config) -> tuple[list[str], str]:
    """train.best and test.metrics that suit the validation sets, and a note; InputError if train.best does not."""
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
    rank, ranks = share
    measured = {}
    pairs = fuse_dataset([model], dataset, device, guidances, config.train.num_workers, share)
    bar = tqdm(pairs, "validation", len(dataset) // ranks, leave=False, unit="pair", disable=rank > 0 or None)
    for i, (batch, (fused,)) in enumerate(bar):  # numbered by rank and place: two sets may have images of one name
        fused = to_8bit(fused, config.test.stretch)
        measured[f"{rank}_{i}"] = measure_all([fused], *sources_8bit(batch), metrics, device)[0]
    return average({key: row for part in distributed.gather(measured) for key, row in part.items()})[0]


def is_better(score: float, best: float | None, metric: str) -> bool:
    """True if a validation score beats the best so far."""
    if best is None or math.isnan(score):
        return not math.isnan(score)
    return score < best if metric in LOWER_IS_BETTER else score > best


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)  # batch systems send it
    run_script(main)
