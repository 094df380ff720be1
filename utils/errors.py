"""A user's mistake ends in one clear sentence and a non-zero exit, never in a traceback."""

import difflib
import reprlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do."""


def shown(value: object) -> str:
    """A value as a message shows it: its repr, cut where it is long. A few lines of YAML can hold a billion words."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say of an unknown name: the nearest known one, or all of them.

    Args:
        word: what the user wrote.
        known: the names that would have been right.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


@contextmanager
def enough_memory(task: str, advice: str) -> Iterator[None]:
    """Turn running out of memory, on the CPU or a GPU, into an InputError that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = f"{type(error).__name__} {error}"
        if not any(sign in said for sign in ("OutOfMemoryError", "MemoryError", "allocate memory")):
            raise
        raise InputError(f"there is not enough memory to {task}; {advice}") from error


def quiet_tensorboard(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread says nothing where it cannot write: the training hears of it, and ends in a sentence."""
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def run(main: Callable[[], None]) -> None:
    """Run a script's main; print the sentence of an InputError or OSError and exit with 1."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal or file that knows no arrows gets a question mark
    threading.excepthook = quiet_tensorboard
    try:
        main()
    except InputError as error:
        message = str(error)
        if "Original Traceback" in message:  # raised in a worker of a DataLoader: its own words come last
            message = message.strip().splitlines()[-1].partition("InputError: ")[2]
        sys.exit(f"error: {message}")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}")
    except KeyboardInterrupt:
        sys.exit("interrupted.")
