"""Time a Program or plain messages on a System: the public face of cost and network together."""

from typing import Any

from numpy.typing import ArrayLike

from meshemu.cost import PLAIN, CostOptions, durations_ps
from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.threads import ONE_EACH, Threads, units_of
from meshemu.hardware import Router, System
from meshemu.mesh import flatten
from meshemu.mesh.routing import Order
from meshemu.network import MessageTimes, Timing, time_program
from meshemu.network import simulate_messages as simulate_on_mesh
from meshemu.program.ir import Program
from meshemu.program.traffic import message_classes
from meshemu.runtime.mpi import as_comm

__all__ = ["simulate_messages", "time"]


def time(
    program: Program,
    system: System,
    *,
    packet_bytes: int = 4096,
    order: Order = "xy",
    timeline_bins: int = 64,
    router: Router | None = None,
    message_class: ArrayLike | None = None,
    costs: CostOptions = PLAIN,
    threads: Threads = ONE_EACH,
    comm: Any = None,
) -> Timing:
    """Virtual time of every op and message of `program` on `system`, with link contention.

    packet_bytes: accuracy against speed. order: dimension-ordered routing, "xy" or "yx". router: routers with finite
    buffers (docs/back-pressure.md) in place of unbounded FIFOs; message_class: there, of each message or of all (None:
    by what messages are for, as `program.traffic` sorts them). costs: fusion and calibration of ops. threads: of a
    device; a Program that emulation made is in the order of as many compute threads as it was made for. comm: an mpi4py
    communicator whose ranks share the work (default: this process alone); the result is the same for any number of
    ranks.
    """
    if message_class is None:
        message_class = 0 if router is None else message_classes(program, router.message_classes)
    return time_program(
        program,
        flatten(system),
        durations_ps(program, system.device, costs, interfaces_of(system)),
        packet_bytes=packet_bytes,
        order=order,
        timeline_bins=timeline_bins,
        router=router,
        message_class=message_class,
        units=units_of(program, threads),
        comm=as_comm(comm),
    )


def simulate_messages(
    system: System,
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
    comm: Any = None,
) -> MessageTimes:
    """Virtual time of independent messages on `system`: any traffic, one row per message.

    src, dst: device ids. ready_ps: when each message may leave. Other arguments as in `time`. Raises InputError with
    the row number for a message that cannot be sent.
    """
    return simulate_on_mesh(
        flatten(system),
        src,
        dst,
        size_bytes,
        ready_ps,
        packet_bytes=packet_bytes,
        order=order,
        timeline_bins=timeline_bins,
        router=router,
        message_class=message_class,
        comm=as_comm(comm),
    )
