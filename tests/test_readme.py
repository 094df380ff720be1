"""The README tells the truth about what can be run."""

import re

import pytest

from net import NETWORKS, build_model
from tests.conftest import ROOT
from utils.config import load_config

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:&& )?(?:python|torchrun [\w=-]+) (\w+\.py)(.*)$", README, re.M)


def test_variant_is_shown_as_it_is():
    assert (ROOT / "net" / "film_blend.py").read_text().strip() in README


@pytest.mark.parametrize("name, words", COMMANDS)
def test_configs_and_keys_of_every_command_exist(name, words):
    assert (ROOT / name).is_file()
    words = words.split("#")[0]
    for config in re.findall(r"--config (\S+)", words):
        loaded = load_config(ROOT / config, re.findall(r"(?<=\s)[a-z_.]+=[^\s\"\\]+", words))
        build_model(**loaded.net)
    for flag in re.findall(r"--[a-z-]+", words):
        assert flag == "--config" or f'"{flag}"' in (ROOT / name).read_text()


def test_commands_were_found():
    assert len(COMMANDS) >= 10


def test_files_and_keys_that_are_named_exist():
    for path in re.findall(r"`((?:net|utils|tests|configs)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(film_\w+)\.yaml`", README):
        assert (ROOT / "configs" / f"{name}.yaml").is_file()
    assert {"film", "film_blend", "mean", "max", "laplacian"} <= set(NETWORKS)


def test_ci_finds_both_commands():
    for number in (1, "demo", 2):
        assert f"<!-- command {number} -->\n```bash\n" in README
