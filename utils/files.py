"""Files: written whole or not at all, by one run at a time; found from any folder."""

import contextlib
import fnmatch
import functools
import hashlib
import json
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


def find_file(path: str | Path) -> Path:
    """A path where it exists: a relative one in the working directory, then in the repository; else as it is."""
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


@functools.cache
def hub_reached() -> bool:
    """Whether the Hugging Face hub answers within seconds; its own client would try for half a minute, file by file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no connection, or HF_HUB_OFFLINE
        return False
    return True


def find_newest(pattern: str) -> Path | None:
    """The newest file or folder whose path matches a pattern; ValueError if that is impossible.

    A `*_` at the beginning of a folder's name ends at its first underscore, as the time stamp of a run does:
    `exp/*_demo/model/last.pth` matches no run called my_demo.
    """
    start = Path(Path(pattern).anchor)
    parts = Path(pattern).relative_to(start).parts
    found = list(start.glob("/".join(parts)))
    for i, part in enumerate(parts[:-1]):
        if part.startswith("*_"):
            names = [path.relative_to(start).parts[i].partition("_")[2] for path in found]
            found = [path for path, name in zip(found, names) if fnmatch.fnmatch(name, part[2:])]
    return max(found, key=lambda path: (path.stat().st_mtime, path), default=None)


def newest_checkpoint(path: str | None, key: str) -> str | None:
    """The checkpoint that the value of a key means: of a run folder model/last.pth, of a pattern the newest match.

    It prints what it finds; anything else stays as it is. InputError if nothing can match.
    """
    if path and "*" in path:
        try:
            found = find_newest(f"{path}/model/last.pth") or find_newest(path)
        except ValueError as error:
            raise InputError(f"{key}={path} is no pattern ({error}); a * is for a part of a name") from error
        if found is None:
            raise InputError(f"there is no checkpoint {path}; give one with {key}=..., or train first")
    elif path and find_file(path).is_dir():
        found = find_file(path) / "model" / "last.pth"
    else:
        return path
    print(f"{key}={found}")
    return str(found)


@contextlib.contextmanager
def os_error_as_input_error(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into an InputError: `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?") from error


def read_text(path: str | Path, what: str) -> str:
    """The words of a file; InputError, with `what` it is, if it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {what} {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8, from byte {error.start} on; save it as UTF-8") from error


def write_file(path: str | Path, content: bytes | str, sync: bool = True) -> None:
    """Write a file, text as UTF-8: whole or not at all, see `whole_file`."""
    with whole_file(path, sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Write a file so that `path` is the old or the new one, whole, also after a kill and, with `sync`, a power cut.

    The block writes to the path that it gets, which is then renamed; missing folders are made. InputError if it fails.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with os_error_as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Keep other runs from writing to a file or folder, there or not, during the block; InputError if one does now."""
    path = path.resolve()
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    with os_error_as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another run is writing {path}; let it end, or choose another place for this one"
            ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: filelock sees that its file was removed
        lock.release()


@contextlib.contextmanager
def atomic_folder(folder: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` at the end of the block; if the block fails, none does.

    Files at the top are tables of the images below: old ones are removed before the first image moves, and new ones
    move after the last, so a table is never beside images of another run. Other files in `folder` are kept, but for the
    files and folders that `outdated` names. InputError if it cannot be written, or another run is writing to it.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.tmp")
    with exclusive_lock(folder):
        try:
            with os_error_as_input_error(folder):
                remove(temporary)  # of a killed run
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
    """Whether a name, e.g. of a pair in somebody else's file, can be that of a file: no path, no dots alone, no control
    character, and under 200 bytes: file systems allow 255, and endings are added."""
    return len(name.encode(errors="replace")) < 200 and not re.fullmatch(r"\.*|.*[/\\\x00-\x1f].*", name, re.DOTALL)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of a value; NaN and inf, which JSON does not have, become null."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=indent)


def short_digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of `data`; enough to tell whether something has changed."""
    return hashlib.sha256(data).hexdigest()[:16]


def git(*command: str) -> str | None:
    """The output of a git command in the repository; None if it fails, or git is not installed."""
    try:
        call = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return call.stdout.strip() if call.returncode == 0 else None


def commit() -> str | None:
    """The hash of the repository's commit, with "-dirty" if a file that git tracks is changed; None without one."""
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
