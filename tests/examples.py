"""The examples of docs/extending.md as modules, as if their files were in the repository."""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from net import NETWORKS
from tests.toy import ROOT
from utils.guides import GUIDES
from utils.loss import LOSSES

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.M | re.S))
VARIANTS = ("film_modulated", "film_smooth")


@contextlib.contextmanager
def in_place(folder: Path, *paths: str) -> Iterator[None]:
    """Files of the page, written to a folder and imported under the names that they would have; forgotten at the end.

    A file that is in the repository by now is left out.

    Args:
        folder: where to write them.
        paths: what the page calls them, e.g. "net/film_smooth.py".
    """
    tables = (NETWORKS, LOSSES, GUIDES)
    before, modules = [dict(table) for table in tables], []
    try:
        for path in (path for path in paths if not (ROOT / path).exists()):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(FILES[path])
            name = path.removesuffix(".py").replace("/", ".")
            spec = importlib.util.spec_from_file_location(name, file)
            modules.append(name)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        for table, content in zip(tables, before):
            table.clear()
            table.update(content)
