"""Ops in the event loop: an op whose last dependency ends is released, and its own end is passed on. Compiled.

The end of an op or of a message is known when it starts, so it is passed on at once and needs no event.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import at, compiled, kernel
from meshemu.network.events import OP_KEYS, PACKET_BITS
from meshemu.network.heap import push
from meshemu.network.state import DEPTH, ROOM, State, Work

__all__ = ["arrive", "begin", "end_op", "start_op"]

SEND, RECV = 1, 2  # values of program.OpKind, as constants that the compiler sees


@compiled
def _release(work: Work, state: State, op: int) -> None:
    """An op has nothing left to wait for: give it to its unit or to the network, or end it."""
    scalar, i = state.scalar, at(op)
    kind, time, message = work.kind[i], state.start[i], work.message[i]
    if kind == SEND:
        state.end[i] = time
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, work.flow[at(message)] << PACKET_BITS, work.where[at(message)], time)
    elif kind != RECV and work.duration[i] > 0 and work.unit[i] >= 0:
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, op - OP_KEYS, op, time)
    else:
        state.end[i] = max(time, state.arrival[at(message)]) if kind == RECV else time + work.duration[i]
        state.stack[at(scalar[DEPTH])] = op
        scalar[DEPTH] += 1


@compiled
def _pass_on(work: Work, state: State) -> None:
    """Pass the ends of the ops on the stack to their successors."""
    scalar = state.scalar
    while scalar[DEPTH] > 0:
        scalar[DEPTH] -= 1
        op = state.stack[at(scalar[DEPTH])]
        end = state.end[at(op)]
        for entry in range(work.successor_ptr[at(op)], work.successor_ptr[at(op + 1)]):
            successor = int(work.successor[at(entry)])
            i = at(successor)
            state.start[i] = max(state.start[i], end)
            state.waiting[i] -= 1
            if state.waiting[i] == 0:
                _release(work, state, successor)


@kernel
def begin(work: Work, state: State, first: NDArray[np.int32]) -> None:
    """Release the ops of this rank that wait for nothing, `first`. Called once, before the loop."""
    for i in range(len(first)):
        _release(work, state, int(first[i]))
        _pass_on(work, state)


@compiled
def end_op(work: Work, state: State, op: int, end: int) -> None:
    """Record when an op ends and pass it on."""
    state.end[at(op)] = end
    state.stack[0] = op
    state.scalar[DEPTH] = 1
    _pass_on(work, state)


@compiled
def start_op(work: Work, state: State, op: int, time: int) -> None:
    """An op takes its unit at `time` or, if that is still busy, as soon as it is free; of several alike, the first that
    is.
    """
    i = at(op)
    free, unit = state.unit_free[at(work.device[i])], work.unit[i]
    if unit == 0:
        for other in range(1, work.combining):
            if free[at(other)] < free[at(unit)]:
                unit = other
    start = max(time, free[at(unit)])
    end = start + work.duration[i]
    free[at(unit)] = end
    state.start[i] = start
    end_op(work, state, op, end)


@compiled
def arrive(work: Work, state: State, message: int, time: int) -> None:
    """A message has arrived at a device of this rank."""
    state.arrival[at(message)] = time
    op = work.recv_op[at(message)]
    if op >= 0:
        state.waiting[at(op)] -= 1
        if state.waiting[at(op)] == 0:
            _release(work, state, op)
            _pass_on(work, state)
