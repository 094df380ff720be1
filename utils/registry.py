"""Classes that a config names: networks under `net`, losses under `loss`."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from types import NoneType
from typing import Any, TypeVar, get_args

from utils.check import checked
from utils.errors import InputError, nearest, short_repr

T = TypeVar("T", bound=type)


class Registry(dict[str, type]):
    """Classes by name. The arguments of a class's constructor are its options in the config.

    The default of an option says what values it takes: 32 whole numbers, 20.0 any number, (288, 384) two whole
    numbers, () any number of words. If the default is None or missing, the annotation says it; without an
    annotation every value is taken. None is only taken where it is the default or where the annotation allows it.
    A constructor that passes `**others` on to that of its base has the options of the base, too.

    Args:
        key: the section of the config, e.g. "net"; messages name it.
    """

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: add the class under `name`, and set its attribute `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(cls: T) -> T:
            if name in self:
                taken_by = f"{self[name].__module__}.{self[name].__qualname__}"
                raise ValueError(f"{self.key}.name '{name}' is taken by {taken_by}")
            self[name] = cls
            cls.name = name
            return cls

        return add

    def defaults(self, name: str) -> dict[str, Any]:
        """The options of a registered class that have a default: {option: default}."""
        return {key: p.default for key, p in options_of(self[name]).items() if p.default is not p.empty}

    def build(self, /, name: str, **options) -> Any:
        """Construct a class.

        Args:
            name: a registered name.
            options: arguments of its constructor; those left out keep their defaults.

        Raises:
            InputError: unknown name or option, a value of the wrong kind, an option missing that has no default.
        """
        if not isinstance(name, str) or name not in self:
            raise InputError(f"{self.key}.name {short_repr(name)} is not known; {nearest(name, self)}")
        known = options_of(self[name])
        for key, value in options.items():
            if key not in known:
                alone = f"'{self.key}={{name: {name}}}' takes none of another's options"  # as a config may have them
                raise InputError(f"{self.key}.{key} is not an option of '{name}'; {nearest(key, known)}; {alone}")
            kind, default = _kind(known[key]), known[key].default
            wanted = inspect.formatannotation(kind) if default in (None, Parameter.empty) else f"like {default!r}"
            try:
                options[key] = checked(kind, value, "")
            except InputError:
                raise InputError(f"{self.key}.{key} must be {wanted}, not {short_repr(value)}") from None
        for key, option in known.items():
            if option.default is option.empty and key not in options:
                raise InputError(f"{self.key}.{key} has no default in '{name}'; give it a value")
        return self[name](**options)


def options_of(cls: type) -> dict[str, Parameter]:
    """The options of a class: its constructor's named arguments, and those of its base where it takes `**others`."""
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    options: dict[str, Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            _, *arguments = inspect.signature(base.__init__, eval_str=True).parameters.values()  # the first is self
            options = {p.name: p for p in arguments if p.kind in named} | options
            if not any(p.kind is p.VAR_KEYWORD for p in arguments):
                break
    return options


def _kind(option: Parameter) -> Any:
    """The kind of an option's values: that of its default, or its annotation if the default is None or missing."""
    annotation = Any if option.annotation is option.empty else option.annotation
    if option.default is option.empty:
        return annotation
    if option.default is None:
        return annotation | None
    return _kind_of(option.default) | None if NoneType in get_args(annotation) else _kind_of(option.default)


def _kind_of(default: object) -> Any:
    """A default as an annotation: 3 is int, (3, 4.0) is tuple[int, float], an empty sequence holds words."""
    if isinstance(default, (list, tuple)):
        return tuple[tuple(map(_kind_of, default))] if default else tuple[str, ...]
    return type(default)
