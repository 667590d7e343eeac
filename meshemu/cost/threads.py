"""Threads of a device: how many of its ops are under way at a time, and which unit each of them takes.

A node of the machine has threads that compute and threads that communicate, one or two of each as a rule. Two compute
threads take the ops of a device's static schedule in turn, and share a matrix unit and a vector unit: products run on
one, all else on the other, each unit one op at a time. Two communication threads run two combinations at a time.
"""

from dataclasses import dataclass, fields

import numpy as np

from meshemu.cost.op_classes import MATRIX, base_name
from meshemu.errors import InputError
from meshemu.program.ir import OpKind, Program
from meshemu.program.units import Unit, Units, one_thread_each

__all__ = ["MOST_THREADS", "ONE_EACH", "Threads", "units_of"]

MOST_THREADS = 2
"""Of one kind: an application uses one or two of each (hardware facts: HC34, four threads to a node)."""


@dataclass(frozen=True)
class Threads:
    """How many threads of a device compute, and how many communicate, 1 or 2 each. Raises InputError for others."""

    compute: int = 1
    communication: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_THREADS:
                raise InputError(f"timing.{field.name}_threads = {number!r}: must be 1 or {MOST_THREADS}")


ONE_EACH = Threads()


def units_of(program: Program, threads: Threads = ONE_EACH) -> Units:
    """The unit of every op, and how many combinations a device runs at a time."""
    one = one_thread_each(program)
    if threads.compute == 1:
        return Units(one.of_op, threads.communication)
    is_vector = np.array([base_name(name) not in MATRIX for name in program.op_classes] or [True], np.bool_)
    on_vector = is_vector[program.op_class] & (program.kind == OpKind.COMPUTE)
    return Units(np.where(on_vector, np.int32(Unit.VECTOR), one.of_op), threads.communication)
