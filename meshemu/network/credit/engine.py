"""Run the messages and ops of a region through routers with finite buffers, in place of its FIFO links."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import Router
from meshemu.mesh import Order, serialisation_ps
from meshemu.network import state as links
from meshemu.network.compiling import notice
from meshemu.network.credit import state as fields
from meshemu.network.credit.fabric import routers_of
from meshemu.network.credit.kernels import run
from meshemu.network.credit.refusal import refuse_trees
from meshemu.network.credit.state import Routers
from meshemu.network.engine import Region
from meshemu.network.events import Ints
from meshemu.network.prepare import LARGEST_PS, Job
from meshemu.network.window import WindowCounts

__all__ = ["BackPressure", "back_pressure", "run_routers"]


@dataclass(frozen=True, eq=False)
class BackPressure:
    """What makes a job one of back-pressure mode. message_class: int64[n_messages]; order: of its routes."""

    router: Router
    message_class: Ints
    order: Order


def back_pressure(job: Job, router: Router | None, message_class: ArrayLike, order: Order) -> BackPressure | None:
    """The arguments of a job, checked; None without a router.

    Raises InputError for what is no router, for a class that it does not have, and for messages that fork or merge.
    """
    given = np.asarray(message_class)
    if router is None:
        if given.any():
            raise InputError("message_class needs a router: unbounded FIFOs have no virtual channels")
        return None
    if not isinstance(router, Router):
        raise InputError(f"router = {router!r} must be a Router")
    if job.mesh.switches is not None:
        raise InputError("network.router: routers are those of a mesh; this system's devices are joined by switches")
    if job.mesh.z_plane is not None:
        raise InputError("network.router: routers are those of a mesh; leave system.z_plane = false to time with them")
    n = len(job.size_bytes)
    if given.dtype.kind not in "iu" or given.ndim > 1 or (given.ndim == 1 and len(given) != n):
        raise InputError(
            f"message_class must be one integer for all or for each of {n} messages, "
            f"not {given.dtype} of shape {given.shape}"
        )
    classes = np.broadcast_to(given, n).astype(np.int64)
    outside = (classes < 0) | (classes >= router.message_classes)
    if outside.any():
        at = int(np.argmax(outside))
        valid = f"0 <= message_class < {router.message_classes}"
        raise InputError(f"row {at}: message_class = {classes[at]} is none of the router, {valid}")
    if job.program is not None:
        refuse_trees(job.program)
    return BackPressure(router, classes[np.argsort(job.departs_with)], order)


def run_routers(region: Region, job: Job, pressure: BackPressure) -> WindowCounts:
    """Run a region that owns everything. Its state then holds times and statistics as after `Region.run`.

    Raises InputError where the router does not fit the mesh, its routes or the packets.
    """
    state, router = region.state, pressure.router
    routers = routers_of(
        job.mesh, job.routes, job.size_bytes, pressure.message_class, router, job.packet_bytes, pressure.order
    )
    _check_total(job, routers)
    entered = time.thread_time()
    with notice(run):
        run(routers, region.work, state)
    busy_s = time.thread_time() - entered
    about, channel = routers.message, routers.channel[: job.mesh.n_links]
    stuck = np.flatnonzero((about[:, fields.HANDED] >= 0) & (about[:, fields.MISSING] > 0))
    if stuck.size:
        raise ScheduleError(f"deadlock: {stuck.size} messages stay in the network, message {stuck[0]} among them")
    n_flits = channel[:, fields.FLITS]
    state.scalar[links.HOPS] = n_flits.sum()
    state.link[:, links.BUSY] = serialisation_ps(n_flits, channel[:, fields.NUM], channel[:, fields.DEN])
    state.link[:, links.CARRIED] = _carried_bytes(job, router, n_flits, about[:, fields.FLITS_IN_ALL])
    state.link[:, links.WAIT] = channel[:, fields.WAIT]
    state.link[:, links.PACKETS] = channel[:, fields.PACKETS]
    state.link[:, links.QUEUE_MAX] = channel[:, fields.QUEUE_MAX]
    return WindowCounts(windows=1, sent=0, busy_s=busy_s)


def _carried_bytes(job: Job, router: Router, n_flits: Ints, message_flits: Ints) -> Ints:
    """Bytes on each link: its flits, less what the last flit of each message leaves empty."""
    empty = np.bincount(job.routes.index, message_flits * router.flit_bytes - job.size_bytes, job.routes.n_routes)
    hops = np.diff(job.routes.route_ptr)
    unused = np.bincount(job.routes.route_links, np.repeat(empty, hops), job.mesh.n_links)
    return np.asarray(n_flits * router.flit_bytes - unused.astype(np.int64), np.int64)


def _check_total(job: Job, routers: Routers) -> None:
    """Raises InputError if a time could leave its integer type: flit after flit, each with the way of its credit."""
    channel = routers.channel
    hop_ps = channel[:, fields.NUM] / channel[:, fields.DEN] + channel[:, fields.ONWARD] + channel[:, fields.CREDIT]
    of_hop = hop_ps[routers.hop >> 2 * fields.HOP_BITS] + routers.restart + routers.cycle
    before = np.concatenate([[0.0], np.cumsum(of_hop)])
    start = routers.message[:, fields.START]
    extra = np.diff(job.routes.route_ptr)[job.routes.index] + 2
    way_ps = before[np.minimum(start + extra, len(of_hop))] - before[start]
    total = float((way_ps * routers.message[:, fields.FLITS_IN_ALL]).sum())
    total += float(job.ready_ps.max(initial=0))
    total += float(job.duration_ps.sum(dtype=np.float64))
    if total >= LARGEST_PS:
        raise InputError(f"all flits and ops one after the other take {total:.3g} ps, at most 2**62 can be timed")
