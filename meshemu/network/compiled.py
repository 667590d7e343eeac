"""How the kernels are compiled, and kept.

A kernel is what Python calls: it is compiled on first use and kept on disk. What it is made of is compiled into it, and
costs nothing once that is done: no entry from Python, no code on disk, nothing to load.

numba keeps compiled code beside the source and renews it when the file of the function changes, but not when another
file changes whose functions or constants it has built in. So the name under which a kernel is kept carries a digest of
all that went into it.
"""

import builtins
import dis
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy import uintp
from numpy.typing import NDArray

__all__ = ["at", "compiled", "copy", "kernel", "writable"]

Integer = TypeVar("Integer", bound=np.signedinteger[Any])
F = TypeVar("F", bound=Callable[..., object])

# Integer division does not check for zero: no link has a zero `den`. Arrays are not reference counted, which would take
# more time than the model: the caller holds them all, and no kernel makes one. All calls are inlined, by LLVM: numba's
# own inlining, which copies before types are known, gives the same speed and takes longer. No entries from C.
_OPTIONS: dict[str, Any] = {
    "nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True, "no_cfunc_wrapper": True
}  # fmt: skip


def kernel(function: F) -> F:
    """Compile on first use, kept on disk. What the function names must be defined before it."""
    return cast(F, njit(cache=True, **_OPTIONS)(_named(function)))


def compiled(function: F) -> F:
    """The same for a function that only kernels call: from Python it stays a plain function.

    So it is neither kept nor loaded on its own, and not compiled anew for arguments that are constants.
    """
    return register_jitable(no_cpython_wrapper=True, **_OPTIONS)(_named(function))


def writable(values: NDArray[Any], dtype: type[Integer]) -> NDArray[Integer]:
    """Contiguous and writable: the compiler would make a second version of each kernel for read-only arrays."""
    if values.dtype == dtype and values.flags.carray:
        return values
    return np.require(values, dtype, ["C", "W"])


def _named(function: F) -> F:
    """The function, its name extended by the digest of what it is compiled from."""
    ingredients = [str(_OPTIONS), *_ingredients(function)]
    function.__qualname__ += "_" + hashlib.sha256("\n".join(ingredients).encode()).hexdigest()[:16]
    return function


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


@compiled
def at(number: int) -> int:
    """An index that is not negative. Where the compiler cannot tell, it provides for one that counts from the end,
    which takes a tenth of the time of the event loop and half of that of a loop that only copies.
    """
    return uintp(number)  # type: ignore[return-value]


@compiled
def copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Fill `target` from `source`, as long: given slices, it asks nothing of an index and takes what memory takes."""
    for i in range(len(source)):
        target[i] = source[i]
