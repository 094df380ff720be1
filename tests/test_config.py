"""The configuration: what is read, what is refused, and that no key is dead."""

import ast
import re
import sys
from functools import reduce
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from net import build_model
from tests.toy import ROOT
from utils.config import Config, Text, all_keys, load_config, parse_args, read_yaml
from utils.errors import InputError
from utils.guides.text import ENCODERS

TABLES = ("datasets", "originals", "paper_tables", "instructions")
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if p.stem not in TABLES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_builds(path):
    config = load_config(path)
    build_model(**config.net)
    table = yaml.safe_load((ROOT / config.data.datasets).read_text())
    for name in [*config.data.train, *config.data.val, *config.data.test]:
        assert name.rpartition("_")[0] in table


def test_every_key_is_used():
    """Every key is read as an attribute somewhere outside utils/config.py."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("net/*.py"), *ROOT.glob("utils/**/*.py")]
    read = {
        node.attr
        for path in files
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert {key.split(".")[-1] for key in all_keys()} <= read


def test_numbers_that_pyyaml_reads_as_strings(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  lr: 1e-4\nloss:\n  grad_weight: 2e1\n")
    config = load_config(tmp_path / "c.yaml", ["train.clip_grad=5e-1"])
    assert config.train.lr == 1e-4 and config.train.clip_grad == 0.5 and config.loss["grad_weight"] == 20.0


def test_command_line_wins_over_file_wins_over_default(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 3\nname: a\n")
    config = load_config(tmp_path / "c.yaml", ["seed=4", "data.resize=[32,48]", "net.channels=16"])
    assert (config.seed, config.name, config.precision) == (4, "a", "fp32")
    assert config.data.resize == [32, 48] and config.net == {"name": "film", "channels": 16}
    assert load_config(None, ["net.name=mean"]).net == {"name": "mean"}


def test_resolved_config_reads_back(tmp_path):
    config = load_config(CONFIGS[0])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.learning_rate=1", "unknown key 'train.learning_rate' in the command line"),
        ("train.epoch=1", "did you mean 'train.epochs'"),
        ("epochs=1", "did you mean 'train.epochs'"),
        ("train.epochs=many", "train.epochs in the command line must be int, not 'many'"),
        ("train.epochs=1.5", "must be int"),
        ("train.augment=1", "must be bool"),
        ("train.lr=true", "must be float"),
        ("data.train=MSRS_train", "must be a list of str"),
        ("train=5", "train in the command line must hold keys of its own"),
        ("net=film", "must hold keys of its own"),
        ("precision=fp16", "must be one of fp32, tf32, bf16"),
        ("train.batch_size=0", "above 0"),
        ("data.resize=[8,8]", "16 pixels or more"),
        ("seed=[", "not valid YAML"),
        ("seed", "not of the form key=value"),
    ],
)
def test_wrong_keys_and_types_are_named(override, words):
    with pytest.raises(InputError, match=re.escape(words)):
        load_config(None, [override])


@pytest.mark.parametrize(
    "override, words",
    [
        ("seed=-1", "must be 0 or more, not -1"),
        ("precision=fp16", "must be one of fp32, tf32, bf16, not 'fp16'"),
        ("clip_input=patch", "must be one of image, crop, not 'patch'"),
        ("loss.name=7", "must be a word, the name of a loss, not 7"),
        ("net.name=null", "must be the name of a network, e.g. net.name=film"),
        ("data.resize=[32]", "must be [height, width], 16 pixels or more, not [32]"),
        ("data.resize=[32,15]", "must be [height, width], 16 pixels or more, not [32, 15]"),
        ("data.patch_size=0", "must be above 0, not 0"),
        ("data.stride=-4", "must be above 0, not -4"),
        ("text.encoder=bert", "must be one of blip2, auto, not 'bert'"),
        ("text.use=none", "must be one of own, default, not 'none'"),
        ("text.batch_size=0", "must be above 0, not 0"),
        ("describe.way=[parts]", "must be one of parts, image, not ['parts']"),
        ("describe.batch_size=0", "must be above 0, not 0"),
        ("describe.max_tokens=0", "must be above 0, not 0"),
        ("describe.points=0", "must be above 0, not 0"),
        ("describe.timeout=0", "must be above 0, not 0.0"),
        ("describe.retries=-1", "must be 0 or more, not -1"),
        ("describe.concurrency=0", "must be above 0, not 0"),
        ("describe.price=[1,2,3]", "must be [in, out], each 0 or more, not [1.0, 2.0, 3.0]"),
        ("describe.price=[1,-2]", "must be [in, out], each 0 or more, not [1.0, -2.0]"),
        ("train.epochs=0", "must be above 0, not 0"),
        ("train.batch_size=-1", "must be above 0, not -1"),
        ("train.accumulate=0", "must be above 0, not 0"),
        ("train.lr=0", "must be above 0, not 0.0"),
        ("train.schedule=cosine", "must be one of step, warmup, not 'cosine'"),
        ("train.lr_step=0", "must be above 0, not 0"),
        ("train.lr_gamma=-1e-1", "must be above 0, not -0.1"),
        ("train.warmup=-1", "must be 0 or more, not -1"),
        ("train.lr_low=0", "must be above 0, not 0.0"),
        ("train.clip_grad=0", "must be above 0, not 0.0"),
        ("train.crop=0", "must be above 0, not 0"),
        ("train.num_workers=-1", "must be 0 or more, and 256 at most, not -1"),
        ("train.log_every=0", "must be above 0, not 0"),
        ("train.val_every=0", "must be above 0, not 0"),
        ("train.save_every=0", "must be above 0, not 0"),
        ("train.pictures=-1", "must be 0 or more, not -1"),
        ("test.stretch=none", "must be one of minmax, clamp, not 'none'"),
        ("test.metrics=[]", "names no metric, e.g. test.metrics=[EN,VIFF,Qabf]"),
        ("test.tile=0", "must be above 0, not 0"),
        ("test.num_workers=257", "must be 0 or more, and 256 at most, not 257"),
    ],
)
def test_every_constraint_is_one_sentence_with_the_key(override, words):
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    assert str(caught.value) == f"{override.partition('=')[0]} {words}"


@pytest.mark.parametrize("key", all_keys())
def test_every_default_is_accepted(key):
    default = reduce(getattr, key.split("."), Config())
    assert load_config(None, [f"{key}={yaml.safe_dump(default, default_flow_style=True)}"]) == Config()


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/mgfusion_ivf_small.yaml")
    assert config == load_config(ROOT / "configs" / "mgfusion_ivf_small.yaml") and config != Config()
    assert read_yaml(config.data.datasets)["MSRS"]


def test_the_command_line_is_returned_as_given(monkeypatch):
    words = ["--config", "configs/film_ivf.yaml", "train.lr=1e-4", "describe", "net.channels=16"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    config, args = parse_args("A script.", words="what to do")
    assert args.overrides == ["train.lr=1e-4", "net.channels=16"] and args.words == ["describe"]
    assert config.train.lr == 1e-4 and config.net["channels"] == 16


@pytest.mark.parametrize("content", ["train: [", "- a\n- b\n", "trian:\n  lr: 1\n", "\x00"])
def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="missing"):
        load_config(Path(tmp_path / "missing.yaml"))


def test_text_encoders_are_those_that_there_are():
    assert set(get_args(get_type_hints(Text)["encoder"])) == set(ENCODERS)


def test_defaults_are_the_papers():
    train = Config().train
    assert (train.epochs, train.batch_size, train.lr, train.lr_step, train.lr_gamma) == (150, 2, 1e-5, 50, 0.6)
