"""From the name of a collective and of an algorithm to a verified schedule."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from meshemu.collectives.group import Group, group
from meshemu.collectives.in_network import in_network, in_network_default_chunks
from meshemu.collectives.joined import NEIGHBOURS, Joined
from meshemu.collectives.ring import ring, ring_default_chunks
from meshemu.collectives.rows_columns import rows_columns, rows_columns_default_chunks
from meshemu.collectives.schedule import Schedule
from meshemu.collectives.transfers import Transfers
from meshemu.collectives.tree import tree, tree_default_chunks
from meshemu.collectives.verify import verify_schedule
from meshemu.errors import InputError
from meshemu.program.contributions import KINDS

__all__ = ["ALGORITHMS", "KINDS", "Algorithm", "build", "check_algorithm", "check_kind"]


@dataclass(frozen=True)
class Algorithm:
    """How to build one algorithm's transfers, and how many chunks it takes unless told.

    transfers: (kind, group, root, n_chunks) -> Transfers. default_chunks: (kind, group) -> number of chunks.
    """

    transfers: Callable[[str, Group, int, int], Transfers]
    default_chunks: Callable[[str, Group], int]


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "ring": Algorithm(ring, ring_default_chunks),
        "rows_columns": Algorithm(rows_columns, rows_columns_default_chunks),
        "tree": Algorithm(tree, tree_default_chunks),
        "in_network": Algorithm(in_network, in_network_default_chunks),
    }
)


def build(
    kind: str, algorithm: str, rows: int, cols: int, *,
    root: int | None = None, n_chunks: int | None = None, absent: Iterable[int] = (),
    joined: Joined = NEIGHBOURS,
    verified: bool = True,
) -> Schedule:
    """Build and verify the schedule of a collective over a grid of rows x cols without the `absent` positions.

    root: participant that broadcast reads and reduce fills (default 0). n_chunks: pieces of the buffer; free for
    pipelines (broadcast, reduce, and all_reduce by tree or in_network), else one per participant. joined: as in
    `Group`. verified: False for a schedule whose Program will be verified, which checks the same and more.
    Raises InputError for an unknown kind or algorithm, or an argument that does not fit.
    """
    check_kind(kind)
    chosen = check_algorithm(algorithm)
    members = group(rows, cols, absent, joined=joined)
    rooted = kind in ("broadcast", "reduce")
    if rooted and root is not None and not 0 <= root < members.size:
        raise InputError(f"root {root} of {kind} is not a participant: there are {members.size}")
    if not rooted and root is not None:
        raise InputError(f"{kind} has no root, but root {root} was given")
    chunks = _chunks(kind, algorithm, members, n_chunks)
    source = (root or 0) if rooted else -1
    parts = chosen.transfers(kind, members, source, chunks)
    order = np.argsort(parts.phase, kind="stable")
    schedule = Schedule(
        kind, algorithm, (rows, cols), members.position, source, chunks, parts.phase[order], parts.src[order],
        parts.dst[order], parts.chunk_lo[order], parts.chunk_hi[order], parts.reduce[order],
        None if parts.tree is None else parts.tree[order],
    )
    if verified:
        verify_schedule(schedule)
    return schedule


def check_kind(kind: str) -> None:
    """Raise InputError unless `kind` names a collective."""
    if kind not in KINDS:
        raise InputError(f"unknown collective {kind!r}; known: {', '.join(KINDS)}")


def check_algorithm(algorithm: str) -> Algorithm:
    """Return the algorithm of that name. Raises InputError with the valid names."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"unknown algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algorithm]


def _chunks(kind: str, algorithm: str, members: Group, n_chunks: int | None) -> int:
    default = ALGORITHMS[algorithm].default_chunks(kind, members)
    if n_chunks is None:
        return default
    free = kind in ("broadcast", "reduce") or (kind == "all_reduce" and algorithm in ("tree", "in_network"))
    if n_chunks < 1 or (not free and n_chunks != default):
        rule = "at least 1" if free else f"one per participant = {default}"
        raise InputError(f"n_chunks of {kind} by {algorithm}: {rule}, not {n_chunks}")
    return n_chunks
