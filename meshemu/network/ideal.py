"""Contention-free time of a Program: the longest path through its ops, every unit and link there for each op alone.

A lower bound on what `time_program` finds, computed without the engine; the difference is what contention costs. A SEND
ends when its first link has carried the message, a RECV ends one `mesh.message_ps` after its SEND started.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import ScheduleError
from meshemu.mesh import Mesh, Order, link_rates, message_ps, routes, serialisation_ps
from meshemu.network.results import OpTimes
from meshemu.program.ir import OpKind, Program

__all__ = ["contention_free"]

Ints = NDArray[np.int64]


def contention_free(program: Program, mesh: Mesh, duration_ps: ArrayLike, *, order: Order = "xy") -> OpTimes:
    """Start and end of every op without contention, int64[n_ops] each; the step takes end_ps.max().

    duration_ps: int64[n_ops], for COMPUTE and REDUCE. Raises ScheduleError if ops wait for each other in a circle.
    """
    paths = routes(mesh, program.src, program.dst, order)
    sends, receives = program.send_op, program.recv_op
    duration = np.array(duration_ps, np.int64)
    duration[receives] = 0
    flight = np.zeros(program.n_messages, np.int64)
    if program.n_messages:
        num, den = link_rates(mesh)
        first = paths.route_links[paths.route_ptr[:-1][paths.index]]
        duration[sends] = serialisation_ps(program.size_bytes, num[first], den[first])
        flight = message_ps(mesh, paths, program.size_bytes)

    op_of_dep = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    order_of_edges = np.argsort(program.dep, kind="stable")
    successor = op_of_dep[order_of_edges]
    successor_ptr = np.searchsorted(program.dep[order_of_edges], np.arange(program.n_ops + 1))
    missing = np.diff(program.dep_ptr) + (program.kind == OpKind.RECV)
    start, end, arrival = (np.zeros(program.n_ops, np.int64) for _ in range(3))
    wave, n_done = np.flatnonzero(missing == 0), 0
    while wave.size:
        n_done += wave.size
        end[wave] = np.maximum(start[wave] + duration[wave], arrival[wave])
        message = program.message[wave[program.kind[wave] == OpKind.SEND]]
        arrival[receives[message]] = start[sends[message]] + flight[message]
        edge = _ranges(successor_ptr[wave], successor_ptr[wave + 1])
        after = successor[edge]
        np.maximum.at(start, after, np.repeat(end[wave], successor_ptr[wave + 1] - successor_ptr[wave]))
        touched = np.concatenate([after, receives[message]])
        np.subtract.at(missing, touched, 1)
        touched = np.unique(touched)
        wave = touched[missing[touched] == 0]
    if n_done < program.n_ops:
        raise ScheduleError(f"{program.n_ops - n_done} of {program.n_ops} ops never become ready")
    return OpTimes(start_ps=start, end_ps=end)


def _ranges(start: Ints, stop: Ints) -> Ints:
    """The numbers of all ranges start[i] <= x < stop[i], one range after the other."""
    length = stop - start
    before = np.cumsum(length) - length
    return np.asarray(np.arange(length.sum()) + np.repeat(start - before, length), np.int64)
