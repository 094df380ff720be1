"""What was guessed or passed over in files: said at the first one of a folder, and counted, not said each time."""

import re
from pathlib import Path

from tqdm import tqdm

_told: dict[tuple[Path, str], dict[str, None]] = {}  # by folder and kind, the names of the files


def remark(path: str | Path, text: str) -> None:
    """Say something about a file, "x.tif has 10 pages: ...", unless the like was said of another of its folder."""
    path = Path(path)
    files = _told.setdefault((path.parent, re.sub(r"\d[\d.]*|\(.*?\)", "#", text)), {})
    if not files:
        tqdm.write(f"warning: {path} {text}")
    files[path.name] = None


def tell_counts() -> None:
    """Say of how many further files each remark was true, and forget them."""
    for (folder, _), files in _told.items():
        if len(files) > 1:
            tqdm.write(f"warning: so it is with {len(files) - 1} more files like {folder / next(iter(files))}")
    _told.clear()
