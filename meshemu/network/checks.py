"""What the kernels rely on in a Program, checked before they run: they follow ids without looking."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError
from meshemu.network.compiled import compiled
from meshemu.network.events import Ints
from meshemu.program.ir import OpKind, Program
from meshemu.program.trees import check_trees

__all__ = ["check_program"]


@compiled
def _first_across(dep_ptr: Ints, dep: Ints, device: NDArray[np.int32]) -> int:
    """The first op that waits for an op of another device, -1 if none does."""
    for op in range(len(dep_ptr) - 1):
        for entry in range(dep_ptr[op], dep_ptr[op + 1]):
            if device[dep[entry]] != device[op]:
                return op
    return -1


@compiled
def _first_wrong_end(
    op_of: Ints, end: NDArray[np.int32], wanted: int, kind: NDArray[np.int8], message: Ints, device: NDArray[np.int32]
) -> int:
    """The first message whose op at one end is not of the wanted kind, on the device of that end; -1 if all are.

    Messages that share an op stand together, and the op names the first of them.
    """
    first = 0
    for i in range(len(op_of)):
        op = op_of[i]
        if i == 0 or op_of[i - 1] != op:
            first = i
        if kind[op] != wanted or message[op] != first or device[op] != end[i]:
            return i
    return -1


def check_program(program: Program) -> None:
    """Raises ScheduleError unless ids are in range and belong together."""
    n_ops, n_messages = program.n_ops, program.n_messages
    if not _all_in_range(program.dep, n_ops):
        raise ScheduleError(f"a dependency names an op outside 0..{n_ops - 1}")
    if not _all_in_range(program.device, program.n_devices):
        raise ScheduleError(f"an op names a device outside 0..{program.n_devices - 1}")
    ops = (_array(program.kind, np.int8), _array(program.message, np.int64), _array(program.device, np.int32))
    dep_ptr, dep = _array(program.dep_ptr, np.int64), _array(program.dep, np.int64)
    across = _first_across(dep_ptr, dep, ops[2])
    if across >= 0:
        waits_for = dep[dep_ptr[across] : dep_ptr[across + 1]]
        other = waits_for[ops[2][waits_for] != ops[2][across]][0]
        raise ScheduleError(f"op {across} waits for op {other} of another device")
    for kind, op_of, end in (
        (OpKind.SEND, program.send_op, program.src),
        (OpKind.RECV, program.recv_op, program.dst),
    ):
        if not _all_in_range(op_of, n_ops):
            raise ScheduleError(f"a message names a {kind.name} outside 0..{n_ops - 1}")
        at = _first_wrong_end(_array(op_of, np.int64), _array(end, np.int32), int(kind), *ops)
        if at >= 0:
            raise ScheduleError(f"message {at}: op {op_of[at]} is not its {kind.name} on device {end[at]}")
        n_found = int(np.count_nonzero(program.kind == kind))
        n_used = n_messages - int(np.count_nonzero(op_of[1:] == op_of[:-1]))
        if n_found != n_used:
            raise ScheduleError(f"{n_found} {kind.name} ops but {n_used} that messages use")
    check_trees(program)


def _all_in_range(ids: NDArray[Any], stop: int) -> bool:
    return not ids.size or (int(ids.min()) >= 0 and int(ids.max()) < stop)


def _array(values: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    """Of the one kind that the functions here are compiled for."""
    return np.require(values, dtype, ["C", "W"])
