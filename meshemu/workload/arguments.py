"""Check the arguments that a configuration gives to a built-in model or data set, before it is built."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meshemu.errors import InputError

__all__ = ["check_arguments", "check_positive", "check_sizes"]


def check_arguments(what: str, builder: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Compare the keys of `args` with the parameters of `builder`; `what` names it, e.g. "model regnet".

    Raises:
        InputError: an argument is unknown, or one without a default is missing.
    """
    parameters = inspect.signature(builder).parameters
    unknown = [name for name in args if name not in parameters]
    if unknown:
        raise InputError(f"{what} has no argument '{unknown[0]}'; valid: {', '.join(parameters)}")
    missing = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty and name not in args]
    if missing:
        raise InputError(f"{what} needs the argument '{missing[0]}'; required or optional: {', '.join(parameters)}")


def check_positive(what: str, **sizes: Any) -> None:
    """Check that each size is a whole number of at least 1.

    Raises:
        InputError: one is not.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{what}: {name} = {value!r} must be a whole number >= 1")


def check_sizes(what: str, name: str, sizes: Any, parts: str) -> tuple[int, ...]:
    """The sizes of a list argument `name`, which must be one whole number >= 1 for each word of `parts`.

    Raises:
        InputError: it is no list of so many, or one is too small.
    """
    words = parts.split()
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != len(words):
        raise InputError(f"{what}: {name} = {sizes!r} must be [{', '.join(words)}]")
    check_positive(what, **{f"{name}[{i}]": size for i, size in enumerate(sizes)})
    return tuple(sizes)
