"""The house rules that a reader relies on: imports run one way, and what is read in one sitting stays short."""

import ast

import pytest

from tests.toy import ROOT

# a file imports from its own level and from those below it
LEVELS = [
    (
        "utils.errors",
        "utils.files",
        "utils.config",
        "utils.registry",
        "utils.distributed",
        "utils.opencv",
        "utils.process",
    ),
    ("utils.filters", "utils.targets", "utils.metrics"),
    ("net", "utils.loss"),
    ("utils.guides",),
    ("utils.data",),
    ("utils.results",),
    ("utils.run_folder",),
    ("train", "test", "data_process"),
]
FILES = [path for pattern in ("*.py", "net/*.py", "utils/**/*.py") for path in sorted(ROOT.glob(pattern))]


def level(module: str) -> int | None:
    """The level of a module of ours; None for other people's."""
    for number, names in enumerate(LEVELS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    assert module.split(".")[0] not in ("utils", "net", "train", "test", "data_process") or module == "utils", module
    return None


def imports(tree: ast.Module) -> list[str]:
    """All modules that a file imports, but for those that only type checkers see."""
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in hidden:
            modules += [name.name for name in node.names]
        if isinstance(node, ast.ImportFrom) and id(node) not in hidden:
            inside = [f"{node.module}.{name.name}" for name in node.names] if node.module == "utils" else [node.module]
            modules += inside
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = level(module)
    for imported in imports(ast.parse(path.read_text())):
        other = level(imported)
        assert own is None or other is None or other <= own, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize(("name", "most"), [("data_process.py", 170), ("train.py", 340), ("test.py", 380)])
def test_scripts_are_short(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_no_module_is_a_drawer():
    long = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert max(long.values()) <= 380, long


def test_the_training_is_read_in_one_sitting():
    functions = [node for node in ast.parse((ROOT / "train.py").read_text()).body if isinstance(node, ast.FunctionDef)]
    longest = max(functions, key=lambda node: node.end_lineno - node.lineno)
    assert longest.end_lineno - longest.lineno < 120, longest.name


def test_test_imports_no_other_script():
    assert not {"data_process", "train"} & set(imports(ast.parse((ROOT / "test.py").read_text())))
