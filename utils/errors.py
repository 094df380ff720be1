"""A user's mistake ends in one clear sentence and a non-zero exit, never in a traceback."""

import difflib
import reprlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from utils.remarks import tell_counts

# by PyTorch, by the driver (AMD's calls itself HIP) and by its libraries
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "allocate memory", "shared memory")
OUT_OF_MEMORY += ("CUDA error: out of memory", "HIP error: out of memory", "STATUS_ALLOC_FAILED")


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do."""


def short_repr(value: object) -> str:
    """The repr of a value in one line, cut where it is long: a few lines of YAML can make a billion words."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name nearest to an unknown word, as a question; a list of all known names if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


def shortened(names: Sequence[str], most: int = 10) -> str:
    """The first names with commas between, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def reason_of(error: BaseException) -> str:
    """The first line of what an error of somebody else's code says, else its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def enough_memory(task: str, advice: str) -> Iterator[None]:
    """An error of the block for lack of memory becomes an InputError, "... not enough memory to <task>; <advice>"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__} {error}"
        if not any(sign in text for sign in OUT_OF_MEMORY):
            raise
        raise InputError(f"there is not enough memory to {task}; {advice}") from error


@contextmanager
def living_workers() -> Iterator[None]:
    """A worker of a DataLoader that dies in the block becomes an InputError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a worker process was killed, as happens where memory runs out; set num_workers lower, or to 0"
        ) from error


def interrupt(number: int, _: object) -> None:
    """Handle SIGTERM, which batch systems send to a whole group of processes, as Ctrl-C is handled."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # PyTorch raises for workers of a DataLoader that end of it
    raise KeyboardInterrupt(number)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function; a mistake ends it with one sentence and exit status 1, a signal with 128 + it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal or file that knows no arrows gets a question mark
    status = None
    try:
        with living_workers():
            main()
    except InputError as error:
        message = str(error)
        if "Original Traceback" in message:  # raised in a worker of a DataLoader: the sentence is its last line
            message = message.strip().splitlines()[-1].partition("InputError: ")[2]
        status = f"error: {message}"
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        status = f"error: {error.strerror or error}{where}"
    except KeyboardInterrupt as interrupted:
        status = 128 + (interrupted.args or [signal.SIGINT])[0]
    tell_counts()
    if status:  # not above: while there is an exception, workers of a DataLoader live on
        sys.exit(status)
