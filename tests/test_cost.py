"""What `test.py --cost` prints: counted FLOPs, and a row for each size."""

import re

import pytest
import torch
from torch import nn

from net import FusionNetwork, build_model
from tests.toy import CONFIG, TINY_NET, script
from utils.config import Config
from utils.results import cost

CPU = torch.device("cpu")
TINY = dict(hidden_dim=16, channels=8, heads=2)


class Known(FusionNetwork):
    """A convolution of 3 x 3 from 2 to 4 channels, and one of 1 x 1 to one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 1, 1))

    def forward(self, image_a, image_b):
        return self.layers(torch.cat([image_a, image_b], dim=1))


def test_flops_are_those_of_the_convolutions():
    flops, seconds, memory = cost.cost_at(Known().eval(), Config(), CPU, 20, 30)
    assert flops == 2 * 20 * 30 * (9 * 2 * 4 + 4) and seconds > 0 and not memory < 0  # NaN, too


@pytest.mark.parametrize("name", ["film_blend", "film_instructed", "mgfusion"])
def test_strips_do_not_count(name):
    """Rows that are computed twice where strips touch are of the way of computing, not of the network."""
    options = dict(channels=8, blocks=1) if name == "mgfusion" else TINY | dict(token_grid=[8, 8])
    model, config = build_model(name, **options).eval(), Config()
    found = []
    for config.test.tile in (4, None):
        found.append(cost.cost_at(model, config, CPU, 32, 32)[0])
    assert found[0] == found[1] > 1e6


def test_memory_is_that_of_the_largest_tensor():
    taken = cost.peak_memory(lambda: torch.ones(64, 2**20), CPU)
    assert not (taken < 250 * 2**20 or taken > 400 * 2**20)  # NaN, too


def test_the_command_prints_a_table_and_a_row_of_latex(monkeypatch):
    monkeypatch.setattr(cost, "SIZES", ((24, 32), (48, 64)))
    said = script("test.py", "--cost", *CONFIG, *TINY_NET, "ckpt=null", "device=cpu")
    count = re.match(r"FILM: ([\d,]+) parameters; on a CPU", said)[1]
    assert re.search(r"^24 x 32 +\d+\.\d\d +\d\.\d{3} +[\d-]+\n48 x 64 +\d+\.\d\d ", said, re.M)
    assert re.search(rf"^FILM & {count} & (\d+\.\d\d & \d\.\d{{3}} & [\d-]+( & | \\\\$)){{2}}", said, re.M)
    assert "FILM blend of models/IVF.safetensors: 155,130 parameters" in script("test.py", "--cost", "device=cpu")
