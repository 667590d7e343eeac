"""Keyword arguments of a class of torch, as a configuration gives them: checked by its signature and its own tests."""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any, TypeVar

from meshemu.errors import InputError

__all__ = ["REFUSALS", "checked", "construct", "keywords"]

T = TypeVar("T")
REFUSALS = (TypeError, ValueError, ArithmeticError)
"""What classes of torch raise for values that they do not like."""


def keywords(kind: Callable[..., Any], hidden: Collection[str]) -> dict[str, Parameter]:
    """The keyword arguments of `kind`, without its first parameter and the `hidden` ones."""
    _, *parameters = inspect.signature(kind).parameters.values()
    return {p.name: p for p in parameters if p.name not in hidden}


def checked(section: str, valid: Mapping[str, Parameter], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, each of the type that its parameter in `valid` asks for; lists as tuples.

    Raises:
        InputError: a key is unknown or missing, or a value is of another type.
    """
    for key in options:
        if key not in valid:
            close = difflib.get_close_matches(key, valid, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(valid) or 'none'}"
            raise InputError(f"{section}.{key}: unknown key, {hint}")
    for key, parameter in valid.items():
        if parameter.default is Parameter.empty and key not in options:
            raise InputError(f"{section}.{key} is missing")
    return {key: _typed(f"{section}.{key}", valid[key], value) for key, value in options.items()}


def construct(section: str, make: Callable[..., T], options: Mapping[str, Any], required: Collection[str] = ()) -> T:
    """make(**options), where make is a class of torch that refuses bad values.

    Raises:
        InputError: it does; the key at fault is the one that alone (with the `required` ones) fails the same way.
    """
    try:
        return make(**options)
    except REFUSALS as error:
        message = _one_line(error)
        for key, value in options.items():
            alone = {name: option for name, option in options.items() if name == key or name in required}
            try:
                make(**alone)
            except REFUSALS as fault:
                if _one_line(fault) == message:
                    raise InputError(f"{section}.{key} = {value!r}: {message}") from error
        raise InputError(f"{section}: {message}") from error


def _typed(key: str, parameter: Parameter, value: Any) -> Any:
    """`value` as the parameter's annotation or, where that allows several types, its default wants it."""
    default, annotation = parameter.default, str(parameter.annotation)
    value = tuple(value) if isinstance(value, list) else value
    numbers = value if isinstance(value, tuple) else (value,)
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str), "text"
    elif isinstance(default, tuple):
        fits = isinstance(value, tuple) and len(value) == len(default) and all(map(_is_number, value))
        wanted = f"a list of {len(default)} finite numbers"
    elif annotation == "int":
        fits, wanted = _is_number(value) and isinstance(value, int), "a whole number"
    elif annotation == "Iterable[int]":
        fits = isinstance(value, tuple) and all(_is_number(n) and isinstance(n, int) for n in value)
        wanted = "a list of whole numbers"
    elif "list[float]" in annotation:
        fits, wanted = all(map(_is_number, numbers)), "a finite number, or one for each parameter group"
    else:
        fits, wanted = _is_number(value), "a finite number"
    if not fits:
        raise InputError(f"{key} = {value!r}: should be {wanted}")
    return tuple(map(float, value)) if isinstance(default, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
