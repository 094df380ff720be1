"""README.md and the pages of docs/ tell the truth about what can be run, and find each other."""

import re
import shlex
from itertools import pairwise

import pytest

from net import NETWORKS, build_model
from net.checkpoint import read_checkpoint
from tests.examples import FILES, VARIANTS, in_place
from tests.toy import ROOT
from utils.check import keys_of
from utils.config import Config, load_config
from utils.loss import LOSSES, build_loss
from utils.metrics import PAPER_METRICS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PROSE = {page: re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S) for page, text in TEXTS.items()}
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if name == language]


def commands(page: str) -> list[str]:
    """The commands of all shell blocks, each with its comment."""
    lines = "\n".join(blocks(TEXTS[page], "bash")).replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [line.strip() for line in lines if line.strip()]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}


def test_the_commands_of_ci_are_there():
    for number in (1, "demo", 2):
        assert TEXTS["README.md"].count(f"<!-- command {number} -->\n```bash\n") == 1


@pytest.mark.parametrize("page", TEXTS)
def test_commands_exist(page, tmp_path):
    """Script or module, config, keys, flags; network and loss can be built."""
    pattern = r"(?:python|torchrun .*?) (?:-m ((?:utils|tools)\.[\w.]+)|(\w+\.py))\b(.*)"
    for found in filter(None, (re.match(pattern, command) for command in commands(page))):
        source = (ROOT / (found[2] or f"{found[1].replace('.', '/')}.py")).read_text(encoding="utf-8")
        words = shlex.split(found[3], comments=True)
        for flag in (word for word in words if re.match("--?[a-z]", word) and word != "--config"):
            assert f'"{flag}"' in source, found[0]
        config = ROOT / words[words.index("--config") + 1] if "--config" in words else None
        keys = [word for before, word in pairwise(["", *words]) if before not in ("--fused", "--with", "--figure")]
        loaded = load_config(config, [word for word in keys if re.match(r"[a-z_.]+=", word)])
        with in_place(tmp_path, *VARIANTS):  # of docs/extending.md
            build_model(**loaded.net)
            build_loss(loaded.loss)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_explained(name):
    assert f"`{name}`" in TEXTS["docs/data.md"]


@pytest.mark.parametrize("page", TEXTS)
def test_what_a_shell_would_change_is_quoted(page):
    """zsh takes [ and * for patterns; < and > redirect."""
    for command in commands(page):
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", command).split("#")[0]
        assert not re.search(r"[\[\]*?{}<>]", bare), command


@pytest.mark.parametrize("page", TEXTS)
def test_links_files_and_keys_exist(page):
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", PROSE[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(PROSE[target.resolve().relative_to(ROOT).as_posix()]), link
    for path in re.findall(r"`((?:net|utils|tests|tools|configs|docs|models)/[\w./]+)`", TEXTS[page]):
        assert (ROOT / path).exists() or path in (*FILES, "net/my_variant.py", "models/X.safetensors"), path
    for module in re.findall(r"python -m ((?:utils|tools|tests)\.[\w.]+)", TEXTS[page]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for word in re.findall(r"`\"?((?:data|text|describe|train|test)\.[a-z_]+)(?:=[^`]*)?`", TEXTS[page]):
        assert word in keys_of(Config) or word.endswith((".py", ".txt", ".yaml")), word
    for section, option in re.findall(r"`\"?(net|loss)\.([a-z_]+)(?:=[^`]*)?`", TEXTS[page]):
        classes = {"net": NETWORKS, "loss": LOSSES}[section]
        assert any(option in classes.defaults(name) for name in classes), f"{section}.{option}"


def test_the_python_example_of_the_weights_runs(monkeypatch, capsys):
    """Those of docs/testing.md run in tests/test_python.py and tests/test_export.py."""
    monkeypatch.chdir(ROOT)
    (example,) = blocks(TEXTS["models/README.md"], "python")
    exec(compile(example, "models/README.md", "exec"), {})
    assert "RoadScene" in capsys.readouterr().out


def test_messages_that_are_explained_exist():
    """Of a message in the table, all that is not `...` or <word> is in the code, and in this order."""
    code = ""
    for path in [*ROOT.glob("*.py"), *(ROOT / "net").glob("*.py"), *(ROOT / "utils").rglob("*.py")]:
        code += re.sub(r"\"\s*\n\s*f?\"", "", path.read_text(encoding="utf-8"))  # a message on several lines
    rows = re.findall(r"^\| (`.*?) \|", TEXTS["docs/troubleshooting.md"], re.M)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert messages
    for message in messages:
        parts = [re.escape(part) for part in re.split(r"\.\.\.|<\w+>", message)]
        assert re.search(r"[^\n]*?".join(parts), code), message


@pytest.mark.parametrize("task", ["IVF", "MIF", "MEF", "MFF"])
def test_results_are_those_of_the_weights(task):
    """What was measured when the weights were exported is in docs/results.md, and some of it in the README."""
    measured = read_checkpoint(ROOT / "models" / f"{task}.safetensors")["metrics"].values()
    rows = [r" +".join(re.escape(f"{means[metric]:.2f}") for metric in PAPER_METRICS) for means in measured]
    assert all(re.search(row, TEXTS["docs/results.md"]) for row in rows)
    assert any(re.search(row, TEXTS["README.md"]) for row in rows)
