"""One checker of what users write: keys of a config, options of networks and losses, rows of tables."""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from utils.errors import InputError, nearest, short_repr


class Constraint(NamedTuple):
    """Annotates a kind: `Annotated[int, Constraint(lambda number: number > 0, "must be above 0")]`."""

    is_met: Callable[[Any], bool]
    complaint: str


def checked(kind: Any, value: Any, where: str, key: str = "") -> Any:
    """A value that YAML or JSON gave, as `kind`.

    An int fits a float, and a str, as a folder may be called 7; a list fits a tuple and stays a list; a bool is no
    number. A mapping fits a dataclass whose fields are its keys.

    Args:
        kind: a type, a dataclass, Literal, list, tuple, dict or a union of these with their parameters; one of them
            Annotated with a Constraint; Any takes every value.
        where: names the file or the row of a table in messages, e.g. "configs/film_ivf.yaml".
        key: names the value in it.

    Raises:
        InputError: the value does not fit, a key is unknown or missing; one sentence that names key and source.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    wanted = f"must be {inspect.formatannotation(kind)}"
    if origin is Annotated:
        kind, (is_met, wanted) = parts
        fitting = checked(kind, value, where, key)
        if is_met(fitting):
            return fitting
    elif origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        *others, last = (part for part in parts if part is not NoneType)
        for part in others:
            with contextlib.suppress(InputError):
                return checked(part, value, where, key)
        return checked(last, value, where, key)
    elif is_dataclass(kind) or origin is dict:
        wanted = "must hold keys of its own"
        if isinstance(value, dict):
            return _checked_keys(kind, value, where, f"{key}." if key else "")
    elif origin in (list, tuple):
        if isinstance(value, (list, tuple)):
            of_any_length = origin is list or Ellipsis in parts
            kinds = (parts or (Any,))[:1] * len(value) if of_any_length else parts
            if len(kinds) == len(value):
                return type(value)(checked(each, item, where, f"an item of {key}") for each, item in zip(kinds, value))
    elif origin is Literal:
        wanted = f"must be one of {', '.join(map(str, parts))}"
        if value in parts:
            return value
    elif kind is int:
        if type(value) is int and abs(value) < 2**31:  # a size of PyTorch
            return value
    elif kind is float:
        if type(value) in (int, float) and abs(value) < 1e37:  # float32 holds 3e38
            return float(value)
    elif kind is str:
        if type(value) in (int, str):
            return str(value)
    elif kind is Any or isinstance(value, origin):
        return value
    raise InputError(f"{f'{key} in {where}' if key else where} {wanted}, not {short_repr(value)}")


def _checked_keys(kind: Any, values: dict, where: str, prefix: str) -> Any:
    """A mapping as a dict or dataclass; `prefix` is before its keys in messages."""
    if not is_dataclass(kind):
        of_value = (get_args(kind) or (str, Any))[1]
        return {str(name): checked(of_value, value, where, f"{prefix}{name}") for name, value in values.items()}
    hints = get_type_hints(kind, include_extras=True)
    for name in values:
        if name not in hints:
            known = keys_of(kind, prefix)
            raise InputError(f"unknown key '{prefix}{name}' in {where}; {nearest(f'{prefix}{name}', known)}")
    for field in fields(kind):
        if field.name not in values and field.default is field.default_factory is MISSING:
            raise InputError(f"{where} needs the key '{prefix}{field.name}'")
    return kind(**{name: checked(hints[name], value, where, f"{prefix}{name}") for name, value in values.items()})


def keys_of(kind: type, prefix: str = "") -> list[str]:
    """The keys of a dataclass, those of dataclasses in it with dots, e.g. "seed" and "train.lr"."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        keys += keys_of(hint, f"{prefix}{name}.") if is_dataclass(hint) else [f"{prefix}{name}"]
    return keys
