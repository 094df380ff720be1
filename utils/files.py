"""Writing files so that nothing is ever half there."""

import os
from pathlib import Path

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


def cannot_write(path: str | Path, error: OSError) -> InputError:
    """The sentence for a file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"cannot write {path} ({reason}); is there space, and is the folder yours?")
