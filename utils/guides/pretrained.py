"""Frozen models of transformers."""

import contextlib
from collections.abc import Iterator
from typing import Any

from utils.errors import InputError


@contextlib.contextmanager
def loading(failure: str, advice: str) -> Iterator[None]:
    """Whatever goes wrong in loading a model becomes an InputError, "<failure> (<reason>); <advice>"."""
    try:
        yield
    except Exception as error:  # damaged files and unreachable hubs raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{failure} ({reason}); {advice}") from error


def load_whole(model_class: type, path: str, unused: str | None = None, **options) -> Any:
    """A model with all its weights; ValueError if some are missing, where transformers would take random ones.

    Args:
        path: hub name or local folder; code in it is never run.
        unused: a word in the names of weights that are not used.
        options: of `from_pretrained`.
    """
    model, report = model_class.from_pretrained(path, trust_remote_code=False, output_loading_info=True, **options)
    missing = [name for name in report["missing_keys"] if not (unused and unused in name)]
    if missing or report["mismatched_keys"]:
        raise ValueError(f"its weights are not those of a {type(model).__name__}")
    return model
