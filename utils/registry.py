"""Classes that a config names: networks under `net`, losses under `loss`."""

import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any, TypeVar

from utils.check import checked
from utils.errors import InputError, nearest, short_repr

T = TypeVar("T", bound=type)
BROKEN: dict[str, str] = {}  # files of net/ that cannot be imported, and why


class Registry(dict[str, type]):
    """Classes by name. The arguments of a class's constructor are its options in the config.

    Each argument has a default, and an annotation that says what values it takes, any without one. A constructor that
    passes `**others` on to that of its base has the options of the base, too. Messages name `key`, the section of the
    config, e.g. "net".
    """

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: add the class under `name`, and set its attribute `name`; ValueError if that is taken."""

        def add(cls: T) -> T:
            if taken := self.get(name):
                raise ValueError(f"{self.key}.name '{name}' is taken by {taken.__module__}.{taken.__qualname__}")
            self[name] = cls
            cls.name = name
            return cls

        return add

    def defaults(self, name: str) -> dict[str, Any]:
        """The options of a registered class: {option: default}."""
        return {key: option.default for key, option in options_of(self[name]).items()}

    def build(self, /, name: str, **options) -> Any:
        """Construct a class by its name; InputError for an unknown name or option, or a value of the wrong kind."""
        if not isinstance(name, str) or name not in self:
            raise InputError(f"{self.key}.name {short_repr(name)} is not known; {nearest_or_broken(name, self)}")
        known = options_of(self[name])
        for key, value in options.items():
            if key not in known:
                alone = f'if it is of the config, leave out its options by "{self.key}={{name: {name}}}"'
                raise InputError(f"{self.key}.{key} is not an option of '{name}'; {nearest(key, known)}; {alone}")
            kind = known[key].annotation
            options[key] = checked(Any if kind is Parameter.empty else kind, value, f"'{name}'", f"{self.key}.{key}")
        return self[name](**options)


def nearest_or_broken(name: object, known: Iterable[str]) -> str:
    """What to look at where a name is not known: files of net/ that cannot be imported, and the nearest known name."""
    return "; ".join([*BROKEN.values(), nearest(name, known)])


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
