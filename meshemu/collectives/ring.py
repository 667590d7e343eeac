"""Ring: one cycle through all participants; each sends to the next only.

all_reduce moves 2 (n - 1) / n of the buffer over every ring edge, which is the least possible, in 2 (n - 1) phases:
best for long buffers on small groups. broadcast and reduce are a pipeline along the ring; by default the buffer is cut
into as many chunks as the pipeline has stages, so that filling it takes no longer than streaming.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.group import Group
from meshemu.collectives.order import column_order, ring_order
from meshemu.collectives.transfers import Transfers, concatenate, pipeline, rotate_gather, rotate_scatter

__all__ = ["ring", "ring_default_chunks", "ring_participants"]


def ring(kind: str, group: Group, root: int, n_chunks: int) -> Transfers:
    """Return the transfers of one collective around the ring of the group."""
    order = ring_participants(group)
    if kind in ("broadcast", "reduce"):
        return _chain(kind, np.roll(order, -int(np.flatnonzero(order == root)[0])), n_chunks)
    rings = order[None]
    scatter, gather = rotate_scatter(rings, rings, rings + 1), rotate_gather(rings, rings, rings + 1)
    match kind:
        case "reduce_scatter":
            return scatter
        case "all_gather":
            return gather
        case _:
            return concatenate((scatter, gather.after(scatter.end_phase)))


def ring_participants(group: Group) -> NDArray[np.int32]:
    """Participants in ring order, int32[n]; behind switches column by column, so that each is entered once."""
    absent = group.absent.tolist()
    if group.joined.switched:
        return group.participant[column_order(group.rows, group.cols, absent)]
    order = ring_order(
        group.rows, group.cols, absent, column_rings=group.joined.column_rings, row_rings=group.joined.row_rings
    )
    return group.participant[order]


def ring_default_chunks(kind: str, group: Group) -> int:
    """Return one chunk per participant, or per stage of a pipeline."""
    return max(1, group.size - 1) if kind in ("broadcast", "reduce") else group.size


def _chain(kind: str, order: NDArray[np.int32], n_chunks: int) -> Transfers:
    """From the root (order[0]) along the ring, or from the one after the root along the ring to it."""
    path = order if kind == "broadcast" else np.roll(order, -1)
    return pipeline(path[:-1], path[1:], np.arange(len(path) - 1), n_chunks, reduce=kind == "reduce")
