"""Turn a schedule into the ops of a Program.

Each transfer becomes a SEND, a RECV and, if it combines, a REDUCE; those of a tree share the ops at its root.
Dependencies come from what the ops read and write (`program.hazards`): a send waits for the last writers of its chunks;
what writes a chunk waits for its last writer and for the sends that have read it since; whatever meets a chunk that
nobody has written waits for `after`.
Ops are added phase by phase, so their ids are in a topological order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.collectives.schedule import Schedule
from meshemu.errors import ScheduleError
from meshemu.mesh.region import split_bounds
from meshemu.program.builder import ProgramBuilder
from meshemu.program.hazards import Hazards, Waits
from meshemu.program.ir import CollectiveUse
from meshemu.program.pieces import Pieces, pieces

__all__ = ["emit", "even_bounds"]

Ids = NDArray[np.int64]


def emit(
    builder: ProgramBuilder, schedule: Schedule, devices: ArrayLike, *, n_elements: int, itemsize: int, label: str,
    number_format: str, op_class: str = "reduce_sum", after: ArrayLike | Sequence[ArrayLike] = (),
    bounds: ArrayLike | None = None,
) -> tuple[Ids, Ids]:
    """Add the ops of `schedule` over a buffer of `n_elements` of `itemsize` bytes each.

    devices: device id of each participant. op_class, number_format: of the REDUCE ops, which read both operands and
    write one, with one flop per element. after: op id per participant that the first use of its buffer waits for
    (-1: none), or several such arrays. bounds: int[n_chunks + 1], where each chunk begins and the last one ends;
    mesh.split_bounds unless given. Empty chunks are left out of the Program; of reduce_scatter and all_gather,
    participants that own none come last in it, so that piece i still belongs to participant i.

    Returns (participant, op), int64[k] each: the result may be used on a participant when all its ops have ended.
    A participant whose result is its own untouched data has its `after` ops there.
    Raises ScheduleError if `devices` does not name one device per participant.
    """
    device = np.asarray(devices, np.int64).ravel()
    if len(device) != schedule.n_participants:
        raise ScheduleError(f"{label}: {len(device)} devices for {schedule.n_participants} participants")
    waits = [np.broadcast_to(np.asarray(ids, np.int64), device.shape) for ids in _arrays(after)]
    cuts = even_bounds(schedule.n_chunks, n_elements) if bounds is None else np.asarray(bounds, np.int64)
    filled = np.diff(cuts) > 0
    n_chunks = int(filled.sum())
    if n_chunks == 0:
        return _untouched(waits, np.arange(len(device)))
    # Chunks are numbered anew without the empty ones: old bound -> number of filled chunks before it.
    renumbered = np.concatenate(([0], np.cumsum(filled)))
    owners = np.arange(len(device))
    if schedule.kind in ("reduce_scatter", "all_gather"):
        owners = np.argsort(~filled, kind="stable")
    use = CollectiveUse(
        schedule.kind, schedule.algorithm, tuple(device[owners].tolist()), schedule.grid, n_chunks,
        n_elements * itemsize, label, schedule.root,
    )
    index = builder.collective(use) if len(device) > 1 else -1
    kept = np.flatnonzero(cuts[schedule.chunk_lo] < cuts[schedule.chunk_hi])
    src, dst = schedule.src[kept].astype(np.int64), schedule.dst[kept].astype(np.int64)
    lo, hi = renumbered[schedule.chunk_lo[kept]], renumbered[schedule.chunk_hi[kept]]
    elements = cuts[schedule.chunk_hi[kept]] - cuts[schedule.chunk_lo[kept]]
    cut = pieces(len(device), n_chunks, ((src, lo, hi), (dst, lo, hi)))
    read_at, written_at = cut.ranges((src, lo, hi)), cut.ranges((dst, lo, hi))
    buffers = Hazards(cut.n_pieces)

    def depend(op: Ids, who: Ids, hazards: Waits) -> None:
        waiting, on = hazards
        builder.depend(op[waiting], on)
        untouched = np.unique(waiting[on < 0])
        for ids in waits:
            builder.depend(op[untouched], ids[who[untouched]])

    phases = schedule.phase[kept]
    for phase in np.split(np.arange(len(kept)), np.flatnonzero(np.diff(phases)) + 1):
        if not len(phase):
            continue
        message, send, recv = builder.messages(
            device[src[phase]], device[dst[phase]], elements[phase] * itemsize, label=label, collective=index,
            chunk_lo=lo[phase], chunk_hi=hi[phase], tree=None if schedule.tree is None else schedule.tree[kept[phase]],
        )
        sends, receives = _first_of_each(send), _first_of_each(recv)
        combines = schedule.reduce[kept[phase]] & receives
        added = phase[combines]
        write = recv.copy()
        write[combines] = builder.reduce(
            device[dst[added]], label=label, op_class=op_class, number_format=number_format,
            flops=elements[added], read_bytes=2 * elements[added] * itemsize,
            write_bytes=elements[added] * itemsize, message=message[combines], collective=index,
            chunk_lo=lo[added], chunk_hi=hi[added],
        )
        builder.depend(write[combines], recv[combines])
        for access, op, who, (start, length), once in (
            (buffers.read, send, src, read_at, sends), (buffers.write, write, dst, written_at, receives)
        ):  # fmt: skip
            part = phase[once]
            depend(op[once], who[part], access(op[once], start[part], length[part]))
    return _result(buffers.writer, cut, schedule.kind, schedule.root, owners[:n_chunks], waits, builder.n_ops)


def even_bounds(n_chunks: int, n_elements: int) -> Ids:
    """Bounds of even chunks, int64[n_chunks + 1]; with fewer elements than chunks, the last ones are empty."""
    even = np.asarray(split_bounds(n_elements, max(1, min(n_chunks, n_elements))), np.int64)
    return np.concatenate((even, np.full(n_chunks + 1 - len(even), n_elements, np.int64)))


def _first_of_each(op: Ids) -> NDArray[np.bool_]:
    """Which entries are not the op before them again."""
    return np.asarray(np.diff(op, prepend=-1) != 0)


def _arrays(after: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[np.int64]]:
    """`after` as a list of arrays, whether it is one array or several."""
    if isinstance(after, (list, tuple)) and any(np.ndim(ids) for ids in after):
        return [np.asarray(ids, np.int64) for ids in after]
    single = np.asarray(after, np.int64)
    return [single] if single.size else []


def _untouched(waits: Sequence[Ids], participants: Ids) -> tuple[Ids, Ids]:
    """(participant, op) of the given participants in each array of `waits`, without those that wait for nothing."""
    pairs = [(participants, ids[participants]) for ids in waits]
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    who, op = np.concatenate([p for p, _ in pairs]), np.concatenate([o for _, o in pairs])
    return who[op >= 0], op[op >= 0]


def _result(
    writer: Ids, cut: Pieces, kind: str, root: int, owner: Ids, waits: Sequence[Ids], n_ops: int
) -> tuple[Ids, Ids]:
    """Ops, as (participant, op), after which `kind` has put its result where it belongs.

    writer: last writer of each piece, -1 where nothing was written: there `waits` stand in.
    owner: participant that reduce_scatter leaves each chunk with.
    """
    if kind == "reduce_scatter":
        wanted = cut.holding(owner, np.arange(len(owner)))
    else:
        held = cut.first_chunk < cut.n_chunks
        wanted = np.flatnonzero(held & (cut.participant == root) if kind == "reduce" else held)
    key = np.sort(cut.participant[wanted] * (n_ops + 1) + writer[wanted] + 1)
    who, op = np.divmod(key[np.concatenate(([True], np.diff(key) != 0))[: len(key)]], n_ops + 1)
    waiting = _untouched(waits, who[op == 0])
    return np.concatenate((who[op > 0], waiting[0])), np.concatenate((op[op > 0] - 1, waiting[1]))
