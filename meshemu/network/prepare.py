"""From messages, Programs and meshes to the arrays of the kernels; whatever the kernels rely on is checked here."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import InputError, ScheduleError
from meshemu.mesh import Mesh, Order, Routes, link_rates, routes
from meshemu.network import kernels
from meshemu.network.state import Network, Work
from meshemu.program.ir import OpKind, Program

__all__ = ["Job", "messages_job", "network_of", "program_job", "work_of"]

Ints = NDArray[np.int64]
Integer = TypeVar("Integer", bound=np.signedinteger[Any])

LARGEST_PS = 2**62


@dataclass(frozen=True, eq=False)
class Job:
    """Messages with their routes, and the Program that sends them (None: each message departs at ready_ps)."""

    mesh: Mesh
    routes: Routes
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    size_bytes: Ints
    ready_ps: Ints
    program: Program | None
    duration_ps: Ints
    packet_bytes: int


def messages_job(
    mesh: Mesh,
    src: ArrayLike,
    dst: ArrayLike,
    size_bytes: ArrayLike,
    ready_ps: ArrayLike,
    packet_bytes: int,
    order: Order,
) -> Job:
    """Independent messages. Raises InputError with the row number for anything that cannot be sent."""
    columns = {"src": src, "dst": dst, "size_bytes": size_bytes, "ready_ps": ready_ps}
    arrays = {name: _integers(name, values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in arrays.items() if values.ndim == 1}
    if len(set(lengths.values())) > 1:
        raise InputError("lengths differ: " + ", ".join(f"{name} has {n} rows" for name, n in lengths.items()))
    n = next(iter(lengths.values()), 1)
    ready, size = (np.broadcast_to(arrays[name], n).astype(np.int64) for name in ("ready_ps", "size_bytes"))
    sources, targets = (np.broadcast_to(arrays[name], n) for name in ("src", "dst"))
    _require_least("row", "ready_ps", ready, 0)
    _require_least("row", "size_bytes", size, 1)
    _check_ends(mesh, sources, targets)
    nothing = np.zeros(0, np.int64)
    return _checked(
        Job(
            mesh=mesh,
            routes=routes(mesh, sources, targets, order),
            src=sources.astype(np.int32),
            dst=targets.astype(np.int32),
            size_bytes=size,
            ready_ps=ready,
            program=None,
            duration_ps=nothing,
            packet_bytes=packet_bytes,
        )
    )


def program_job(program: Program, mesh: Mesh, duration_ps: ArrayLike, packet_bytes: int, order: Order) -> Job:
    """A Program and how long its ops take, int64[n_ops] (those of SEND and RECV are ignored).

    Raises InputError for durations or devices that do not fit, ScheduleError if the Program itself is inconsistent.
    """
    duration = _integers("duration_ps", duration_ps)
    if duration.shape != (program.n_ops,):
        raise InputError(f"duration_ps has shape {duration.shape}, the Program has {program.n_ops} ops")
    if program.n_devices != mesh.n_devices:
        raise InputError(f"the Program is for {program.n_devices} devices, the mesh has {mesh.n_devices}")
    _require_least("op", "duration_ps", duration, 0)
    _check_program(program)
    _require_least("message", "size_bytes", program.size_bytes, 1)
    return _checked(
        Job(
            mesh=mesh,
            routes=routes(mesh, program.src, program.dst, order),
            src=program.src,
            dst=program.dst,
            size_bytes=program.size_bytes,
            ready_ps=np.zeros(0, np.int64),
            program=program,
            duration_ps=duration.astype(np.int64),
            packet_bytes=packet_bytes,
        )
    )


def network_of(job: Job, rank_of_device: NDArray[np.int32]) -> Network:
    """Links and routes for the kernels; a link belongs to the rank of its source device."""
    num, den = link_rates(job.mesh)
    return Network(
        num=num,
        den=den,
        latency=_writable(job.mesh.latency_ps, np.int64),
        owner=rank_of_device[job.mesh.link_src].astype(np.int64),
        route_links=_closed(job.routes),
    )


def work_of(job: Job, rank_of_device: NDArray[np.int32], rank: int) -> Work:
    """Messages and ops for the kernels of one rank."""
    program, n = job.program, len(job.size_bytes)
    first = job.routes.route_ptr[:-1] + np.arange(job.routes.n_routes)
    route = first[job.routes.index].astype(np.int64)
    if program is None:
        none = np.full(n, -1, np.int64)
        own = np.flatnonzero(rank_of_device[job.src] == rank)
        own = own[np.argsort(job.ready_ps[own], kind="stable")]
        start = np.stack([job.ready_ps[own], own << kernels.PACKET_BITS, route[own], job.ready_ps[own]], axis=1)
        successor_ptr, successor = np.zeros(2, np.int64), np.zeros(0, np.int64)
    else:
        start = np.zeros((0, 4), np.int64)
        dep_ptr, dep = _writable(program.dep_ptr, np.int64), _writable(program.dep, np.int64)
        successor_ptr, successor = np.zeros(program.n_ops + 2, np.int64), np.empty(len(dep), np.int64)
        kernels.invert(dep_ptr, dep, successor_ptr, successor)
    return Work(
        size=_writable(job.size_bytes, np.int64),
        route=route,
        send_op=none if program is None else _writable(program.send_op, np.int64),
        recv_op=none if program is None else _writable(program.recv_op, np.int64),
        dst_owner=rank_of_device[job.dst].astype(np.int64),
        kind=_writable(np.zeros(0) if program is None else program.kind, np.int8),
        device=_writable(np.zeros(0) if program is None else program.device, np.int32),
        duration=_writable(job.duration_ps, np.int64),
        message=_writable(np.zeros(0) if program is None else program.message, np.int64),
        successor_ptr=successor_ptr,
        successor=successor,
        start=np.ascontiguousarray(start),
    )


def _writable(values: NDArray[Any], dtype: type[Integer]) -> NDArray[Integer]:
    """Contiguous and writable: the compiler would make a second version of each kernel for read-only arrays."""
    return np.require(values, dtype, ["C", "W"])


def _closed(routes: Routes) -> Ints:
    """The links of all routes with -1 after each route, so that a packet needs no lookup to see its last hop."""
    closed = np.full(len(routes.route_links) + routes.n_routes, -1, np.int64)
    route = np.repeat(np.arange(routes.n_routes), np.diff(routes.route_ptr))
    closed[np.arange(len(routes.route_links)) + route] = routes.route_links
    return closed


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise InputError(f"{name} must be one list of integers, not {array.dtype} of shape {array.shape}")
    return array


def _require_least(row: str, name: str, values: NDArray[np.int64], least: int) -> None:
    if values.size and values.min() < least:
        at = int(np.argmax(values < least))
        raise InputError(f"{row} {at}: {name} = {values[at]} must be at least {least}")


def _check_ends(mesh: Mesh, src: NDArray[np.int64], dst: NDArray[np.int64]) -> None:
    for name, device in (("src", src), ("dst", dst)):
        outside = (device < 0) | (device >= mesh.n_devices)
        if outside.any():
            at = int(np.argmax(outside))
            raise InputError(f"row {at}: {name} = {device[at]} is no device, 0 <= {name} < {mesh.n_devices}")
        dead = ~mesh.alive[device]
        if dead.any():
            at = int(np.argmax(dead))
            raise InputError(f"row {at}: {name} = {device[at]} is dead ({mesh.place(int(device[at]))})")
    if (src == dst).any():
        at = int(np.argmax(src == dst))
        raise InputError(f"row {at}: src = dst = {src[at]}, a message needs two devices")


def _check_program(program: Program) -> None:
    """Ids are in range and belong together: the kernels follow them without looking."""
    n_ops, n_messages = program.n_ops, program.n_messages
    op_of_dep = np.repeat(np.arange(n_ops), np.diff(program.dep_ptr))
    messages = np.arange(n_messages)
    if program.dep.size and not 0 <= program.dep.min() <= program.dep.max() < n_ops:
        raise ScheduleError(f"a dependency names an op outside 0..{n_ops - 1}")
    if program.device.size and not 0 <= program.device.min() <= program.device.max() < program.n_devices:
        raise ScheduleError(f"an op names a device outside 0..{program.n_devices - 1}")
    across = program.device[program.dep] != program.device[op_of_dep]
    if across.any():
        at = int(np.argmax(across))
        raise ScheduleError(f"op {op_of_dep[at]} waits for op {program.dep[at]} of another device")
    ends = ((OpKind.SEND, program.send_op, program.src), (OpKind.RECV, program.recv_op, program.dst))
    for kind, op, device in ends:
        if n_messages and not 0 <= op.min() <= op.max() < n_ops:
            raise ScheduleError(f"a message names a {kind.name} outside 0..{n_ops - 1}")
        wrong = (program.kind[op] != kind) | (program.message[op] != messages) | (program.device[op] != device)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ScheduleError(f"message {at}: op {op[at]} is not its {kind.name} on device {device[at]}")
        if np.count_nonzero(program.kind == kind) != n_messages:
            raise ScheduleError(f"{np.count_nonzero(program.kind == kind)} {kind.name} ops but {n_messages} messages")


def _checked(job: Job) -> Job:
    """Raises InputError if a time or a packet index could leave its integer type."""
    if job.packet_bytes < 1:
        raise InputError(f"packet_bytes = {job.packet_bytes} must be at least 1")
    if not len(job.size_bytes):
        return _bounded(job, float(job.duration_ps.sum(dtype=np.float64)))
    most_packets = -(-int(job.size_bytes.max()) // job.packet_bytes)
    if most_packets >= kernels.MAX_PACKETS:
        at = int(np.argmax(job.size_bytes))
        raise InputError(
            f"message {at}: {job.size_bytes[at]} bytes / packet_bytes {job.packet_bytes} = {most_packets} packets, "
            f"at most {kernels.MAX_PACKETS - 1} are possible"
        )
    num, den = link_rates(job.mesh)
    links, starts = job.routes.route_links, job.routes.route_ptr[:-1]
    if float(job.size_bytes.max()) * float(num[links].max()) >= LARGEST_PS:
        raise InputError(
            f"{job.size_bytes.max()} bytes x {num[links].max()} (numerator of the slowest link's ps per byte) >= 2**62"
        )
    rate = np.add.reduceat(num[links] / den[links] + 1, starts)[job.routes.index]
    latency = np.add.reduceat(job.mesh.latency_ps[links].astype(np.float64), starts)[job.routes.index]
    total = (rate * job.size_bytes + latency).sum() + float(job.ready_ps.max(initial=0))
    return _bounded(job, float(total) + float(job.duration_ps.sum(dtype=np.float64)))


def _bounded(job: Job, total_ps: float) -> Job:
    if total_ps >= LARGEST_PS:
        raise InputError(f"all messages and ops one after the other take {total_ps:.3g} ps, at most 2**62 can be timed")
    return job
