"""README.md and the pages of docs/ tell the truth about what can be run, and find each other."""

import re
import shlex

import pytest

from net import NETWORKS, build_model
from net.checkpoint import read_checkpoint
from tests.examples import FILES, in_place
from tests.toy import ROOT
from utils.config import all_keys, load_config
from utils.loss import LOSSES, build_loss
from utils.results.table import PAPER_METRICS, published_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml"))

# idioms that readers of English as a second language stumble over
IDIOMS = (
    *(r"\bstands?\b", r"\bcomes? to (its|their) place", r"\b(is|are|was|were|can be|to be) had\b", r"of one's own"),
    *(r"so that it may\b", r"\band said\b", r"is no picture", r"text is only made", r"a repetition", r"\blies?\b"),
    *(r"\bat hand\b", r"\btaken over\b", r"\bgoes along\b", r"\bon both sides of\b"),
)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def commands(text: str) -> list[str]:
    """The commands of all shell blocks, each with its comment."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [line.strip() for line in lines if line.strip()]


COMMANDS = [(page, command) for page, text in TEXTS.items() for command in commands(text)]
SCRIPTS = [(page, command) for page, command in COMMANDS if re.match(r"(python|torchrun [^#]*?) ?\b\w+\.py\b", command)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_commands_were_found():
    assert len(SCRIPTS) >= 40 and {"README.md", "docs/data.md", "docs/training.md"} <= {page for page, _ in SCRIPTS}


def test_readme_is_short():
    assert README.count("\n") <= 260


def test_variant_is_shown_as_it_is():
    assert (ROOT / "net" / "film_blend.py").read_text(encoding="utf-8").strip() in README


def test_ci_finds_its_commands():
    for number in (1, "demo", 2):
        assert README.count(f"<!-- command {number} -->\n```bash\n") == 1


@pytest.mark.parametrize("page, command", SCRIPTS)
def test_scripts_configs_keys_and_flags_of_a_command_exist(page, command, tmp_path):
    words = shlex.split(command, comments=True)
    script = next(word for word in words if word.endswith(".py"))
    words = words[words.index(script) + 1 :]
    assert (ROOT / script).is_file()
    source = (ROOT / script).read_text(encoding="utf-8")
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    config = words[words.index("--config") + 1] if "--config" in words else "configs/sample.yaml"
    loaded = load_config(ROOT / config, overrides)
    with in_place(tmp_path, *(path for path in FILES if path.startswith("net/"))):  # what docs/extending.md adds
        build_model(**loaded.net)
        build_loss(loaded.loss)
    for flag in (word for word in words if word.startswith("--") and word != "--config"):
        assert f'"{flag}"' in source, flag


@pytest.mark.parametrize("page, command", COMMANDS)
def test_what_a_shell_would_change_is_quoted(page, command):
    """zsh takes [ and * for patterns; < and > redirect."""
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", command)
    assert not re.search(r"[\[\]*?{}<>]", bare.split("#")[0]), bare


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_anchors_resolve(page):
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_exist(page):
    text = TEXTS[page]
    for path in re.findall(r"`((?:net|utils|tests|configs|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists() or path in (*FILES, "net/my_variant.py"), path
    for path in re.findall(r"`(models/\w+\.(?:safetensors|md))`", text):
        assert (ROOT / path).exists() or path == "models/X.safetensors", path
    for name in re.findall(r"python -m tests\.(\w+)", text):
        assert (ROOT / "tests" / f"{name}.py").is_file(), name
    for name in re.findall(r"`((?:film|mgfusion)_\w+\.yaml)`", text):
        assert (ROOT / "configs" / name).is_file(), name


@pytest.mark.parametrize("page", TEXTS)
def test_keys_that_are_named_exist(page):
    """`train.lr` and `train.lr=1e-4` in the text; options of networks and losses are those of their class."""
    keys = all_keys()
    for word in re.findall(r"`\"?((?:data|text|describe|train|test)\.[a-z_]+)(?:=[^`]*)?`", TEXTS[page]):
        assert word in keys or word.endswith((".py", ".txt", ".yaml")), word
    for section, option in re.findall(r"`\"?(net|loss)\.([a-z_]+)(?:=[^`]*)?`", TEXTS[page]):
        classes = {"net": NETWORKS, "loss": LOSSES}[section]
        assert any(option in classes.defaults(name) for name in classes), f"{section}.{option}"


def test_every_config_is_explained():
    for path in CONFIGS:
        assert f"`{path.removeprefix('configs/')}`" in TEXTS["docs/data.md"], path


@pytest.mark.parametrize("page", ["docs/testing.md", "models/README.md"])
def test_python_examples_run(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    examples = [block for block in blocks(TEXTS[page], "python") if "model.onnx" not in block]  # tests/test_export.py
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out


def test_messages_that_are_explained_exist():
    """Of a message in the table, all that is not `...` or <word> is in the code, and in this order."""
    code = ""
    for path in [*ROOT.glob("*.py"), *(ROOT / "net").glob("*.py"), *(ROOT / "utils").rglob("*.py")]:
        code += re.sub(r"\"\s*\n\s*f?\"", "", path.read_text(encoding="utf-8"))  # a message on several lines
    rows = re.findall(r"^\| (`.*?) \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) >= 20
    for message in messages:
        parts = [re.escape(part) for part in re.split(r"\.\.\.|<\w+>", message)]
        assert re.search(r"[^\n]*?".join(parts), code), message


RULES = {"mean", "max", "Laplacian", "two-scale", "Mertens", "focus"}


def results() -> dict[str, dict[str, list[str]]]:
    """The table of docs/results.md: {dataset: {row: six numbers, "-" for none}}."""
    table: dict[str, dict[str, list[str]]] = {}
    for line in next(block for block in blocks(TEXTS["docs/results.md"], "") if "small, shipped" in block).splitlines():
        if re.match(r"\w+, \d+ pairs", line):
            rows = table.setdefault(line.partition(",")[0], {})
        elif row := re.match(r"  ([\w-]+(?:, \w+)?) +((?:[\d.]+|-)(?: +(?:[\d.]+|-)){5})", line):
            rows[row[1]] = row[2].split()
    return table


def test_results_are_those_of_the_weights_and_of_the_papers():
    assert all("small, shipped" in rows for rows in results().values())
    for row, files in {"small, shipped": ("IVF", "MIF", "MEF", "MFF"), "fast, shipped": ("IVF_fast",)}.items():
        measured = {
            name.removesuffix("_test"): [f"{value:.2f}" for value in means.values()]
            for file in files
            for name, means in read_checkpoint(ROOT / "models" / f"{file}.safetensors")["metrics"].items()
        }
        assert {name: rows[row] for name, rows in results().items() if row in rows} == measured
    for name, rows in results().items():
        for label in rows.keys() & {"FILM", "CDDFuse"}:
            found = [row[label] for _, row in published_rows("configs/paper_tables.yaml", name) if label in row]
            printed = [[f"{row[m]:.2f}" if m in row else "-" for m in PAPER_METRICS] for row in found]
            assert rows[label] in printed, (name, label)


def test_results_of_the_readme_are_those_of_the_page():
    table, name = results(), ""
    lines = next(block for block in blocks(README, "") if "best rule" in block).splitlines()[1:]
    assert len(lines) == 12
    for line in lines:
        first, label, numbers = re.match(r"(\w*) +(small|best rule|FILM) +([\d. ]+)", line).groups()
        name = first or name
        rules = [table[name][rule] for rule in table[name].keys() & RULES]
        best = [max(column, key=float) for column in zip(*rules)]
        expected = {"small": table[name]["small, shipped"], "best rule": best, "FILM": table[name].get("FILM")}
        assert numbers.split() == expected[label], line


@pytest.mark.parametrize("page", [*TEXTS, "tests/sample/README.md", *CONFIGS])
def test_english_is_plain(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".yaml"):
        text = "\n".join(re.findall(r"#.*", text))
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)  # code is not prose
    for idiom in IDIOMS:
        found = re.search(rf".*{idiom}.*", text, re.IGNORECASE)
        assert not found, found[0]
