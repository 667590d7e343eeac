"""Sets of numbers 0 <= n < 63 as the bits of an integer, compiled: a loop over one costs only what is in it.

numba has no integer instruction for the lowest bit, so it is given one; kernels that use it are kept under its name
alone, which is enough for a function that has one meaning (see `network.compiled`).
"""

from typing import Any

from numba import types
from numba.extending import intrinsic, overload

from meshemu.network.compiled import compiled

__all__ = ["lowest_bit", "next_bit"]


def lowest_bit(bits: int) -> int:
    """The lowest number of a set that is not empty."""
    return int(bits & -bits).bit_length() - 1


@intrinsic
def _trailing_zeros(typing_context: Any, bits: Any) -> Any:
    """The processor's count of the zeros below the lowest one."""

    def instruction(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        never_zero = context.get_constant(types.boolean, 1)
        return builder.cttz(values[0], never_zero)

    return types.int64(types.int64), instruction


@overload(lowest_bit, jit_options={"forceinline": True})
def _compiled_lowest_bit(bits: Any) -> Any:
    """What `lowest_bit` is in compiled code."""

    def lowest(bits: Any) -> Any:
        return _trailing_zeros(bits)  # type: ignore[call-arg]  # numba adds the context

    return lowest


@compiled
def next_bit(bits: int, turn: int) -> int:
    """The first number of a set that is not empty, counted from `turn` <= 63 around."""
    behind = bits >> turn << turn
    return lowest_bit(behind if behind else bits)
