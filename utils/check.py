"""One checker of what users write: keys of a config, options of networks and losses, rows of tables."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from utils.errors import InputError, nearest, short_repr


class Name(str):
    """The kind of a word that may look like a whole number: a folder may be called 7."""


class Constraint(NamedTuple):
    """Annotates a kind: `Annotated[int, Constraint(lambda number: number > 0, "must be above 0")]`."""

    is_met: Callable[[Any], bool]
    complaint: str


def checked(kind: Any, value: Any, where: str, key: str = "") -> Any:
    """A value that YAML or JSON gave, as `kind`.

    A list fits a tuple, an int a float; a bool is no number. A mapping fits a dataclass whose fields are its keys.

    Args:
        kind: a type, a dataclass, Literal, list, tuple, Sequence, dict or a union of these with their parameters; one
            of them Annotated with a Constraint; Any. What is no type takes every value.
        where: names the file or the row of a table in messages, e.g. "configs/film_ivf.yaml".
        key: names the value in it.

    Raises:
        InputError: the value does not fit, a key is unknown or missing; one sentence that names key and source.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        kind, constraint = parts
        fitting = checked(kind, value, where, key)
        if constraint.is_met(fitting):
            return fitting
        raise _misfit(constraint.complaint, value, where, key)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        *others, last = (part for part in parts if part is not NoneType)
        for part in others:
            with contextlib.suppress(InputError):
                return checked(part, value, where, key)
        return checked(last, value, where, key)
    if is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where, f"{key}." if key else "")
    if origin is dict and isinstance(value, dict):
        of_key, of_value = parts or (Any, Any)
        keys = [checked(of_key, each, where, f"a key of {key}") for each in value]
        return {each: checked(of_value, value[each], where, f"{key}.{each}") for each in keys}
    if origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)):
        many = origin is not tuple or not parts or parts[-1] is Ellipsis
        kinds = (parts or (Any,))[:1] * len(value) if many else parts
        if len(kinds) == len(value):
            items = [checked(each, item, where, f"an item of {key}") for each, item in zip(kinds, value)]
            return tuple(items) if origin is tuple else items
    elif origin is Literal:
        if value in parts:
            return value
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e37:  # float32 holds 3e38
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:  # a size of PyTorch
            return value
    elif kind is Name:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
    elif kind is Any or not isinstance(origin, type) or isinstance(value, origin):
        return value
    raise _misfit(_wanted(kind), value, where, key)


def _record(kind: type, values: dict, where: str, prefix: str) -> Any:
    """A dataclass from a mapping."""
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
    """The keys of a dataclass, those of dataclasses in it with dots: ["seed", "train.lr"]."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        keys += keys_of(hint, f"{prefix}{name}.") if is_dataclass(hint) else [f"{prefix}{name}"]
    return keys


def _wanted(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is dict or is_dataclass(kind):
        return "must hold keys of its own"
    if origin is Literal:
        return f"must be one of {', '.join(map(str, parts))}"
    if origin in (list, Sequence) and parts:
        return f"must be a list of {_wanted(parts[0]).removeprefix('must be ')}"
    return f"must be {'str' if kind is Name else inspect.formatannotation(kind)}"


def _misfit(complaint: str, value: Any, where: str, key: str) -> InputError:
    return InputError(f"{f'{key} in {where}' if key else where} {complaint}, not {short_repr(value)}")
