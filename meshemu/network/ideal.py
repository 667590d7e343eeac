"""Contention-free time of a Program: the longest path through its ops, every unit and link there for each op alone.

A lower bound on what `time_program` finds, computed without the engine; the difference is what contention costs. A SEND
ends when its first link has carried the message, a RECV ends one `mesh.message_ps` after its SEND started; of a tree,
`mesh.trees_ps` of each member after that member's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import ScheduleError
from meshemu.mesh import Mesh, Order, link_rates, message_ps, message_routes, serialisation_ps, trees_ps
from meshemu.network.results import OpTimes
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees, routed_trees

__all__ = ["LoneMessages", "contention_free", "lone_messages"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LoneMessages:
    """What messages take alone, int64[n] each, in ps: until the tail is on the first link; and from when a message is
    ready until it has arrived, in latency (merges of a reduction included) and serialisation.
    """

    first_ps: Ints
    latency_ps: Ints
    serialisation_ps: Ints


def contention_free(program: Program, mesh: Mesh, duration_ps: ArrayLike, *, order: Order = "xy") -> OpTimes:
    """Start and end of every op without contention, int64[n_ops] each; the step takes end_ps.max().

    duration_ps: int64[n_ops], for COMPUTE and REDUCE. Raises ScheduleError if ops wait for each other in a circle.
    """
    sends, receives = program.send_op, program.recv_op
    duration = np.array(duration_ps, np.int64)
    duration[receives] = duration[sends] = 0
    flight = np.zeros(program.n_messages, np.int64)
    if program.n_messages:
        lone = lone_messages(program, mesh, np.arange(program.n_messages), order)
        flight = lone.latency_ps + lone.serialisation_ps
        np.maximum.at(duration, sends, lone.first_ps)

    op_of_dep = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    order_of_edges = np.argsort(program.dep, kind="stable")
    successor = op_of_dep[order_of_edges]
    successor_ptr = np.searchsorted(program.dep[order_of_edges], np.arange(program.n_ops + 1))
    by_send = np.argsort(sends, kind="stable")
    send_ptr = np.searchsorted(sends[by_send], np.arange(program.n_ops + 1))
    missing = np.diff(program.dep_ptr) + np.bincount(receives, minlength=program.n_ops)
    start, end, arrival = (np.zeros(program.n_ops, np.int64) for _ in range(3))
    wave, n_done = np.flatnonzero(missing == 0), 0
    while wave.size:
        n_done += wave.size
        end[wave] = np.maximum(start[wave] + duration[wave], arrival[wave])
        message = by_send[_ranges(send_ptr[wave], send_ptr[wave + 1])]
        np.maximum.at(arrival, receives[message], start[sends[message]] + flight[message])
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


def lone_messages(program: Program, mesh: Mesh, message: ArrayLike, order: Order = "xy") -> LoneMessages:
    """What messages of a verified Program, given by their ids, take where nothing else is on the mesh."""
    wanted = np.asarray(message, np.int64)
    found = message_trees(program)
    first, latency, flight = np.zeros((3, program.n_messages), np.int64)
    num, den = link_rates(mesh)
    alone = np.unique(wanted[found.alone[wanted]])
    paths = message_routes(mesh, program.src[alone], program.dst[alone], program.size_bytes[alone], order)
    first[alone] = paths.route_links[paths.route_ptr[:-1][paths.index]]
    latency[alone] = message_ps(mesh, paths, 0)
    flight[alone] = message_ps(mesh, paths, program.size_bytes[alone])
    if not found.alone[wanted].all():
        routed = routed_trees(program, mesh, found, order)
        at_root = routed.from_root(np.arange(len(routed.link)), np.minimum)  # inner edges have lower numbers
        edge = np.where(found.outward[found.tree], at_root[routed.leaf], routed.leaf)
        first[found.member] = routed.link[edge]
        latency[found.member] = trees_ps(mesh, routed, np.zeros(found.n_trees, np.int64))
        flight[found.member] = trees_ps(mesh, routed, program.size_bytes[found.first])
    link = first[wanted]
    return LoneMessages(
        first_ps=serialisation_ps(program.size_bytes[wanted], num[link], den[link]),
        latency_ps=latency[wanted],
        serialisation_ps=(flight - latency)[wanted],
    )


def _ranges(start: Ints, stop: Ints) -> Ints:
    """The numbers of all ranges start[i] <= x < stop[i], one range after the other."""
    length = stop - start
    before = np.cumsum(length) - length
    return np.asarray(np.arange(length.sum()) + np.repeat(start - before, length), np.int64)
