"""Files: written whole or not at all, also when a run is killed or the power fails; found from any folder."""

import contextlib
import errno
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
from typing import Any, BinaryIO

from utils.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

ROOT = Path(__file__).resolve().parent.parent  # the repository, with the files that ship
TIME_STAMP = r"\d{8}-\d{6}(-\d+)?"  # of a run folder; the last number is for runs of the same second
NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP)  # what some network file systems answer


def find_file(path: str | Path) -> Path:
    """Find a file or folder that may ship with the repository.

    Args:
        path: a relative path is looked up in the working directory, then in the repository.

    Returns:
        The path where it exists; `path` as it is if both do not.

    Raises:
        OSError: a name is too long.
    """
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def find_newest(pattern: str) -> Path | None:
    """Find the newest file or folder whose path matches a pattern.

    Args:
        pattern: a path with wildcards. A `*_` at the beginning of a folder's name is the time stamp of a run, so
            `exp/*_demo/model/last.pth` matches no run called my_demo. A relative path is looked up in the working
            directory, then in the repository.

    Returns:
        The path, or None if nothing matches.

    Raises:
        ValueError: the pattern is impossible.
    """
    path = Path(pattern)
    for start in [Path(path.anchor)] if path.is_absolute() else [Path(), ROOT]:
        found = [start]
        *folders, last = path.relative_to(path.anchor).parts
        for part in folders:
            found = [match for folder in found for match in _matches(folder, part, part.startswith("*_"))]
        found = [match for folder in found for match in _matches(folder, last, False)]
        if found := [match for match in found if match.exists()]:
            return max(found, key=lambda match: (match.stat().st_mtime, match))
    return None


def _matches(folder: Path, part: str, stamped: bool) -> list[Path]:
    """What matches one name of a pattern, directly in a folder; `stamped`: its first * is a time stamp."""
    if not re.search(r"[*?\[]", part):
        return [folder / part]
    name = re.compile(TIME_STAMP + fnmatch.translate(part[1:]) if stamped else ".*", re.DOTALL)
    return [match for match in folder.glob(part) if name.fullmatch(match.name)]


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file: whole, or not at all. Missing folders are made.

    Args:
        path: the file.
        content: all of it; text is written as UTF-8.

    Raises:
        InputError: the file cannot be written. An old file at `path` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_error_as_input_error(path):
        make_folder(path.parent)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file, so that after a power cut `path` is the old or the new file, whole.

    Args:
        temporary: the new file, closed, in a folder of the same disk.
        path: its name from now on; an old file there is replaced.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


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
        make_folder(path.parent)
        try:
            yield temporary
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut does not lose them.

    Args:
        folder: it may exist already.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Write to the disk which files a folder has. Does nothing where the system cannot, e.g. on Windows.

    Args:
        folder: the names directly in it are written.

    Raises:
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, *NOT_SUPPORTED):
            raise


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it. A path that does not exist is ignored.

    Args:
        path: a link is removed, and not where it leads.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def os_error_as_input_error(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into an InputError.

    Args:
        path: what the block writes, for the message.

    Raises:
        InputError: says what cannot be written, and why.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?") from error


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Keep other runs from writing to an output while the block runs.

    Half-written files that a killed run left in it and beside it are removed.

    Args:
        path: the output, a file or folder; it need not exist.

    Raises:
        InputError: another run is writing to it, or nothing can be written there.
    """
    path = path.resolve()
    lock_path = path.with_name(f".{path.name}.lock")
    with os_error_as_input_error(path):
        make_folder(path.parent)
        lock = _open_locked(lock_path)
    if lock is None:
        raise InputError(f"another run is writing {path}; let it end, or choose another place for this one")
    try:
        beside = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
        inside = (p for p in path.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", p.name))
        for leftover in [*(p for p in path.parent.iterdir() if beside.fullmatch(p.name)), *inside]:
            with contextlib.suppress(OSError):
                remove(leftover)
        yield
    finally:
        if os.name == "nt":  # Windows removes no open file, so no file that another run has locked
            lock.close()
        with contextlib.suppress(OSError):
            lock_path.unlink(missing_ok=True)
        lock.close()


def _open_locked(path: Path) -> BinaryIO | None:
    """Open and lock a file until it is closed; None if another process has locked it.

    The run that holds the lock removes the file, and it alone. Between our opening and our locking a file it may do
    so, and a third run may lock a new file. So the lock counts only if the file still is at its path.
    """
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "ab"))
            try:
                _lock(file)
            except (BlockingIOError, PermissionError):
                return None
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:  # go on without a lock: runs at the same time are not noticed
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    stack.pop_all()
                    return file


def _lock(file: BinaryIO) -> None:
    """Lock an open file, without waiting; OSError if another process has."""
    if os.name == "nt":
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def atomic_folder(folder: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` at the end of the block; if the block fails, none does.

    Files at the top are tables of the images below. Old tables are removed before the first image moves, and new ones
    move after the last, so a table is never beside images of another run.

    Args:
        folder: the output; other files in it are kept.
        outdated: names of files or folders in it to remove, too.

    Returns:
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
                make_folder(folder)
                for name in (*tables, *outdated):
                    remove(folder / name)
                sync_folder(folder)
                for path in sorted(files, key=lambda path: path in tables):
                    make_folder((folder / path).parent)
                    replace_durably(temporary / path, folder / path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def plain_name(name: str) -> bool:
    """Whether a name can be that of a file on any system.

    Args:
        name: for example of a pair, from a file that somebody else made.

    Returns:
        False for a path, only dots, a control character, a device of Windows such as con, and a name of 200 bytes
        or more: file systems allow 255, and endings are added.
    """
    odd = r"\.*|.*[/\\\x00-\x1f].*|[a-z]:.*|(con|prn|aux|nul|com\d|lpt\d)(\..*)?"
    return len(name.encode(errors="replace")) < 200 and not re.fullmatch(odd, name, re.IGNORECASE | re.DOTALL)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of a value.

    Args:
        value: dicts, lists, words and numbers; NaN and inf, which JSON does not have, become null.
        indent: spaces for each level; None writes one line.

    Returns:
        The text.
    """

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
    """What a git command prints.

    Args:
        command: its words, without "git".
        folder: where it runs.

    Returns:
        The output; None if it fails, is not in a repository, or git is not installed.
    """
    try:
        call = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return call.stdout.strip() if call.returncode == 0 else None


def commit(folder: Path = ROOT) -> str | None:
    """The commit of a repository.

    Args:
        folder: the repository, or a folder in it.

    Returns:
        The full hash, with "-dirty" if files that git tracks are changed; None without a repository or git.
    """
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=folder)
