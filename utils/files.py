"""Files: written whole or not at all, by one run at a time; found from any folder."""

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent  # the repository, with the files that ship
TIME_STAMP = r"\d{8}-\d{6}(-\d+)?"  # of a run folder; the last number is for runs of the same second


def find_file(path: str | Path) -> Path:
    """A path where it exists: a relative one in the working directory, then in the repository; else as it is."""
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def find_newest(pattern: str) -> Path | None:
    """The newest file or folder whose path matches a pattern, in the working directory, then in the repository.

    Args:
        pattern: a path with wildcards. A `*_` at the beginning of a folder's name is the time stamp of a run:
            `exp/*_demo/model/last.pth` matches no run called my_demo.

    Raises:
        ValueError: the pattern is impossible.
    """
    path = Path(pattern)
    *folders, last = path.relative_to(path.anchor).parts
    stamps = {i: TIME_STAMP + fnmatch.translate(name[1:]) for i, name in enumerate(folders) if name.startswith("*_")}
    for start in [Path(path.anchor)] if path.is_absolute() else [Path(), ROOT]:
        found = [match for match in start.glob("/".join([*folders, last])) if match.exists()]
        found = [m for m in found if all(re.match(stamps[i], m.relative_to(start).parts[i]) for i in stamps)]
        if found:
            return max(found, key=lambda match: (match.stat().st_mtime, match))
    return None


@contextlib.contextmanager
def os_error_as_input_error(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into an InputError: `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?") from error


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8: whole or not at all, see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file so that `path` is the old or the new one, whole, also after a kill or a power cut.

    Yields:
        A path beside `path` to write to; the file there is renamed at the end of the block. Missing folders are made.

    Raises:
        InputError: it cannot be written; an old file at `path` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_error_as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            with contextlib.suppress(OSError):  # some network file systems sync no folder
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Keep other runs from writing to an output, a file or folder, while the block runs; it need not exist.

    Half-written files that a killed run left in it and beside it are removed.

    Raises:
        InputError: another run is writing to it, or nothing can be written there.
    """
    path = path.resolve()
    lock = path.with_name(f".{path.name}.lock")
    held = filelock.FileLock(lock, timeout=0)
    with os_error_as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another run is writing {path}; let it end, or choose another place for this one"
            ) from None
    try:
        beside = [p for p in path.parent.iterdir() if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.tmp", p.name)]
        for leftover in [*beside, *path.rglob(".*.[0-9]*.tmp")]:
            with contextlib.suppress(OSError):
                remove(leftover)
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: filelock sees that a file it has just locked was removed
        held.release()


@contextlib.contextmanager
def atomic_folder(folder: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` at the end of the block; if the block fails, none does.

    Files at the top are tables of the images below. Old tables are removed before the first image moves, and new ones
    move after the last: a table is never beside images of another run.

    Args:
        folder: the output; other files in it are kept.
        outdated: names of files or folders in it to remove, too.

    Yields:
        The temporary folder, to write to.

    Raises:
        InputError: another run is writing to `folder`, or it cannot be written.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with exclusive_lock(folder):
        try:
            with os_error_as_input_error(folder):
                temporary.mkdir()
            yield temporary
            with os_error_as_input_error(folder):
                files = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
                tables = [path for path in files if len(path.parts) == 1]
                for name in (*tables, *outdated):
                    remove(folder / name)
                for path in sorted(files, key=lambda path: path in tables):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary / path, folder / path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with everything in it; a path that does not exist is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plain_name(name: str) -> bool:
    """Whether a name, e.g. of a pair in somebody else's file, is that of a file: no path, no dots alone, no control
    character, and under 200 bytes: file systems allow 255, and endings are added."""
    return len(name.encode(errors="replace")) < 200 and not re.fullmatch(r"\.*|.*[/\\\x00-\x1f].*", name, re.DOTALL)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of a value; NaN and inf, which JSON does not have, become null."""

    def clean(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: clean(v) for key, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [clean(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(clean(value), indent=indent)


def short_digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of `data`; enough to tell whether something has changed."""
    return hashlib.sha256(data).hexdigest()[:16]


def git(*command: str, folder: Path = ROOT) -> str | None:
    """The output of a git command in a folder; None if it fails, or git is not installed."""
    try:
        call = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return call.stdout.strip() if call.returncode == 0 else None


def commit(folder: Path = ROOT) -> str | None:
    """The full hash of a repository's commit, with "-dirty" if files that git tracks are changed; None without one."""
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=folder)
