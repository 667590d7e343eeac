"""Ops in the event loop: an op whose last dependency ends is released, and its own end is passed on. Compiled.

The end of an op or of a message is known when it starts, so it is passed on at once and needs no event.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import compiled, kernel
from meshemu.network.events import OP_KEYS, PACKET_BITS, Ints
from meshemu.network.heap import push
from meshemu.network.state import DEPTH, ROOM, State, Work

__all__ = ["arrive", "begin", "end_op", "invert", "start_op"]

SEND, RECV, REDUCE = 1, 2, 3  # values of program.OpKind, as constants that the compiler sees


@kernel
def invert(ptr: Ints, target: Ints, own: NDArray[np.bool_], out_ptr: Ints, out: Ints) -> None:
    """Reverse a graph in CSR form: write for each target the sources that name it, ascending, of sources that are own.

    out_ptr: int64[n_targets + 2], zeros; its first n_targets + 1 entries become the pointers into `out`, which is as
    long as `target`.
    """
    for source in range(len(ptr) - 1):
        if own[source]:
            for entry in range(ptr[source], ptr[source + 1]):
                out_ptr[target[entry] + 2] += 1
    for node in range(2, len(out_ptr)):
        out_ptr[node] += out_ptr[node - 1]
    for source in range(len(ptr) - 1):
        if not own[source]:
            continue
        for entry in range(ptr[source], ptr[source + 1]):
            node = target[entry]
            out[out_ptr[node + 1]] = source
            out_ptr[node + 1] += 1


@compiled
def _release(work: Work, state: State, op: int) -> None:
    """An op has nothing left to wait for: give it to its unit or to the network, or end it."""
    kind, time, scalar = work.kind[op], state.ready[op], state.scalar
    state.start[op] = time
    message = work.message[op]
    if kind == SEND:
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, work.flow[message] << PACKET_BITS, work.where[message], time)
    elif kind != RECV and work.duration[op] > 0:
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, op - OP_KEYS, op, time)
    else:
        state.end[op] = max(time, state.arrival[message]) if kind == RECV else time
        state.stack[scalar[DEPTH]] = op
        scalar[DEPTH] += 1


@compiled
def _pass_on(work: Work, state: State) -> None:
    """Pass the ends of the ops on the stack to their successors."""
    scalar = state.scalar
    while scalar[DEPTH] > 0:
        scalar[DEPTH] -= 1
        op = state.stack[scalar[DEPTH]]
        end = state.end[op]
        for entry in range(work.successor_ptr[op], work.successor_ptr[op + 1]):
            successor = work.successor[entry]
            state.ready[successor] = max(state.ready[successor], end)
            state.waiting[successor] -= 1
            if state.waiting[successor] == 0:
                _release(work, state, successor)


@kernel
def begin(work: Work, state: State, first: Ints) -> None:
    """Release the ops of this rank that wait for nothing, `first`. Called once, before the loop."""
    for i in range(len(first)):
        _release(work, state, first[i])
        _pass_on(work, state)


@compiled
def end_op(work: Work, state: State, op: int, end: int) -> None:
    """Record when an op ends and pass it on."""
    state.end[op] = end
    state.stack[0] = op
    state.scalar[DEPTH] = 1
    _pass_on(work, state)


@compiled
def start_op(work: Work, state: State, op: int, time: int) -> None:
    """An op takes its unit at `time` or, if that is still busy, as soon as it is free."""
    device, unit = work.device[op], 1 if work.kind[op] == REDUCE else 0
    start = max(time, state.unit_free[device, unit])
    end = start + work.duration[op]
    state.unit_free[device, unit] = end
    state.start[op] = start
    end_op(work, state, op, end)


@compiled
def arrive(work: Work, state: State, message: int, time: int) -> None:
    """A message has arrived at a device of this rank."""
    state.arrival[message] = time
    op = work.recv_op[message]
    if op >= 0:
        state.waiting[op] -= 1
        if state.waiting[op] == 0:
            _release(work, state, op)
            _pass_on(work, state)
