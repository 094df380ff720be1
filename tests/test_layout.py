"""The house: no import circle, and the core imports no wing. Type-only imports count."""

import ast

import pytest

from tests.toy import ROOT

WINGS = (
    "fuse",
    "net.film_instructed",
    "utils.arrange",
    "utils.describe",
    "utils.export",
    "utils.instruct",
    "utils.own",
    "utils.simulate",
    "utils.studies",
)
FILES = [path for pattern in ("*.py", "net/*.py", "utils/**/*.py") for path in sorted(ROOT.glob(pattern))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text() for path in FILES
}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys() - {module}


def is_wing(module: str) -> bool:
    return any(module == wing or module.startswith(f"{wing}.") for wing in WINGS)


IMPORTS = {module: imports(module) for module in MODULES}


@pytest.mark.parametrize("module", [module for module in MODULES if not is_wing(module)])
def test_the_core_imports_no_wing(module):
    assert not [other for other in IMPORTS[module] if is_wing(other)]


def test_there_is_no_import_circle():
    left = dict(IMPORTS)
    while left:
        free = [module for module, needed in left.items() if not needed & left.keys()]
        assert free, f"these import each other in a circle, or what does: {sorted(left)}"
        left = {module: needed for module, needed in left.items() if module not in free}
