"""Writing files so that nothing is ever half there."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from utils.errors import InputError


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, then rename; folders are made.

    Raises:
        InputError: it cannot be written. What was at `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError into an InputError that says what cannot be written, and why."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?") from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other runs from writing to an output, a file or folder.

    What a killed run left half-written, there and beside it, is removed.

    Raises:
        InputError: another run is writing to it, or nothing can be written there.
    """
    path = path.resolve()
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            message = f"another run is writing {path}; let it end, or choose another place for this one"
            raise InputError(message) from error
    try:
        beside = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
        inside = (p for p in path.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", p.name))
        for left in [*(p for p in path.parent.iterdir() if beside.fullmatch(p.name)), *inside]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def replacing(folder: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """A folder whose files take their places in `folder` when the block ends well, and not before.

    What else is in `folder` stays, but for `outdated`, files or folders there that the new ones do away with. The
    files at the top, tables, are of those below, images: the old ones go before the first image comes, the new
    ones come after the last, so that no table stands beside images of another run.

    Raises:
        InputError: another run is writing to `folder`, or it cannot be written.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with alone(folder):
        try:
            with writing(folder):
                temporary.mkdir()
            yield temporary
            with writing(folder):
                files = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
                tables = [path for path in files if len(path.parts) == 1]
                for old in [folder / name for name in (*tables, *outdated)]:
                    shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
                for path in sorted(files, key=lambda path: path in tables):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary / path, folder / path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def plain_name(name: str) -> bool:
    """True for a name that stays in its folder, on any system: no part of a path, no control character, no device.

    Nor is it longer than file systems allow, with what is added to it.
    """
    odd = r"\.*|.*[/\\\x00-\x1f].*|[a-z]:.*|(con|prn|aux|nul|com\d|lpt\d)(\..*)?"
    return len(name.encode(errors="replace")) < 200 and not re.fullmatch(odd, name, re.IGNORECASE | re.DOTALL)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text; NaN and inf, which JSON does not have, become null."""

    def clean(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: clean(v) for key, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [clean(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(clean(value), indent=indent)


def git(*command: str) -> str:
    """What git says of this repository; a note where there is none."""
    try:
        call = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return "git is not installed"
    return call.stdout.strip() if call.returncode == 0 else "not in a git repository"
