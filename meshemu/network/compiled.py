"""How the kernels are compiled, and kept.

numba keeps compiled code beside the source and renews it when the file of the function changes, but not when another
file changes whose functions or constants it has built in. So the name under which a function is kept carries a digest
of all that went into it.
"""

import builtins
import dis
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compiled", "inlined"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile on first use, kept on disk. What the function names must be defined before it.

    Integer division does not check for zero: no link has a zero `den`. Arrays are not reference counted, which would
    take more time than the model: the caller holds them all, and no kernel makes one.
    """
    return _kept(function, {})


def inlined(function: F) -> F:
    """The same for a function that is copied into its callers: to pass all arrays of the engine costs 100 ns a call."""
    return _kept(function, {"inline": "always"})


def _kept(function: F, more: dict[str, Any]) -> F:
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True, **more}
    ingredients = [str(options), *_ingredients(function)]
    function.__qualname__ += "_" + hashlib.sha256("\n".join(ingredients).encode()).hexdigest()[:16]
    return cast(F, njit(**options)(function))


def _ingredients(function: Callable[..., object]) -> Iterator[str]:
    """What the compiled code of a function depends on: its own code, the constants and the functions that it names.

    The name of a compiled function carries the digest of its own ingredients. Of tuples of arrays the fields count.
    """
    code = function.__code__
    yield repr((code.co_code, code.co_consts, code.co_names, code.co_varnames))
    named = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for name in sorted(named - set(vars(builtins))):
        if name not in function.__globals__:
            raise TypeError(f"compiled function {function.__name__} uses {name}: define {name} before it")
        value = function.__globals__[name]
        yield f"{name} = {value if isinstance(value, int) else value.__qualname__}"
    for name, kind in function.__annotations__.items():
        yield f"{name}: {getattr(kind, '_fields', '')}"
