"""The examples of docs/extending.md as modules, as if their files were in the repository."""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from net import NETWORKS
from tests.toy import ROOT
from utils.data.features import FEATURES
from utils.guides import GUIDES
from utils.loss import LOSSES
from utils.metrics import METRICS

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = {  # a block is of the file that was named last before it
    re.findall(r"`((?:net|utils)/\w+\.py)`", PAGE[: block.start()])[-1]: block[1]
    for block in re.finditer(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
}
VARIANTS = ("film_modulated", "film_conv", "film_light")


@contextlib.contextmanager
def in_place(folder: Path, *names: str) -> Iterator[None]:
    """Files of the page, written to a folder and imported under the names that they would have; forgotten at the end.

    Args:
        folder: where to write them.
        names: of files in net/, e.g. "film_conv".
    """
    tables = (NETWORKS, LOSSES, METRICS, GUIDES, FEATURES)
    before, modules = [dict(table) for table in tables], []
    try:
        for name in names:
            if f"net.{name}" in sys.modules:  # somebody has followed the page
                continue
            file = folder / "net" / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(FILES[f"net/{name}.py"])
            spec = importlib.util.spec_from_file_location(f"net.{name}", file)
            modules.append(f"net.{name}")
            sys.modules[modules[-1]] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[modules[-1]])
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        for table, content in zip(tables, before):
            table.clear()
            table.update(content)
