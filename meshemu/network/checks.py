"""What the kernels rely on in a Program, checked before they run: they follow ids without looking.

A compiled pass over ops and one over each end of the messages say whether all is well; only what is not is looked at
again, to say what is wrong.
"""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError
from meshemu.network.compiled import kernel
from meshemu.network.events import Ints
from meshemu.program.ir import OpKind, Program
from meshemu.program.trees import check_trees

__all__ = ["check_program"]


@kernel
def _ops_fit(
    dep_ptr: Ints, dep: Ints, device: NDArray[np.int32], n_devices: int, kind: NDArray[np.int8], count: Ints
) -> bool:
    """Whether every op is on a device and waits for ops of that device only; counts the ops of each kind.

    count: int64[4], zeros.
    """
    n_ops = len(device)
    for op in range(n_ops):
        here = device[op]
        if here < 0 or here >= n_devices:
            return False
        if 0 <= kind[op] < len(count):
            count[kind[op]] += 1
        for entry in range(dep_ptr[op], dep_ptr[op + 1]):
            on = dep[entry]
            if on < 0 or on >= n_ops or device[on] != here:
                return False
    return True


@kernel
def _first_wrong_end(
    op_of: Ints, end: NDArray[np.int32], wanted: int, kind: NDArray[np.int8], message: Ints, device: NDArray[np.int32]
) -> int:
    """The first message whose op at one end is none, not of the wanted kind, or not on the device of that end; -1 if
    all are right, -2 - n if they are and n messages share the op of the one before.

    Messages that share an op stand together, and the op names the first of them.
    """
    first, shared = 0, 0
    for i in range(len(op_of)):
        op = op_of[i]
        if i > 0 and op_of[i - 1] == op:
            shared += 1
        else:
            first = i
        if op < 0 or op >= len(kind) or kind[op] != wanted or message[op] != first or device[op] != end[i]:
            return i
    return -1 if shared == 0 else -2 - shared


def check_program(program: Program) -> bool:
    """Whether messages share ops, so that there are trees.

    Raises ScheduleError unless ids are in range and belong together.
    """
    ops = (_array(program.kind, np.int8), _array(program.message, np.int64), _array(program.device, np.int32))
    count = np.zeros(len(OpKind), np.int64)
    dep_ptr, dep = _array(program.dep_ptr, np.int64), _array(program.dep, np.int64)
    if not _ops_fit(dep_ptr, dep, ops[2], program.n_devices, ops[0], count):
        _refuse_ops(program)
    n_shared = 0
    for kind, op_of, end in (
        (OpKind.SEND, program.send_op, program.src),
        (OpKind.RECV, program.recv_op, program.dst),
    ):
        found = _first_wrong_end(_array(op_of, np.int64), _array(end, np.int32), int(kind), *ops)
        if found >= 0:
            if not _all_in_range(op_of, program.n_ops):
                raise ScheduleError(f"a message names a {kind.name} outside 0..{program.n_ops - 1}")
            raise ScheduleError(f"message {found}: op {op_of[found]} is not its {kind.name} on device {end[found]}")
        shared = 0 if found == -1 else -2 - found
        n_used = program.n_messages - shared
        if count[kind] != n_used:
            raise ScheduleError(f"{count[kind]} {kind.name} ops but {n_used} that messages use")
        n_shared += shared
    if n_shared:
        check_trees(program)
    return n_shared > 0


def _refuse_ops(program: Program) -> NoReturn:
    """Name what is wrong with dependencies or devices."""
    n_ops, device = program.n_ops, program.device
    if not _all_in_range(program.dep, n_ops):
        raise ScheduleError(f"a dependency names an op outside 0..{n_ops - 1}")
    if not _all_in_range(device, program.n_devices):
        raise ScheduleError(f"an op names a device outside 0..{program.n_devices - 1}")
    waiting = np.repeat(np.arange(n_ops), np.diff(program.dep_ptr))
    at = int(np.argmax(device[program.dep] != device[waiting]))
    raise ScheduleError(f"op {waiting[at]} waits for op {program.dep[at]} of another device")


def _all_in_range(ids: NDArray[Any], stop: int) -> bool:
    return not ids.size or (int(ids.min()) >= 0 and int(ids.max()) < stop)


def _array(values: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    """Of the one kind that the functions here are compiled for."""
    if values.dtype == dtype and values.flags.carray:
        return values
    return np.require(values, dtype, ["C", "W"])
