"""Writing files so that nothing is ever half there."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

from utils.errors import InputError


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, then rename; folders are made.

    Raises:
        InputError: it cannot be written. What was at `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text; NaN and inf, which JSON does not have, become null."""

    def clean(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: clean(v) for key, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [clean(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(clean(value), indent=indent)


def cannot_write(path: str | Path, error: OSError) -> InputError:
    """The sentence for a file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?")


def git(*command: str) -> str:
    """What git says of this repository; a note where there is none."""
    try:
        call = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return "git is not installed"
    return call.stdout.strip() if call.returncode == 0 else "not in a git repository"
