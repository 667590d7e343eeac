"""Time a Program or independent messages on a mesh, on one rank or on many with the same result."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.comm import Comm
from meshemu.errors import InputError, MeshemuError, ScheduleError
from meshemu.hardware import Router
from meshemu.mesh import Mesh, Order, lookahead_ps, ranks_of_vertices
from meshemu.network import state as fields
from meshemu.network.after import find_after
from meshemu.network.compiling import compiled_once, notice
from meshemu.network.credit import BackPressure, back_pressure, run_routers
from meshemu.network.engine import Region
from meshemu.network.inputs import network_of, work_of
from meshemu.network.kernels import run
from meshemu.network.merging import joined_rows, own_rows, rows_of
from meshemu.network.prepare import Job, messages_job, program_job
from meshemu.network.results import EngineCounters, LinkStats, MessageTimes, OpTimes, RankCounters, Timeline, Timing
from meshemu.network.shares import Share, no_ops, share_of
from meshemu.network.window import WindowCounts, run_windows
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import OpKind, Program
from meshemu.program.units import Units

__all__ = ["simulate_messages", "time_program"]

Ints = NDArray[np.int64]

NAMED_OPS = 5  # how many stuck ops an error names


def time_program(
    program: Program,
    mesh: Mesh,
    duration_ps: ArrayLike,
    *,
    packet_bytes: int = 4096,
    order: Order = "xy",
    timeline_bins: int = 64,
    router: Router | None = None,
    message_class: ArrayLike = 0,
    units: Units | None = None,
    comm: Comm | None = None,
) -> Timing:
    """Virtual time of every op and message of a Program under contention.

    duration_ps: int64[n_ops], how long ops take, SEND and RECV apart. packet_bytes: accuracy against speed. comm: ranks
    that share the work, each of which passes the same arguments and gets the same result; None for one. The start of an
    op is when it takes its unit, if it has one, else when its dependencies have ended (0 if it has none). router:
    back-pressure mode, with such routers and finite buffers (see `network.credit`); None: unbounded FIFOs.
    message_class: there, of each message (or of all), 0 <= class < router.message_classes. units: which unit each op
    takes; None for one that computes and one that combines.

    Raises InputError for arguments that do not fit, ScheduleError for a Program that is inconsistent or never ends.
    """
    job = program_job(program, mesh, duration_ps, packet_bytes, order, units, comm)
    done = _simulate(job, timeline_bins, comm, back_pressure(job, router, message_class, order))
    return Timing(
        end_ps=done.end_ps,
        ops=OpTimes(start_ps=done.op_start, end_ps=done.op_end),
        depart_ps=done.depart,
        arrival_ps=done.arrival,
        links=done.links,
        timeline=done.timeline,
        counters=done.counters,
    )


def simulate_messages(
    mesh: Mesh,
    src: ArrayLike,
    dst: ArrayLike,
    size_bytes: ArrayLike,
    ready_ps: ArrayLike = 0,
    *,
    packet_bytes: int = 4096,
    order: Order = "xy",
    timeline_bins: int = 0,
    router: Router | None = None,
    message_class: ArrayLike = 0,
    comm: Comm | None = None,
) -> MessageTimes:
    """Virtual time of independent messages under contention, in the order of the rows.

    src, dst: device ids; size_bytes >= 1; ready_ps >= 0: one list each, or one number for all rows. The order of the
    rows changes nothing: which of two messages that meet goes first follows from what they are (`row_order`). Other
    arguments as in `time_program`. With a router, a device may send to itself: through its own router.

    Raises InputError, with the row number, for a message that cannot be sent.
    """
    job = messages_job(mesh, src, dst, size_bytes, ready_ps, packet_bytes, order, to_self=router is not None)
    done = _simulate(job, timeline_bins, comm, back_pressure(job, router, message_class, order))
    return MessageTimes(
        depart_ps=done.depart, arrival_ps=done.arrival, links=done.links, timeline=done.timeline, counters=done.counters
    )


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Results of all ranks together."""

    end_ps: int
    op_start: Ints
    op_end: Ints
    depart: Ints
    arrival: Ints
    links: LinkStats
    timeline: Timeline
    counters: EngineCounters


def _simulate(job: Job, n_bins: int, comm: Comm | None, pressure: BackPressure | None) -> _Outcome:
    """Run a job on the ranks of `comm`.

    Where a cut link has no latency there is no lookahead, and in back-pressure mode too little, since credits are
    answered within a cycle: then rank 0 runs the job alone and tells the others.
    """
    if n_bins < 0:
        raise InputError(f"timeline_bins = {n_bins} must be at least 0")
    if comm is None or comm.size == 1:
        return _run(job, np.zeros(job.mesh.n_vertices, np.int32), n_bins, None, None, pressure)
    compiled_once(lambda: _first_use(job.mesh), comm)
    rank_of_vertex = ranks_of_vertices(job.mesh, comm.size)
    lookahead = lookahead_ps(job.mesh, rank_of_vertex)
    if lookahead != 0 and pressure is None:
        return _run(job, rank_of_vertex, n_bins, comm, lookahead, None)
    return _on_first_rank(job, n_bins, comm, pressure)


def _on_first_rank(job: Job, n_bins: int, comm: Comm, pressure: BackPressure | None) -> _Outcome:
    outcome: _Outcome | MeshemuError | None = None
    if comm.rank == 0:
        try:
            outcome = _simulate(job, n_bins, None, pressure)
        except MeshemuError as error:
            outcome = error
    outcome = comm.broadcast(outcome)
    if isinstance(outcome, MeshemuError):
        raise outcome
    assert outcome is not None
    return outcome


def _first_use(mesh: Mesh) -> None:
    """Use every kernel once, on a Program without ops."""
    job = program_job(ProgramBuilder(mesh.n_devices).build(), mesh, [], 1, "xy")
    _run(job, np.zeros(mesh.n_vertices, np.int32), 1, None, 1, None)
    rows = rows_of(np.zeros(1, np.int32), np.zeros(1, np.int32), 1)
    joined_rows(own_rows(np.zeros(1, np.int64), rows, 0), rows, None)


def _run(
    job: Job, rank_of_vertex: NDArray[np.int32], n_bins: int, comm: Comm | None, lookahead: int | None,
    pressure: BackPressure | None,
) -> _Outcome:
    rank = 0 if comm is None else comm.rank
    program = job.program
    share = no_ops() if program is None else share_of(program, rank_of_vertex, rank, 1 if comm is None else comm.size)
    network = network_of(job, rank_of_vertex, lookahead)
    work, crossing = work_of(job, rank_of_vertex, rank, share)
    if program is not None and lookahead is not None:
        find_after(network, work, crossing, rank, comm)
    region = Region(
        network,
        work,
        share,
        n_devices=job.mesh.n_devices,
        packet_bytes=job.packet_bytes,
        rank=rank,
        n_ranks=0 if comm is None or lookahead is None else comm.size,
        n_bins=n_bins,
    )
    began = time.perf_counter()
    if pressure is None:
        with notice(run):
            counts = run_windows(region, comm, lookahead)
    else:
        counts = run_routers(region, job, pressure)
    wall_s = time.perf_counter() - began
    if program is not None:
        _check_ended(program, share, region.state.waiting > 0, comm)
    return _combined(job, share, region, counts, wall_s, rank_of_vertex, comm)


def _check_ended(program: Program, share: Share, waits: NDArray[np.bool_], comm: Comm | None) -> None:
    """Raise ScheduleError on every rank if ops of any rank still wait; waits: bool[n_own]."""
    n_waiting = int(waits.sum())
    n_stuck = n_waiting if comm is None else int(comm.sum(np.array([n_waiting]))[0])
    if n_stuck == 0:
        return
    stuck = np.flatnonzero(share.number >= 0)[waits][:NAMED_OPS]
    first = [stuck] if comm is None else comm.all_gather(stuck)
    kind, label, device = program.kind, program.label, program.device
    named = ", ".join(
        f"op {op} ({OpKind(kind[op]).name} {program.labels[label[op]]!r} on device {device[op]})"
        for op in np.sort(np.concatenate(first))[:NAMED_OPS]
    )
    raise ScheduleError(f"{n_stuck} of {program.n_ops} ops never become ready: {named}")


def _combined(
    job: Job, share: Share, region: Region, counts: WindowCounts, wall_s: float, rank_of_vertex: NDArray[np.int32],
    comm: Comm | None,
) -> _Outcome:
    """Join what the ranks know."""
    state = region.state
    end = int(max(state.end.max(initial=0), state.arrival.max(initial=0)))
    end = end if comm is None else comm.max(end)
    bin_ps = region.widen_bins(end)
    link_fields = [fields.CARRIED, fields.BUSY, fields.WAIT, fields.PACKETS, fields.QUEUE_MAX]
    links, bins = np.ascontiguousarray(state.link[:, link_fields]), state.busy_bins
    op_start, op_end, depart, arrival = state.start, state.end, state.depart, state.arrival
    events, hops = (int(state.scalar[field]) for field in (fields.EVENTS, fields.HOPS))
    ranks = [RankCounters(events, counts.sent, counts.busy_s)]
    if comm is not None:
        if job.program is not None:
            op_start, op_end = (joined_rows(own, share.rows, comm) for own in (op_start, op_end))
        sent, received, of_links = (
            rows_of(vertex, rank_of_vertex, comm.size) for vertex in (job.src, job.dst, job.mesh.link_src)
        )
        depart, arrival, links, bins = (
            joined_rows(own_rows(values, rows, comm.rank), rows, comm)
            for values, rows in ((depart, sent), (arrival, received), (links, of_links), (bins, of_links))
        )
        hops = int(comm.sum(np.array([hops]))[0])
        ranks = comm.all_gather(ranks[0])
    if job.reordered:
        depart, arrival = depart[job.departs_with], arrival[job.arrives_with]
    carried, busy, wait, packets, max_queue = np.ascontiguousarray(links.T)
    return _Outcome(
        end_ps=end,
        op_start=op_start,
        op_end=op_end,
        depart=depart,
        arrival=arrival,
        links=LinkStats(bytes=carried, busy_ps=busy, wait_ps=wait, packets=packets, max_queue=max_queue),
        timeline=Timeline(bin_ps=bin_ps, link_busy_ps=bins.T),
        counters=EngineCounters(
            events=sum(rank.events for rank in ranks),
            packet_hops=hops,
            windows=counts.windows,
            wall_s=wall_s,
            ranks=tuple(ranks),
        ),
    )
