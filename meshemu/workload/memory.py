"""How much memory each device needs, and for what: the liveness of every block over the instructions of a step."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.workload.formats.storage import Storage, storage_of
from meshemu.workload.memory_categories import categories_of
from meshemu.workload.op_order import OpOrder
from meshemu.workload.plan import Plan
from meshemu.workload.receive_buffers import ReceiveBuffers
from meshemu.workload.spill import Spill
from meshemu.workload.spmd import (
    Collective,
    Compute,
    Instruction,
    Spmd,
    Value,
    inputs_of,
    last_uses,
    outputs_of,
    stages_of,
)

__all__ = ["MemoryWalk", "batch_read", "block_bytes"]

Bytes = NDArray[np.int64]

BEGINNING = "beginning of the step"
_COMMUNICATION, _OPTIMIZER, _BATCH = (
    MEMORY_CATEGORIES.index(name) for name in ("communication", "optimizer", "batch")
)


_SPILLABLE = frozenset(MEMORY_CATEGORIES.index(name) for name in ("activations", "communication", "batch"))


def batch_read(spmd: Spmd) -> list[Value]:
    """The tensors of a batch that some operator reads: devices need no others."""
    read = {value.id for instruction in spmd.instructions for value in inputs_of(instruction)}
    return [value for name, value in spmd.inputs.items() if name.startswith("batch.") and value.id in read]


def block_bytes(value: Value, plan: Plan, storage: Storage) -> Bytes:
    """Bytes of the block of `value` at every position, as it is stored."""
    return _block_elements(value, plan) * storage.itemsize(value)


class MemoryWalk:
    """Goes through the instructions of a step and says what devices hold; as often as one likes.

    Parameters, buffers and the optimizer's tensors live throughout, each device holding its blocks of them; everything
    else from the instruction that makes it to its last use. A view shares the memory of its source. states: parameter
    name -> tensors of its shape that the optimizer keeps. views: op classes of views. state_bytes: parameter name ->
    bytes that these take for an element, where they are not in the parameter's number format. schedules: of the
    Collective instructions; where one is given, terms that arrive to be summed take memory while it runs. prefetch: as
    in `build_program`; a paced Collective takes memory for its outputs from when it may start. compute_threads: as
    there; what an operator needs is held until as many more have come on its stages as there are others under way.
    next_batch: whether the batch of the next step comes in during this one, so that there is room for two. spills: what
    is not there for a while.
    """

    def __init__(
        self,
        spmd: Spmd,
        plan: Plan,
        states: Mapping[str, int],
        views: Collection[str],
        state_bytes: Mapping[str, int] | None = None,
        schedules: Mapping[int, Schedule] | None = None,
        prefetch: int = 0,
        compute_threads: int = 1,
        next_batch: bool = False,
        spills: Sequence[Spill] = (),
    ) -> None:
        self._spmd, self._plan, self._views = spmd, plan, frozenset(views)
        self._storage = storage_of(spmd)
        self._category = categories_of(spmd, self._views)
        self._released = _delayed(spmd, self._views, compute_threads - 1)
        self._freed, self._fetched = _by_index(spills)
        self._schedules = schedules or {}
        self._ahead = _ahead(spmd, prefetch)
        self._buffers = ReceiveBuffers(plan, self._storage)
        inputs = spmd.inputs.items()
        self._batch = [value for name, value in inputs if name.startswith("batch.")]
        self._resident = [v for name, v in inputs if not name.startswith("batch.")] + list(spmd.constants.values())
        self._beginning = np.zeros((len(MEMORY_CATEGORIES), plan.n_positions), np.int64)
        for value in (*self._resident, *self._batch):
            self._beginning[self._category[value.id]] += self._size(value)
        for value in batch_read(spmd) if next_batch else ():
            self._beginning[_BATCH] += self._size(value)
        for name, value in spmd.gradients.items():
            per_element = (state_bytes or {}).get(name, states.get(name, 0) * value.dtype.itemsize)
            self._beginning[_OPTIMIZER] += per_element * _block_elements(value, plan)

    def use(self, n_devices: int) -> MemoryUse:
        """What each of n_devices devices holds at its peak, and the fullest one over the step."""
        plan = self._plan
        most = np.full(plan.n_positions, -1, np.int64)
        at_peak = np.zeros((len(MEMORY_CATEGORIES), plan.n_positions), np.int64)
        for live in self.points():
            total = live.sum(axis=0)
            at_peak = np.where(total > most, live, at_peak)
            most = np.maximum(most, total)
        peak = np.zeros((len(MEMORY_CATEGORIES), n_devices), np.int64)
        peak[:, np.asarray(plan.devices)] = at_peak
        busiest = min(range(plan.n_positions), key=lambda position: (-most[position], plan.devices[position]))
        timeline = np.stack([live[:, busiest].copy() for live in self.points()])
        return MemoryUse(peak, timeline, (BEGINNING, *map(_label, self._spmd.instructions)))

    def totals(self) -> Bytes:
        """int64[point, position]: bytes of all categories."""
        return np.stack([live.sum(axis=0) for live in self.points()])

    def spillable(self, value: Value) -> bool:
        """Whether a value is of a category that may leave the memory for a while."""
        return self._category[value.id] in _SPILLABLE

    def points(self) -> Iterator[Bytes]:
        """int64[category, position]: bytes held at the beginning, and during every instruction; changes afterwards."""
        live = self._beginning.copy()
        permanent = {value.id for value in self._resident}
        owner = {value.id: value.id for value in (*self._resident, *self._batch)}
        users = {value.id: 1 for value in self._batch}
        size = {value.id: self._size(value) for value in self._batch}
        yield live
        for i, instruction in enumerate(self._spmd.instructions):
            view = isinstance(instruction, Compute) and instruction.op_class in self._views and bool(instruction.inputs)
            for spill in self._freed.get(i, ()):
                live[self._category[spill.idle.block.value.id]] -= self._size(spill.idle.block.value) * spill.where
            for spill in self._fetched.get(i, ()):
                live[self._category[spill.idle.block.value.id]] += self._size(spill.idle.block.value) * spill.where
            for value in self._ahead.get(i, ()):
                owner[value.id], users[value.id], size[value.id] = value.id, 1, self._size(value)
                live[self._category[value.id]] += size[value.id]
            for value in outputs_of(instruction):
                if value.id in owner:
                    continue
                root = owner[value.id] = owner[inputs_of(instruction)[0].id] if view else value.id
                if root in permanent:
                    continue
                if root not in size:
                    size[root] = self._size(value)
                    live[self._category[root]] += size[root]
                users[root] = users.get(root, 0) + 1
            arriving = self._buffers.most_bytes(instruction, self._schedules.get(i))
            if arriving is None:
                yield live
            else:
                during = live.copy()
                during[_COMMUNICATION] += arriving
                yield during
            for value_id in self._released.get(i, ()):
                root = owner[value_id]
                if root in permanent:
                    continue
                users[root] -= 1
                if not users[root]:
                    live[self._category[root]] -= size.pop(root)

    def _size(self, value: Value) -> Bytes:
        return block_bytes(value, self._plan, self._storage)


def _ahead(spmd: Spmd, prefetch: int) -> dict[int, list[Value]]:
    """Index of an instruction -> outputs of later paced Collectives, for which memory is taken there: at the so many-th
    paced one of the same stages before them, or at the beginning.
    """
    found: dict[int, list[Value]] = {}
    paced: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(spmd.instructions):
        if prefetch and isinstance(one, Collective) and one.paced:
            before = paced.setdefault(one.stages, [])
            found.setdefault(before[-prefetch] if len(before) >= prefetch else 0, []).extend(one.outputs)
            before.append(i)
    return found


def _delayed(spmd: Spmd, views: frozenset[str], n_ops: int) -> Mapping[int, list[int]]:
    """Index of an instruction -> ids of values that are released after it, where n_ops operators that follow on the
    same stages may be under way beside the last one that needs a value. What is needed to the end is never released.
    """
    released = last_uses(spmd)
    if not n_ops:
        return released
    order, found = OpOrder(spmd, views), dict[int, list[int]]()
    for i, values in released.items():
        later = order.after(i, stages_of(spmd.instructions[i]), n_ops)
        if later is not None:
            found.setdefault(later, []).extend(values)
    return found


def _by_index(spills: Sequence[Spill]) -> tuple[dict[int, list[Spill]], dict[int, list[Spill]]]:
    """Index of an operator -> what is no longer there from it on, and what is there again."""
    freed: dict[int, list[Spill]] = {}
    fetched: dict[int, list[Spill]] = {}
    for spill in spills:
        freed.setdefault(spill.idle.freed, []).append(spill)
        fetched.setdefault(spill.idle.fetched, []).append(spill)
    return freed, fetched


def _label(instruction: Instruction) -> str:
    """What a point of the timeline is called."""
    return f"{instruction.label} ({instruction.op_class})" if isinstance(instruction, Compute) else instruction.label


def _block_elements(value: Value, plan: Plan) -> Bytes:
    """Elements of the block of `value` at every position."""
    elements = np.ones(plan.n_positions, np.int64)
    for dim, n in enumerate(value.shape):
        split = value.layout.split_of(dim)
        if split is None:
            elements = elements * n
        else:
            lengths = np.asarray([split.length(c) for c in range(len(split.ranges))], np.int64)
            elements = elements * lengths[plan.index(split.axes)]
    return elements * plan.on(value.layout.stages)
