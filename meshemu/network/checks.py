"""What the kernels rely on in a Program, checked before they run: they follow ids without looking.

A compiled pass over ops and one over each end of the messages say whether all is well, of which each rank takes its
share; only what is not is looked at again, by every rank in full, to say what is wrong.
"""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.errors import ScheduleError
from meshemu.mesh import split_bounds
from meshemu.network.compiled import at, kernel, writable
from meshemu.network.events import Ints
from meshemu.program.ir import OpKind, Program
from meshemu.program.trees import check_trees

__all__ = ["check_program"]

MOST = 2**31 - 3  # ops, and dependencies: the kernels number them in 32 bits


@kernel
def _ops_fit(
    dep_ptr: Ints, dep: Ints, device: NDArray[np.int32], n_devices: int, kind: NDArray[np.int8], count: Ints,
    begin: int, end: int,
) -> bool:
    """Whether each op from `begin` up to `end` is on a device and waits for ops of that device only; counts the ops of
    each kind.

    count: int64[4].
    """
    n_ops = len(device)
    for op in range(begin, end):
        here = device[at(op)]
        if here < 0 or here >= n_devices:
            return False
        if 0 <= kind[at(op)] < len(count):
            count[at(kind[at(op)])] += 1
        first, behind = dep_ptr[at(op)], dep_ptr[at(op + 1)]
        if first < 0 or behind < first or behind > len(dep):
            return False
        for entry in range(first, behind):
            on = dep[at(entry)]
            if on < 0 or on >= n_ops or device[at(on)] != here:
                return False
    return True


@kernel
def _first_wrong_end(
    op_of: Ints, end: NDArray[np.int32], wanted: int, kind: NDArray[np.int8], message: Ints, device: NDArray[np.int32],
    begin: int, stop: int,
) -> int:
    """The first message from `begin` up to `stop` whose op at one end is none, not of the wanted kind, or not on the
    device of that end; -1 if all are right, -2 - n if they are and n messages share the op of the one before.

    Messages that share an op stand together, and the op names the first of them.
    """
    first, shared = begin, 0
    while 0 < first < stop and op_of[first - 1] == op_of[first]:
        first -= 1
    for i in range(begin, stop):
        op = op_of[at(i)]
        if i > 0 and op_of[at(i - 1)] == op:
            shared += 1
        else:
            first = i
        if op < 0 or op >= len(kind):
            return i
        own = at(op)
        if kind[own] != wanted or message[own] != first or device[own] != end[at(i)]:
            return i
    return -1 if shared == 0 else -2 - shared


def check_program(program: Program, comm: Comm | None = None) -> bool:
    """Whether messages share ops, so that there are trees. comm: ranks that share the work, each with the same Program.

    Raises ScheduleError, the same on every rank, unless ids are in range and belong together, or for too many ops.
    """
    for name, n in (("ops", program.n_ops), ("dependencies", len(program.dep))):
        if n > MOST:
            raise ScheduleError(f"the Program has {n} {name}, at most {MOST} can be timed")
    if len(program.dep_ptr) != program.n_ops + 1:  # the first pass over it would leave it
        _refuse_ops(program)
    tally = _tally(program, 0, 1) if comm is None else comm.sum(_tally(program, comm.rank, comm.size))
    wrong, n_shared, surplus = tally[0], tally[1:3], tally[3:]
    if wrong or surplus.any():
        _refuse(program)
    if n_shared.any():
        check_trees(program)
    return bool(n_shared.any())


def _ends(program: Program) -> tuple[tuple[OpKind, Ints, NDArray[np.int32]], ...]:
    """Of messages: the kind of op at each end, these ops, and their devices."""
    return (
        (OpKind.SEND, writable(program.send_op, np.int64), writable(program.src, np.int32)),
        (OpKind.RECV, writable(program.recv_op, np.int64), writable(program.dst, np.int32)),
    )


def _ops(program: Program) -> tuple[NDArray[np.int8], Ints, NDArray[np.int32]]:
    """Kind, message and device of the ops."""
    return writable(program.kind, np.int8), writable(program.message, np.int64), writable(program.device, np.int32)


def _tally(program: Program, part: int, parts: int) -> Ints:
    """What one of several parts of a Program adds to int64[5]: whether anything is wrong; for SEND and for RECV, how
    many messages share the op of the one before; and for both, ops less the messages that have one of their own.
    """
    begin, end = split_bounds(program.n_ops, parts)[part : part + 2]
    kind, message, device = _ops(program)
    count = np.zeros(len(OpKind), np.int64)
    dep_ptr, dep = writable(program.dep_ptr, np.int64), writable(program.dep, np.int64)
    if not _ops_fit(dep_ptr, dep, device, program.n_devices, kind, count, begin, end):
        return np.array([1, 0, 0, 0, 0])
    begin, end = split_bounds(program.n_messages, parts)[part : part + 2]
    shared, surplus = [], []
    for wanted, op_of, on in _ends(program):
        found = _first_wrong_end(op_of, on, int(wanted), kind, message, device, begin, end)
        if found >= 0:
            return np.array([1, 0, 0, 0, 0])
        shared.append(0 if found == -1 else -2 - found)
        surplus.append(count[wanted] - (end - begin) + shared[-1])
    return np.array([0, *shared, *surplus])


def _refuse(program: Program) -> NoReturn:
    """Name what is wrong."""
    kind, message, device = _ops(program)
    count = np.zeros(len(OpKind), np.int64)
    dep_ptr, dep = writable(program.dep_ptr, np.int64), writable(program.dep, np.int64)
    if not _ops_fit(dep_ptr, dep, device, program.n_devices, kind, count, 0, program.n_ops):
        _refuse_ops(program)
    for wanted, op_of, end in _ends(program):
        found = _first_wrong_end(op_of, end, int(wanted), kind, message, device, 0, program.n_messages)
        if found >= 0:
            if not _all_in_range(op_of, program.n_ops):
                raise ScheduleError(f"a message names a {wanted.name} outside 0..{program.n_ops - 1}")
            raise ScheduleError(f"message {found}: op {op_of[found]} is not its {wanted.name} on device {end[found]}")
        n_used = program.n_messages - (0 if found == -1 else -2 - found)
        if count[wanted] != n_used:
            break
    raise ScheduleError(f"{count[wanted]} {wanted.name} ops but {n_used} that messages use")


def _refuse_ops(program: Program) -> NoReturn:
    """Name what is wrong with dependencies or devices."""
    n_ops, device, dep_ptr = program.n_ops, program.device, program.dep_ptr
    if len(dep_ptr) != n_ops + 1 or dep_ptr[0] < 0 or dep_ptr[-1] > len(program.dep) or np.any(np.diff(dep_ptr) < 0):
        raise ScheduleError(f"dep_ptr does not index {len(program.dep)} dependencies of {n_ops} ops")
    if not _all_in_range(program.dep, n_ops):
        raise ScheduleError(f"a dependency names an op outside 0..{n_ops - 1}")
    if not _all_in_range(device, program.n_devices):
        raise ScheduleError(f"an op names a device outside 0..{program.n_devices - 1}")
    waiting = np.repeat(np.arange(n_ops), np.diff(program.dep_ptr))
    at = int(np.argmax(device[program.dep] != device[waiting]))
    raise ScheduleError(f"op {waiting[at]} waits for op {program.dep[at]} of another device")


def _all_in_range(ids: NDArray[Any], stop: int) -> bool:
    return not ids.size or (int(ids.min()) >= 0 and int(ids.max()) < stop)
