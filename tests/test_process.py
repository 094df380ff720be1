"""What holds for a whole process: its arithmetic, its random numbers, and its place among others."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.toy import process, script
from utils import distributed
from utils.data.pairs import PairDataset, collate
from utils.errors import InputError
from utils.process import set_up_process, worker_count


def test_float32_is_float32_unless_tf32_is_asked_for():
    for precision, on in (("tf32", True), ("bf16", False), ("fp32", False)):
        set_up_process(precision)
        assert torch.backends.cudnn.allow_tf32 == on
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")


@pytest.mark.slow
def test_subnormal_numbers_become_0_in_all_threads():
    say = (
        "import torch; from utils.process import set_up_process; torch.set_num_threads(2); {}"
        "print('left', int((torch.full((1 << 22,), 1e-39) * 0.5).count_nonzero()))"
    )
    assert "left 0" in process("-c", say.format("set_up_process();"))
    assert f"left {1 << 22}" in process("-c", say.format(""))


def test_workers_that_live_on_see_the_epoch(prepared, tmp_path):
    """Crops and flips are drawn anew in each epoch, and are those that the main process would draw."""
    dataset = PairDataset([tmp_path / "h5" / "Toy_train.h5"], (), crop=16, augment=True)
    alone, workers = (
        DataLoader(dataset, 2, num_workers=count, persistent_workers=count > 0, collate_fn=collate) for count in (0, 2)
    )
    epochs = []
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        drawn, expected = (torch.cat([batch["image_a"] for batch in loader]) for loader in (workers, alone))
        assert torch.equal(drawn, expected)
        epochs.append(drawn)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_no_more_workers_than_cores(prepared, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    assert [worker_count(wanted) for wanted in (0, 1, 2)] == [0, 1, 1]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "This DataLoader will create")
        script("test.py", *prepared, "ckpt=null", "net={name: max}", "test.num_workers=2")
        script("train.py", *prepared, "train.num_workers=2", "train.epochs=1")


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="device=cuda:0 is one GPU for 2 processes; use device=cuda"):
        distributed.start("cuda:0")


def test_a_parameter_without_a_gradient_stops_several_processes(monkeypatch, caplog):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    model[0](torch.ones(1, 2)).sum().backward()
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    distributed.check_gradients(model)  # what is frozen needs none
    model[1].requires_grad_(True)
    with pytest.raises(InputError, match="depend on 2 of the parameters to train: 1.weight, 1.bias; several"):
        distributed.check_gradients(model)
    monkeypatch.undo()
    with caplog.at_level("INFO"):
        distributed.check_gradients(model)  # one process does not wait
    assert "note: the loss does not depend on 2 of the parameters to train: 1.weight, 1.bias" in caplog.text
