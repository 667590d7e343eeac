"""From messages, Programs and meshes to a Job; whatever the kernels rely on is checked here."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.comm import Comm
from meshemu.errors import InputError
from meshemu.mesh import Mesh, Order, Routes, link_rates, message_routes, routes
from meshemu.network.arguments import LARGEST, check_ends, integers, packet_size
from meshemu.network.branches import Branches, branches, no_branches
from meshemu.network.checks import check_program
from meshemu.network.compiled import writable
from meshemu.network.events import MAX_PACKETS
from meshemu.network.pairs import distinct_pairs
from meshemu.network.row_order import row_order
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees, routed_trees
from meshemu.program.units import NO_UNIT, Units, one_thread_each

__all__ = ["LARGEST_PS", "Job", "messages_job", "program_job"]

Ints = NDArray[np.int64]

LARGEST_PS = LARGEST
MOST_UNITS = 1024  # of a device: far more than it has


@dataclass(frozen=True, eq=False)
class Job:
    """Messages with their routes, and the Program that sends them (None: each message departs at ready_ps).

    alone: int64[n_alone], the messages that are in no tree; routes: theirs; branches: those of the trees. num, den:
    rate of every link in ps per byte, as a fraction. units: which unit each op takes. departs_with, arrives_with:
    int64[n_messages], the message under which the kernels note the times of each: of independent messages, which they
    take in the order of `row_order`, that of each row.
    """

    mesh: Mesh
    alone: Ints
    routes: Routes
    branches: Branches
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    size_bytes: Ints
    ready_ps: Ints
    program: Program | None
    duration_ps: Ints
    units: Units
    packet_bytes: int
    num: Ints
    den: Ints
    departs_with: Ints
    arrives_with: Ints

    @property
    def reordered(self) -> bool:
        """Whether the kernels note times of messages under other numbers than their own."""
        return self.program is None or len(self.branches.member) > 0


def messages_job(
    mesh: Mesh,
    src: ArrayLike,
    dst: ArrayLike,
    size_bytes: ArrayLike,
    ready_ps: ArrayLike,
    packet_bytes: int,
    order: Order,
    *,
    to_self: bool = False,
) -> Job:
    """Independent messages. Raises InputError with the row number for anything that cannot be sent.

    to_self: devices may send to themselves; without injection and ejection links such a message has no links.
    """
    arrays = {"src": integers("src", src, "row"), "dst": integers("dst", dst, "row")}
    arrays["size_bytes"] = integers("size_bytes", size_bytes, "row", 1)
    arrays["ready_ps"] = integers("ready_ps", ready_ps, "row", 0)
    lengths = {name: len(values) for name, values in arrays.items() if values.ndim == 1}
    if len(set(lengths.values())) > 1:
        raise InputError("lengths differ: " + ", ".join(f"{name} has {n} rows" for name, n in lengths.items()))
    n = next(iter(lengths.values()), 1)
    sources, targets, size, ready = (np.broadcast_to(values, n) for values in arrays.values())
    check_ends(mesh, sources, targets, to_self)
    src, dst = writable(sources, np.int32), writable(targets, np.int32)
    num, den = link_rates(mesh)
    row = np.arange(n)
    return _in_order(
        _checked(
            Job(
                mesh=mesh,
                alone=row,
                routes=_routes(mesh, src, dst, size, order, "row {}".format, to_self),
                branches=no_branches(),
                src=src,
                dst=dst,
                size_bytes=size,
                ready_ps=ready,
                program=None,
                duration_ps=np.zeros(0, np.int64),
                units=Units(np.zeros(0, np.int32)),
                packet_bytes=packet_size(packet_bytes),
                num=num,
                den=den,
                departs_with=row,
                arrives_with=row,
            )
        )
    )


def program_job(
    program: Program,
    mesh: Mesh,
    duration_ps: ArrayLike,
    packet_bytes: int,
    order: Order,
    units: Units | None = None,
    comm: Comm | None = None,
) -> Job:
    """A Program and how long its ops take, int64[n_ops] (those of SEND and RECV are ignored).

    units: which unit each op takes; None: as `one_thread_each`. comm: ranks that share the checks.

    Raises InputError for durations, units, devices or trees that do not fit, ScheduleError if the Program itself is
    inconsistent.
    """
    duration = integers("duration_ps", duration_ps, "op", 0)
    if duration.shape != (program.n_ops,):
        raise InputError(f"duration_ps has shape {duration.shape}, the Program has {program.n_ops} ops")
    if units is None:
        units = one_thread_each(program)
    else:
        _check_units(units, program.n_ops)
    if program.n_devices != mesh.n_devices:
        raise InputError(f"the Program is for {program.n_devices} devices, the mesh has {mesh.n_devices}")
    has_trees = check_program(program, comm)
    size = integers("size_bytes", program.size_bytes, "message", 1)
    num, den = link_rates(mesh)
    alone = departs_with = arrives_with = np.arange(program.n_messages)
    ends, forking = (program.src, program.dst, size), no_branches()
    if has_trees:
        found = message_trees(program)
        forking = branches(found, routed_trees(program, mesh, found, order))
        alone = np.flatnonzero(found.alone)
        ends = (program.src[alone], program.dst[alone], size[alone])
        departs_with, arrives_with = departs_with.copy(), arrives_with.copy()
        departs_with[forking.member], arrives_with[forking.member] = forking.departs_with, forking.arrives_with
    return _checked(
        Job(
            mesh=mesh,
            alone=alone,
            routes=_routes(mesh, *ends, order, lambda i: f"message {alone[i]}"),
            branches=forking,
            src=program.src,
            dst=program.dst,
            size_bytes=size,
            ready_ps=np.broadcast_to(np.int64(0), program.n_messages),
            program=program,
            duration_ps=duration,
            units=units,
            packet_bytes=packet_size(packet_bytes),
            num=num,
            den=den,
            departs_with=departs_with,
            arrives_with=arrives_with,
        )
    )


def _check_units(units: Units, n_ops: int) -> None:
    """Raises InputError for units that are none of a device's."""
    if units.of_op.shape != (n_ops,):
        raise InputError(f"units.of_op has shape {units.of_op.shape}, the Program has {n_ops} ops")
    if units.combining < 1:
        raise InputError(f"units.combining = {units.combining} must be at least 1")
    wrong = (units.of_op < NO_UNIT) | (units.of_op >= MOST_UNITS)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(f"op {at}: unit {units.of_op[at]} must be {NO_UNIT} (none) or in [0, {MOST_UNITS})")


def _routes(
    mesh: Mesh, src: NDArray[np.int32], dst: NDArray[np.int32], size_bytes: Ints, order: Order,
    name: Callable[[int], str], to_self: bool = False,
) -> Routes:
    """As `mesh.message_routes`; where sizes have no say, it is given each distinct pair once, under the first message
    that has it.
    """
    if mesh.z_plane is not None:
        return message_routes(mesh, src, dst, size_bytes, order, to_self=to_self, name=name)
    src, dst = writable(src, np.int32), writable(dst, np.int32)
    first, pair = distinct_pairs(src, dst)
    found = routes(mesh, src[first], dst[first], order, to_self=to_self, name=lambda i: name(int(first[i])))
    return replace(found, index=found.index[pair])


def _in_order(job: Job) -> Job:
    """Independent messages in the order that breaks ties between them, whatever the order of their rows."""
    row = row_order(job.mesh.n_devices, job.src, job.dst, job.size_bytes, job.ready_ps)
    message = np.empty_like(row)
    message[row] = np.arange(len(row))
    return replace(
        job,
        routes=replace(job.routes, index=job.routes.index[row]),
        src=job.src[row],
        dst=job.dst[row],
        size_bytes=job.size_bytes[row],
        ready_ps=job.ready_ps[row],
        departs_with=message,
        arrives_with=message,
    )


def _checked(job: Job) -> Job:
    """Raises InputError, naming the row, if a time or a packet index could leave its integer type."""
    row = "message" if job.program else "row"
    size = job.size_bytes
    largest = int(size.max(initial=0))
    most_packets = -(-largest // job.packet_bytes)
    if most_packets >= MAX_PACKETS:
        longest = int(np.argmax(size))
        raise InputError(
            f"{row} {longest}: {size[longest]} bytes / packet_bytes {job.packet_bytes} = {most_packets} packets, "
            f"at most {MAX_PACKETS - 1} are possible"
        )
    if float(largest) * float(job.num.max(initial=0)) >= LARGEST_PS:
        slowest = _slowest(job)
        product = slowest * size.astype(np.float64)
        at = int(np.argmax(product)) if len(size) else 0
        if product.max(initial=0) >= LARGEST_PS:
            raise InputError(
                f"{row} {at}: {size[at]} bytes x {slowest[at]} (numerator of the slowest link's ps per byte) >= 2**62"
            )
    if _surely_fits(job, largest):
        return job
    alone_ps = _alone(job)
    total = float(alone_ps.sum()) + float(job.ready_ps.max(initial=0)) + float(job.duration_ps.sum(dtype=np.float64))
    if total >= LARGEST_PS:
        times_ps = np.concatenate((alone_ps + job.ready_ps, job.duration_ps))
        at = int(np.argmax(times_ps))
        name = f"{row} {at}" if at < len(size) else f"op {at - len(size)}"
        raise InputError(
            f"{name}: takes until {times_ps[at]:.3g} ps, and all messages and ops one after the other {total:.3g} ps; "
            "at most 2**62 can be timed"
        )
    return job


def _surely_fits(job: Job, largest: int) -> bool:
    """Whether all messages and ops one after the other fit in LARGEST_PS, by a bound that is quick to find."""
    slowest = float((job.num / job.den).max(initial=0)) + 1
    per_link = slowest * largest + float(job.mesh.latency_ps.max(initial=0)) + job.mesh.combine_ps
    longest_route = int(np.diff(job.routes.route_ptr).max(initial=0)) + len(job.branches.link)
    ops_ps = float(job.duration_ps.max(initial=0)) * len(job.duration_ps)
    total = per_link * longest_route * len(job.size_bytes) + float(job.ready_ps.max(initial=0)) + ops_ps
    return bool(total < LARGEST_PS)


def _slowest(job: Job) -> Ints:
    """The greatest `num` among the links of each message (of a tree: of the first)."""
    paths, found = job.routes, np.zeros(len(job.size_bytes), np.int64)
    of_route = np.zeros(paths.n_routes, np.int64)
    np.maximum.at(of_route, np.repeat(np.arange(paths.n_routes), np.diff(paths.route_ptr)), job.num[paths.route_links])
    found[job.alone] = of_route[paths.index]
    linked = job.branches.link >= 0
    np.maximum.at(found, job.branches.flow_of_row[linked], job.num[job.branches.link[linked]])
    return found


def _alone(job: Job) -> NDArray[np.float64]:
    """An upper bound of the time of each message in ps (of a tree: of the first), one link after the other."""
    paths, latency, size = job.routes, job.mesh.latency_ps, job.size_bytes.astype(np.float64)
    rate = job.num / job.den + 1
    route, links = np.repeat(np.arange(paths.n_routes), np.diff(paths.route_ptr)), paths.route_links
    per_byte, fixed = (np.bincount(route, each[links], paths.n_routes)[paths.index] for each in (rate, latency))
    found = np.zeros(len(size))
    found[job.alone] = per_byte * size[job.alone] + fixed
    linked = job.branches.link >= 0
    branch, flow = job.branches.link[linked], job.branches.flow_of_row[linked]
    np.add.at(found, flow, rate[branch] * size[flow] + latency[branch] + job.mesh.combine_ps)
    return found
