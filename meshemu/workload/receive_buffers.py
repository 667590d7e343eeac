"""Memory for terms that arrive to be summed: a message that is combined needs a place until it is."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.workload.chunks import chunk_bounds, one, row_length
from meshemu.workload.formats.storage import Storage
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Collective, Instruction, PushAdd, Value
from meshemu.workload.windows import pieces

__all__ = ["ReceiveBuffers"]

Bytes = NDArray[np.int64]


class ReceiveBuffers:
    """What arrives at once and cannot be written where it belongs.

    Blocks that are gathered or fetched arrive in place. Terms of a sum wait for their addition: all windows of a
    PushAdd, and of a Collective what one phase of its schedule brings, counted by its largest chunk.
    """

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan = plan
        self._storage = storage
        self._most_chunks: dict[Schedule, NDArray[np.int64]] = {}
        self._known: dict[Instruction, Bytes] = {}

    def most_bytes(self, instruction: Instruction, schedule: Schedule | None) -> Bytes | None:
        """Bytes at every position while an instruction is carried out; None where it needs no such buffer."""
        if instruction in self._known:
            return self._known[instruction]
        match instruction:
            case PushAdd():
                self._known[instruction] = self._windows(instruction)
            case Collective() if schedule is not None and instruction.kind != "all_gather":
                self._known[instruction] = self._terms(instruction, schedule)
            case _:
                return None
        return self._known[instruction]

    def _windows(self, instruction: PushAdd) -> Bytes:
        source, output = instruction.source, instruction.output
        boxes = pieces(output.shape, output.layout, source.layout, self._plan)
        arriving = np.zeros(self._plan.n_positions, np.int64)
        moved = boxes.n_elements[boxes.moves] * self._storage.itemsize(source)
        np.add.at(arriving, boxes.src[boxes.moves], moved)
        return arriving

    def _terms(self, instruction: Collective, schedule: Schedule) -> Bytes:
        itemsize, _ = self._storage.carried(instruction)
        size_of: Callable[[Value], int] = one
        if self._storage.mixed(instruction):
            itemsize, size_of = 1, self._storage.itemsize
        members, _, _ = self._plan.groups(instruction.axes, instruction.stages)
        if schedule not in self._most_chunks:
            self._most_chunks[schedule] = _most_chunks(schedule)
        arriving = np.zeros(self._plan.n_positions, np.int64)
        for group in members:
            rows = np.diff(chunk_bounds(instruction, schedule.n_chunks, group, self._plan, size_of))
            largest = int(rows.max(initial=0)) * row_length(instruction) * itemsize
            arriving[group] = self._most_chunks[schedule] * largest
        return arriving


def _most_chunks(schedule: Schedule) -> NDArray[np.int64]:
    """The most chunks that arrive at each participant in one phase, to be combined; parts of a tree arrive as one."""
    adds = np.flatnonzero(schedule.reduce)
    n = schedule.n_participants
    if schedule.tree is not None:
        phase, dst, tree = schedule.phase[adds], schedule.dst[adds], schedule.tree[adds]
        alone = np.where(tree < 0, -1 - np.arange(len(adds)), tree)
        _, first = np.unique(np.stack([phase, dst, alone]), axis=1, return_index=True)
        adds = adds[first]
    n_phases = int(schedule.phase.max(initial=-1)) + 1
    key = schedule.phase[adds].astype(np.int64) * n + schedule.dst[adds]
    chunks = schedule.chunk_hi[adds] - schedule.chunk_lo[adds]
    arriving = np.bincount(key, weights=chunks, minlength=n_phases * n).reshape(n_phases, n)
    return np.asarray(arriving.max(axis=0, initial=0), np.int64)
