"""What it costs a collective that its transfers share links, as all of a node's GPUs share its way to other nodes.

The formulas of `model` take every transfer to have links of its own. That holds for the schedules here on a mesh and
for rings behind switches, not for what several devices of a node send to other nodes at once. Each phase is charged
what its busiest link takes longer than its longest transfer alone; an estimate, since phases overlap where not all
devices wait for the same link. The engine has the exact time.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.transfers import Transfers
from meshemu.mesh import Mesh, link_rates, routes, serialisation_ps

__all__ = ["sharing_ps"]


def sharing_ps(parts: Transfers, mesh: Mesh, device: NDArray[np.int64], size: NDArray[np.int64]) -> int:
    """Estimated time in ps that sharing links adds; 0 if no two transfers of a phase share one.

    device: of each participant. size: bytes of each chunk.
    """
    starts = np.concatenate(([0], np.cumsum(size)))
    lo, hi = (np.minimum(chunk, len(size)) for chunk in (parts.chunk_lo, parts.chunk_hi))
    sent = np.flatnonzero(starts[hi] > starts[lo])
    if not len(sent):
        return 0
    size_bytes, phase = (starts[hi] - starts[lo])[sent], parts.phase[sent].astype(np.int64)
    way = routes(mesh, device[parts.src[sent]], device[parts.dst[sent]])
    length = np.diff(way.route_ptr)[way.index]
    at = np.arange(length.sum()) + np.repeat(way.route_ptr[way.index] - np.cumsum(length) + length, length)
    link, on_link = way.route_links[at], (np.repeat(phase, length), np.repeat(size_bytes, length))
    load, alone = np.zeros((2, int(phase.max()) + 1, mesh.n_links), np.int64)
    np.add.at(load, (on_link[0], link), on_link[1])
    np.maximum.at(alone, (on_link[0], link), on_link[1])
    busiest, longest = (serialisation_ps(sizes, *link_rates(mesh)).max(axis=1) for sizes in (load, alone))
    return int((busiest - longest).sum())
