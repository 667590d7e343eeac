"""What a Program asks of every link, and how fast it could be at best."""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh, link_rates, message_ps, routes, serialisation_ps
from meshemu.program.ir import Program

__all__ = ["link_bytes", "lower_bound_ps"]


def link_bytes(program: Program, mesh: Mesh) -> NDArray[np.int64]:
    """Bytes that each link carries, int64[n_links]: every message loads all links of its XY route.

    Injection and ejection links are part of a route where the hardware has them. Raises InputError for a message
    that cannot be routed.
    """
    way = routes(mesh, program.src, program.dst)
    load = np.zeros(way.n_routes, np.int64)
    np.add.at(load, way.index, program.size_bytes)
    carried = np.zeros(mesh.n_links, np.int64)
    np.add.at(carried, way.route_links, np.repeat(load, np.diff(way.route_ptr)))
    return carried


def lower_bound_ps(program: Program, mesh: Mesh) -> int:
    """Least time in ps that any timing of the Program's messages takes: no order of messages can beat it.

    The greatest of the latency and serialisation of all bytes of a link (injection and ejection links included), and
    of the contention-free time of a message.
    """
    if not program.n_messages:
        return 0
    carried = link_bytes(program, mesh)
    num, den = link_rates(mesh)
    busy = np.where(carried > 0, serialisation_ps(carried, num, den) + mesh.latency_ps, 0)
    lone = message_ps(mesh, routes(mesh, program.src, program.dst), program.size_bytes)
    return int(max(busy.max(), lone.max()))
