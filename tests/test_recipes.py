"""One step of every config that carries a paper's name, on generated pairs of the sizes that its data sets have."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.test_mgfusion import save_clip
from tests.test_scripts import only_run
from tests.toy import script
from utils.config import load_config, read_yaml
from utils.loss import FusionLoss

ROADSCENE = [(238, 501), (161, 597), (212, 502), (179, 487), (311, 481), (422, 553), (459, 563), (328, 529)]
SETS = {
    "film_ivf": {"MSRS_train": [(480, 640)] * 2},
    "film_mef": {"SICE_train": [(2848, 4288), (3872, 2592)]},
    "film_mff": {"RealMFF_train": [(433, 625)] * 2},
    "mgfusion_ivf": {
        "RoadScene_mgtrain": ROADSCENE,
        "LLVIP_mgtrain": [(1024, 1280)] * 2,
        "MSRS_mgtrain": [(480, 640)] * 4,
        "M3FD_mgtrain": [(768, 1024)] * 2,
    },
}
FILM = dict(epochs=150, batch_size=2, lr=1e-5, schedule="step", lr_step=50, lr_gamma=0.6, crop=None, pad=None)
MGFUSION = dict(epochs=100, batch_size=16, lr=1e-3, schedule="warmup", warmup=20, lr_low=1e-4, crop=256, pad="reflect")
NARROW = {
    "film": ["net.channels=2", "net.heads=1", "net.hidden_dim=16", "net.stages=1", "net.token_grid=[16,24]"],
    "mgfusion": ["net.channels=2", "net.heads=1", "net.blocks=1"],
}


def make_images(root: Path, name: str, sizes: list[tuple[int, int]]) -> None:
    """A set of smooth pairs with FILM's text features, in the layout of VLFDataset."""
    dataset, _, split = name.rpartition("_")
    row = read_yaml("configs/datasets.yaml")[dataset]
    rng = np.random.default_rng(0)
    base, features = (root / kind / row["task"] / dataset for kind in ("Image", "TextFeature"))
    features.mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        for folder in (row["a"], row["b"]):
            (base / folder).mkdir(parents=True, exist_ok=True)
            image = cv2.resize(rng.integers(0, 256, (9, 12), np.uint8), (width, height))
            cv2.imwrite(str(base / folder / f"{i}.jpg"), image)
        np.save(features / f"{i}.npy", rng.normal(size=(1, 90 + 20 * i, 768)).astype(np.float32))
    (base / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(len(sizes))))


def one_step(name: str, tmp_path: Path, monkeypatch, *more: str, parts: int = 1) -> None:
    """data_process.py and one step of train.py, in some parts, with a config as it is but for `more`."""
    for each, sizes in SETS[name].items():
        make_images(tmp_path / "VLF", each, sizes)
    seen, forward = [], FusionLoss.forward
    spy = lambda self, fused, **batch: seen.append(fused.shape) or forward(self, fused, **batch)  # noqa: E731
    monkeypatch.setattr(FusionLoss, "forward", spy)
    words = ["--config", f"configs/{name}.yaml", f"data.root={tmp_path / 'VLF'}", f"data.h5={tmp_path / 'h5'}"]
    words += [f"clip={save_clip(tmp_path / 'clip', 0, width=512)}"] if name == "mgfusion_ivf" else []
    words += ["device=cpu", *more]
    config = load_config(f"configs/{name}.yaml")
    assert config.data.train == [*SETS[name]]
    script("data_process.py", *words, *SETS[name])
    words += ["train.epochs=1", "train.num_workers=0", f"train.accumulate={parts}", f"train.exp={tmp_path / 'exp'}"]
    printed = script("train.py", *words)
    film = config.net["name"] == "film"
    assert seen == [(2 // parts, 1, 288, 384) if film else (16 // parts, 1, 256, 256)] * parts
    assert ("16 pairs (4 smaller than train.crop, padded)" in printed) != film
    (record,) = (json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines())
    assert record["step"] == 1 and 0 < record["total"] < 100 and record["lr"] == (1e-5 if film else 1e-4)
    assert torch.load(only_run(tmp_path) / "model" / "last.pth", weights_only=True)["step"] == 1


@pytest.mark.parametrize("name", SETS)
def test_a_narrow_network_takes_a_step_of_the_papers_recipe(name, tmp_path, monkeypatch):
    """All of the recipe but the width: whole batches, sizes and crops."""
    config = load_config(f"configs/{name}.yaml")
    wanted = FILM if config.net["name"] == "film" else MGFUSION
    assert {key: getattr(config.train, key) for key in wanted} == wanted
    assert config.data.resize == ([288, 384] if wanted is FILM else None) and config.train.augment == (
        wanted is MGFUSION
    )
    one_step(name, tmp_path, monkeypatch, *NARROW[config.net["name"]])


def test_medical_images_take_the_infrared_weights_and_train_nothing():
    config = load_config("configs/film_mif.yaml")
    assert config.ckpt == load_config("configs/film_ivf.yaml").ckpt and config.data.resize is None
    assert "data.train names no set" in script("train.py", "--config", "configs/film_mif.yaml", code=1)


@pytest.mark.slow
@pytest.mark.parametrize("name, parts", [("film_ivf", 2), ("mgfusion_ivf", 4)])  # film_mef, film_mff: as film_ivf
def test_the_papers_network_takes_a_step_of_its_recipe(name, parts, tmp_path, monkeypatch):
    """In parts and with blocks computed twice, as a whole step of MGFusion would take more than 16 GB."""
    one_step(name, tmp_path, monkeypatch, "train.checkpointing=true", parts=parts)
