"""Frozen models of transformers."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import InputError, reason_of
from utils.files import hub_reached


@contextlib.contextmanager
def loading(failure: str, advice: str) -> Iterator[None]:
    """Whatever goes wrong in loading a model becomes an InputError, "<failure> (<reason>); <advice>"."""
    try:
        yield
    except Exception as error:  # damaged files and unreachable hubs raise many kinds
        raise InputError(f"{failure} ({reason_of(error)}); {advice}") from error


def from_hub_or_folder(path: str) -> dict[str, bool]:
    """Options of `from_pretrained`: no code of a model is run, and without a connection its copy here is used."""
    return {"trust_remote_code": False, "local_files_only": not Path(path).exists() and not hub_reached()}


def load_whole(model_class: type, path: str, unused: str | None = None, **options) -> Any:
    """A model with all its weights; ValueError if some are missing, where transformers would take random ones.

    `path` is a hub name or a local folder. Weights with `unused` in their names may be missing.
    """
    import transformers  # takes seconds

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    options |= from_hub_or_folder(path)
    model, report = model_class.from_pretrained(path, output_loading_info=True, **options)
    missing = [name for name in report["missing_keys"] if not (unused and unused in name)]
    if missing or report["mismatched_keys"]:
        raise ValueError(f"its weights are not those of a {type(model).__name__}")
    return model
