"""The configuration: what is read, what is refused, and that no key is dead."""

import ast
import re
import sys
from typing import get_args, get_type_hints

import pytest
import yaml

from net import build_model
from tests.toy import ROOT
from utils.check import keys_of
from utils.config import Config, Text, load_config, parse_args, read_yaml
from utils.errors import InputError
from utils.guides.text import ENCODERS
from utils.loss import build_loss

TABLES = ("datasets", "originals", "paper_tables", "instructions")
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if p.stem not in TABLES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_builds(path):
    config = load_config(path)
    assert build_model(**config.net) and build_loss(config.loss)
    table = read_yaml(config.data.datasets)
    for name in [*config.data.train, *config.data.val, *config.data.test]:
        assert name.rpartition("_")[0] in table


def test_every_key_is_used():
    files = [*ROOT.glob("*.py"), *ROOT.glob("net/*.py"), *ROOT.glob("utils/**/*.py")]
    read = {
        node.attr
        for path in files
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert {key.split(".")[-1] for key in keys_of(Config)} <= read


def test_numbers_that_pyyaml_reads_as_words(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  lr: 1e-4\nloss:\n  grad_weight: 2e1\n")
    config = load_config(tmp_path / "c.yaml", ["train.clip_grad=5e-1", "test.output=7"])
    assert config.train.lr == 1e-4 and config.train.clip_grad == 0.5 and config.loss["grad_weight"] == 20.0
    assert config.test.output == "7"  # a folder may be called so


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 1\ntrain:\n  lr: 1e-4\n  epochs: 2\n  lr: 1e-5\n")
    with pytest.raises(InputError, match=r"c\.yaml, line 5 is not valid YAML: lr stands twice, first in line 3"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("data: &paths {root: x}\ndescribe: {}\ntext: {}\ntrain: {lr: 1, <<: {lr: 2}}\n")
    assert load_config(tmp_path / "c.yaml").train.lr == 1  # what a merge brings does not count


def test_command_line_wins_over_file_wins_over_default(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 3\nname: a\nnet: {channels: 8}\n")
    config = load_config(tmp_path / "c.yaml", ["seed=4", "data.resize=[32,48]", "net.stages=1"])
    assert (config.seed, config.name, config.precision) == (4, "a", "fp32")
    assert config.data.resize == [32, 48] and config.net == {"name": "film", "channels": 8, "stages": 1}
    assert load_config(tmp_path / "c.yaml", ["net={name: mean}"]).net == {"name": "mean"}  # as a whole


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("train.epoch=1", "unknown key 'train.epoch' in the command line; did you mean 'train.epochs'?"),
        ("epochs=1", "unknown key 'epochs' in the command line; did you mean 'train.epochs'?"),
        ("train.epochs=many", "train.epochs in the command line must be int, not 'many'"),
        ("data.train=MSRS_train", "data.train in the command line must be list[str], not 'MSRS_train'"),
        ("net=film", "net in the command line must hold keys of its own, not 'film'"),
        ("seed=[", "the value of seed on the command line is not valid YAML: ["),
        ("seed", "'seed' is not of the form key=value, e.g. train.lr=1e-4"),
        ("seed=-1", "seed in the command line must be 0 or more, not -1"),
        ("precision=fp16", "precision in the command line must be one of fp32, tf32, bf16, not 'fp16'"),
        ("data.resize=[8]", "data.resize in the command line must be tuple[int, int], not [8]"),
        ("test.metrics=[]", "test.metrics in the command line must name metrics, e.g. [EN,VIFF,Qabf], not []"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_source_and_value(override, sentence):
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    assert str(caught.value) == sentence


def test_words_with_an_equals_sign_are_keys_or_files(monkeypatch, tmp_path):
    given = ["train.lr=1e-4", "describe", "net.channels=16", "runs/a=1.png", "x=y.png"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/film_ivf.yaml", *given])
    config, args = parse_args("A script.", words="files")
    assert args.overrides == ["train.lr=1e-4", "net.channels=16"]
    assert args.words == ["describe", "runs/a=1.png", "x=y.png"]
    assert config.train.lr == 1e-4 and config.net["channels"] == 16
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/film_ivf.yaml", "seeed=3"])
    with pytest.raises(InputError, match="unknown key 'seeed' in the command line"):
        parse_args("A script.", words="files")


def test_a_network_does_not_take_the_options_of_another():
    config = load_config("configs/film_ivf.yaml", ["net.name=mean", "net.text_dim=12"])
    with pytest.raises(InputError, match=re.escape('leave out its options by "net={name: mean}"')):
        build_model(**config.net)
    config = load_config(
        "configs/film_ivf.yaml", ["net.name=mean", "net={name: mean}", "loss.ssim_weight=1", "loss.name=instructed"]
    )
    assert build_model(**config.net).options == {}
    with pytest.raises(InputError, match=re.escape('leave out its options by "loss={name: instructed}"')):
        build_loss(config.loss)


def test_defaults_are_accepted(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(Config().as_dict()))
    assert load_config(tmp_path / "c.yaml") == Config()
    assert set(get_args(get_type_hints(Text)["encoder"])) == set(ENCODERS)
