"""`reference` with the face of `timing`: the same arguments, checks and results, in plain Python on one rank.

What takes messages or a Program to be timed can be given these functions instead, as tests do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.mesh import Mesh, Order, message_routes, rate
from meshemu.network.prepare import messages_job
from meshemu.network.reference import Reference, ReferenceLink, ReferenceOp, ReferenceTree
from meshemu.network.results import EngineCounters, LinkStats, MessageTimes, OpTimes, Timeline, Timing
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees, routed_trees
from meshemu.program.units import Units, one_thread_each

__all__ = ["reference_messages", "reference_program"]

Ints = NDArray[np.int64]

FIRST_BIN_PS = 1024


def reference_messages(
    mesh: Mesh, src: ArrayLike, dst: ArrayLike, size_bytes: ArrayLike, ready_ps: ArrayLike = 0, *,
    packet_bytes: int = 4096, order: Order = "xy", timeline_bins: int = 0,
) -> MessageTimes:
    """Virtual time of independent messages, as `timing.simulate_messages`; any order of the rows gives the same."""
    job = messages_job(mesh, src, dst, size_bytes, ready_ps, packet_bytes, order)
    way = [job.routes.links(int(index)).tolist() for index in job.routes.index]
    model = Reference(_links(mesh), job.size_bytes.tolist(), way, job.ready_ps.tolist(), [], packet_bytes)
    model.run()
    message = np.arange(len(way))
    depart = _scattered(model.depart, message)[job.departs_with]
    arrival = _scattered(model.arrival, message)[job.arrives_with]
    return MessageTimes(
        depart_ps=depart,
        arrival_ps=arrival,
        links=_statistics(model.links),
        timeline=_timeline(model.links, timeline_bins, int(arrival.max(initial=0))),
        counters=_counters(model),
    )


def reference_program(
    program: Program, mesh: Mesh, duration_ps: ArrayLike, *, packet_bytes: int = 4096, order: Order = "xy",
    timeline_bins: int = 0, units: Units | None = None,
) -> Timing:
    """Virtual time of a verified Program, as `timing.time_program`, multicasts and reductions in the network included.

    Raises InputError for a tree on a mesh whose routers cannot fork or merge.
    """
    duration = np.asarray(duration_ps, np.int64).tolist()
    units = one_thread_each(program) if units is None else units
    found = message_trees(program)
    routed = routed_trees(program, mesh, found, order)
    alone = np.flatnonzero(found.alone)
    way = message_routes(mesh, program.src[alone], program.dst[alone], program.size_bytes[alone], order)
    links_of: dict[int, list[int]] = {int(m): way.links(int(i)).tolist() for m, i in zip(alone, way.index, strict=True)}
    links_of |= {int(message): routed.path(member) for member, message in enumerate(found.member)}
    ops = [
        ReferenceOp(
            int(program.kind[op]), int(program.device[op]), duration[op],
            program.dep[program.dep_ptr[op] : program.dep_ptr[op + 1]].tolist(), int(program.message[op]),
            int(units.of_op[op]),
        )
        for op in range(program.n_ops)
    ]
    model = Reference(
        _links(mesh), program.size_bytes.tolist(), [links_of[message] for message in range(program.n_messages)],
        [None] * program.n_messages, ops, packet_bytes,
        [
            ReferenceTree(found.member[found.tree == tree].tolist(), bool(outward))
            for tree, outward in enumerate(found.outward)
        ],
        mesh.combine_ps,
        units.combining,
    )
    model.run()
    messages, ids = np.arange(program.n_messages), np.arange(program.n_ops)
    start, end = _scattered(model.op_start, ids), _scattered(model.op_end, ids)
    return Timing(
        end_ps=int(end.max(initial=0)),
        ops=OpTimes(start_ps=start, end_ps=end),
        depart_ps=_scattered(model.depart, messages),
        arrival_ps=_scattered(model.arrival, messages),
        links=_statistics(model.links),
        timeline=_timeline(model.links, timeline_bins, int(end.max(initial=0))),
        counters=_counters(model),
    )


def _links(mesh: Mesh) -> list[ReferenceLink]:
    return [
        ReferenceLink(*rate(int(bandwidth)), int(latency))
        for bandwidth, latency in zip(mesh.bandwidth_bytes_per_s, mesh.latency_ps, strict=True)
    ]


def _scattered(times: dict[int, int], row: Ints) -> Ints:
    """times[i] at index row[i]."""
    result = np.zeros(len(row), np.int64)
    result[row] = [times[i] for i in range(len(row))]
    return result


def _statistics(links: Sequence[ReferenceLink]) -> LinkStats:
    def column(values: list[int]) -> Ints:
        return np.array(values, np.int64)

    return LinkStats(
        bytes=column([link.bytes for link in links]),
        busy_ps=column([sum(end - start for start, end in link.busy) for link in links]),
        wait_ps=column([link.wait_ps for link in links]),
        packets=column([link.packets for link in links]),
        max_queue=column([link.max_queue for link in links]),
    )


def _timeline(links: Sequence[ReferenceLink], n_bins: int, end_ps: int) -> Timeline:
    width = FIRST_BIN_PS
    while n_bins and n_bins * width < end_ps:
        width *= 2
    edges = range(0, n_bins * width, width)
    busy = [
        [sum(max(0, min(end, low + width) - max(start, low)) for start, end in link.busy) for link in links]
        for low in edges
    ]
    return Timeline(bin_ps=width, link_busy_ps=np.array(busy, np.int64).reshape(n_bins, len(links)))


def _counters(model: Reference) -> EngineCounters:
    return EngineCounters(events=0, packet_hops=model.n_packet_hops, windows=0, wall_s=0.0)
