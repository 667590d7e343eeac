"""What a Program asks of every link, and how fast it could be at best."""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh, link_rates, message_ps, message_routes, serialisation_ps, trees_ps
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees, routed_trees

__all__ = ["link_bytes", "lower_bound_ps"]


def link_bytes(program: Program, mesh: Mesh) -> NDArray[np.int64]:
    """Bytes that each link carries, int64[n_links]: every message loads all links of its XY route, a tree each once.

    Injection and ejection links are part of a route where the hardware has them. Raises InputError for a message
    that cannot be routed, and for a tree on a mesh whose routers cannot fork or merge.
    """
    found = message_trees(program)
    sizes = program.size_bytes[found.alone]
    way = message_routes(mesh, program.src[found.alone], program.dst[found.alone], sizes)
    load = np.zeros(way.n_routes, np.int64)
    np.add.at(load, way.index, sizes)
    carried = np.zeros(mesh.n_links, np.int64)
    np.add.at(carried, way.route_links, np.repeat(load, np.diff(way.route_ptr)))
    routed = routed_trees(program, mesh, found)
    np.add.at(carried, routed.link, program.size_bytes[found.first][routed.tree_of_edge])
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
    found = message_trees(program)
    alone = found.alone
    sizes = program.size_bytes[alone]
    lone = message_ps(mesh, message_routes(mesh, program.src[alone], program.dst[alone], sizes), sizes)
    together = trees_ps(mesh, routed_trees(program, mesh, found), program.size_bytes[found.first])
    return int(max(busy.max(), lone.max(initial=0), together.max(initial=0)))
