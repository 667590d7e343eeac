"""How the kernels are compiled.

numba keeps compiled code beside the source and renews it when the file of the function changes, not when what it uses
changes: after an edit of `heap` or `state`, save `kernels` too (or remove __pycache__).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile on first use, kept on disk.

    Integer division does not check for zero: no link has a zero `den`. Arrays are not reference counted, which would
    take more time than the model: the caller holds them all, and no kernel makes one.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    return cast(F, njit(**options)(function))
