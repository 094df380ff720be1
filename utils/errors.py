"""A user's mistake ends in one clear sentence and a non-zero exit, never in a traceback."""

import difflib
import reprlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do."""


def short_repr(value: object) -> str:
    """The repr of a value for a message, cut where it is long: a few lines of YAML can make a billion words.

    Args:
        value: what the user gave.

    Returns:
        One line.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """What a message says about an unknown name.

    Args:
        word: what the user wrote.
        known: the names that would have been right.

    Returns:
        A question with the nearest known name, or a list of all of them.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


def shortened(names: Sequence[str], most: int = 10) -> str:
    """What a message says of many names.

    Args:
        names: all of them.
        most: how many are said.

    Returns:
        The first ones with commas between, and how many more there are.
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "allocate memory")
# what allocates beside PyTorch: the driver, as AMD's calls itself HIP, and the libraries
OUT_OF_MEMORY += ("CUDA error: out of memory", "HIP error: out of memory", "STATUS_ALLOC_FAILED")


@contextmanager
def enough_memory(task: str, advice: str) -> Iterator[None]:
    """Turn an error of the block into an InputError if there is not enough memory, on the CPU or a GPU.

    Args:
        task: what the block does, for the message, e.g. "train".
        advice: what the user can change.

    Raises:
        InputError: says that memory is missing, and what helps.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__} {error}"
        if not any(sign in text for sign in OUT_OF_MEMORY):
            raise
        raise InputError(f"there is not enough memory to {task}; {advice}") from error


def quiet_tensorboard(args: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: if it cannot write, the training ends with a sentence anyway.

    Args:
        args: what threading.excepthook is given.
    """
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function, and end a mistake of the user in one sentence.

    Args:
        main: the function, without arguments.

    Raises:
        SystemExit: with the sentence of an InputError or OSError, and exit status 1.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal or file that knows no arrows gets a question mark
    threading.excepthook = quiet_tensorboard
    try:
        main()
    except InputError as error:
        message = str(error)
        if "Original Traceback" in message:  # raised in a worker of a DataLoader: the sentence is its last line
            message = message.strip().splitlines()[-1].partition("InputError: ")[2]
        sys.exit(f"error: {message}")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}")
    except KeyboardInterrupt:
        sys.exit("interrupted.")
