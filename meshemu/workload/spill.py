"""Which blocks leave the memory of devices for a while, and when: what does not fit waits at interface processors.

A block is idle between two instructions that use it. It leaves after the first, and its memory is free from the
`ahead`-th operator after it on; it is asked for at the `ahead`-th operator before the second, from which on there is
room for it again. So transfers have `ahead` operators to hide behind, each way.

Where devices hold more than they can, the fullest of them says what leaves: of the blocks that are idle at the moment
when it holds most, the one with the greatest product of bytes and operators that it is idle for. It leaves on all
devices that hold too much, and so on, until none does.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.op_order import OpOrder
from meshemu.workload.spmd import Collective, Compute, Spmd, Value, inputs_of, outputs_of

__all__ = ["Block", "Idle", "Spill", "blocks_of", "choose_spills", "idle_times"]

Bytes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Memory that a value and its views share. values: their ids; uses: instructions that make or read them (-1: the
    beginning of the step), in order. label: of what made it.
    """

    value: Value
    values: tuple[int, ...]
    uses: tuple[int, ...]
    label: str


@dataclass(frozen=True, eq=False)
class Idle:
    """A time in which nothing uses a block. after, before: the instructions around it that do. freed: the operator from
    which on its memory may be used for others; fetched: that from which on it may not. n_ops: operators between.
    """

    block: Block
    after: int
    freed: int
    fetched: int
    before: int
    n_ops: int


@dataclass(frozen=True, eq=False)
class Spill:
    """A block leaves for an idle time. where: bool[n_positions], on which devices; their blocks are not empty."""

    idle: Idle
    where: NDArray[np.bool_]


def blocks_of(spmd: Spmd, views: Collection[str]) -> list[Block]:
    """All memory of a step but parameters, buffers, constants and what is pooled ahead of its use."""
    batch = [value for name, value in spmd.inputs.items() if name.startswith("batch.")]
    labels = {value.id: "batch" for value in batch}
    made = {value.id: value for value in batch}
    owner = {value.id: value.id for value in batch}
    uses: dict[int, list[int]] = {value.id: [-1] for value in batch}
    for i, instruction in enumerate(spmd.instructions):
        if isinstance(instruction, Collective) and instruction.paced:
            continue
        view = isinstance(instruction, Compute) and instruction.op_class in views and bool(instruction.inputs)
        for value in inputs_of(instruction):
            if value.id in owner:
                _use(uses[owner[value.id]], i)
        for value in outputs_of(instruction):
            if value.id in owner:
                continue
            if not view:
                made[value.id], labels[value.id], uses[value.id] = value, instruction.label, []
                owner[value.id] = value.id
            elif inputs_of(instruction)[0].id in owner:
                owner[value.id] = owner[inputs_of(instruction)[0].id]
            if value.id in owner:
                _use(uses[owner[value.id]], i)
    shared: dict[int, list[int]] = {}
    for value_id, root in owner.items():
        shared.setdefault(root, []).append(value_id)
    return [Block(made[root], tuple(shared[root]), tuple(uses[root]), labels[root]) for root in shared]


def idle_times(spmd: Spmd, blocks: Iterable[Block], views: Collection[str], ahead: int) -> Iterator[Idle]:
    """The times in which a block can leave and come back, `ahead` operators to go and as many to come."""
    order = OpOrder(spmd, views)
    for block in blocks:
        stages = block.value.layout.stages
        for after, before in pairwise(block.uses):
            freed, fetched = order.after(after, stages, ahead), order.before(before, stages, ahead)
            if freed is not None and fetched is not None and freed < fetched:
                ops = order.on(stages)
                n_ops = int(np.searchsorted(ops, before) - np.searchsorted(ops, after, "right"))
                yield Idle(block, after, freed, fetched, before, n_ops)


def choose_spills(live: Bytes, size: Sequence[Bytes], idle: Sequence[Idle], capacity_bytes: int) -> list[Spill]:
    """What leaves so that no device holds more than `capacity_bytes`; all that helps where some still do.

    live: int64[point, position], bytes held at the beginning of the step and during every instruction; it is changed to
    what is held then. size: int64[n_positions], bytes of the block of each idle time.
    """
    begin = np.array([one.freed + 1 for one in idle], np.int64)
    end = np.array([one.fetched + 1 for one in idle], np.int64)
    n_ops = np.array([one.n_ops for one in idle], np.int64)
    bytes_of = np.stack(size) if size else np.zeros((0, live.shape[1]), np.int64)
    where = np.zeros(bytes_of.shape, np.bool_)
    most, at = live.max(axis=0), live.argmax(axis=0)
    given_up = np.zeros(live.shape[1], np.bool_)
    while (over := (most > capacity_bytes) & ~given_up).any():
        fullest = int(np.argmax(np.where(over, most, -1)))
        gain = bytes_of[:, fullest] * n_ops
        gain[(begin > at[fullest]) | (end <= at[fullest]) | where[:, fullest]] = 0
        best = int(gain.argmax()) if len(gain) else -1
        if best < 0 or gain[best] == 0:
            given_up[fullest] = True
            continue
        leaving = over & ~where[best] & (bytes_of[best] > 0)
        where[best] |= leaving
        live[begin[best] : end[best], leaving] -= bytes_of[best, leaving]
        most[leaving], at[leaving] = live[:, leaving].max(axis=0), live[:, leaving].argmax(axis=0)
    return [Spill(one, where[i]) for i, one in enumerate(idle) if where[i].any()]


def _use(uses: list[int], index: int) -> None:
    """Note an instruction once."""
    if not uses or uses[-1] != index:
        uses.append(index)
