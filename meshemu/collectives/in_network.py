"""In the network: routers fork and merge messages, so that nobody forwards and nobody but the root combines.

broadcast is one multicast, reduce one reduction; all_reduce reduces into the middle device and multicasts back;
all_gather is a multicast from everyone, reduce_scatter a reduction into everyone. By default the buffer of a rooted
collective is one chunk, since packets stream through a tree anyway; all_reduce in several chunks overlaps the way up
with the way down.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.group import Group
from meshemu.collectives.transfers import Transfers, concatenate, no_transfers
from meshemu.collectives.tree import middle
from meshemu.errors import InputError
from meshemu.mesh import Mesh

__all__ = ["check_routers", "in_network", "in_network_default_chunks", "lacking"]


def in_network(kind: str, group: Group, root: int, n_chunks: int) -> Transfers:
    """Return the transfers of one collective; those of a tree share a number in `tree`."""
    if group.size == 1:
        return no_transfers()
    chunk, everyone = np.arange(n_chunks), np.arange(group.size)
    match kind:
        case "broadcast":
            return _trees(group, np.full(n_chunks, root), chunk, reduce=False)
        case "reduce":
            return _trees(group, np.full(n_chunks, root), chunk, reduce=True)
        case "all_gather":
            return _trees(group, everyone, np.zeros_like(everyone), reduce=False)
        case "reduce_scatter":
            return _trees(group, everyone, np.zeros_like(everyone), reduce=True)
    roots = np.full(n_chunks, middle(group))
    return concatenate((_trees(group, roots, chunk, reduce=True), _trees(group, roots, chunk, reduce=False).after(1)))


def in_network_default_chunks(kind: str, group: Group) -> int:
    """Return the whole buffer as one chunk, or one chunk per participant where each ends with its own."""
    return group.size if kind in ("reduce_scatter", "all_gather") else 1


def lacking(kind: str, mesh: Mesh) -> str | None:
    """Return the key of the figure without which routers cannot do a collective; None if they can."""
    if kind != "broadcast" and kind != "all_gather" and not mesh.reduction:
        return "mesh.reduction"
    if kind != "reduce" and kind != "reduce_scatter" and not mesh.multicast:
        return "mesh.multicast"
    return None


def check_routers(kind: str, algorithm: str, mesh: Mesh) -> None:
    """Raise InputError if the algorithm needs routers that fork or merge messages and the mesh has none."""
    key = lacking(kind, mesh) if algorithm == "in_network" else None
    if key is not None:
        what = "merge" if key == "mesh.reduction" else "fork"
        raise InputError(
            f"{kind} by in_network needs routers that {what} messages, which this system has not: {key} = false"
        )


def _trees(group: Group, root: NDArray[np.int64], phase: NDArray[np.int64], *, reduce: bool) -> Transfers:
    """Chunk i between participant root[i] and all others, in phase[i]."""
    number = np.arange(group.size - 1)
    others = number + (number >= root[:, None])
    ends, at_root, chunk, when = (
        np.broadcast_to(values, others.shape).ravel().astype(np.int32)
        for values in (others, root[:, None], np.arange(len(root))[:, None], phase[:, None])
    )
    src, dst = (ends, at_root) if reduce else (at_root, ends)
    return Transfers(when, src, dst, chunk, chunk + np.int32(1), np.full(len(chunk), reduce), chunk)
