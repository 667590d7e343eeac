"""Spmd -> Program: the ops and messages of every device, by shapes alone.

The messages of a Fetch come from `windows.pieces` and those of a Collective from its schedule, exactly as in the
executor. A device's compute ops run in program order (a static schedule), which several threads take in turn; messages
and reductions run beside them as soon as their data are ready, so that gradient buckets overlap with the rest of the
backward pass.
"""

from collections.abc import Callable, Mapping, Set
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule, emit
from meshemu.cost import TensorSpec, Update, Work, op_work
from meshemu.cost.op_classes import POINTWISE, VIEWS, base_name
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.workload.chunks import chunk_bounds, one, row_length
from meshemu.workload.dtypes import number_format
from meshemu.workload.formats.storage import Storage, storage_of
from meshemu.workload.plan import Plan
from meshemu.workload.spill_emission import Spilled, SpillOps
from meshemu.workload.spmd import Collective, Compute, Fetch, PushAdd, Spmd, Value, read_once
from meshemu.workload.windows import pieces

__all__ = ["build_program"]

Layers = list[NDArray[np.int64]]
"""Ops that a value waits for: arrays over positions, -1 where a position waits for nothing."""


def build_program(
    spmd: Spmd,
    plan: Plan,
    n_devices: int,
    schedules: Mapping[int, Schedule],
    updates: Mapping[str, Update],
    prefetch: int = 1,
    extend: Callable[[ProgramBuilder], None] | None = None,
    compute_threads: int = 1,
    spilled: Spilled | None = None,
) -> Program:
    """The Program of one training step.

    schedules: index of a Collective instruction -> schedule. updates: parameter name -> what its update costs;
    parameters that are not updated are left out. prefetch: a paced Collective starts once the work is done
    that came before the so many-th paced one before it; 0: before itself. extend: adds ops that nothing waits for.
    compute_threads: of a device, which take its ops in turn, so that each op waits for the so many-th before it.
    spilled: blocks that leave the memory of devices for a while.
    """
    walk = _Walk(plan, n_devices, storage_of(spmd), read_once(spmd), prefetch, compute_threads)
    for value in (*spmd.inputs.values(), *spmd.constants.values()):
        walk.done[value.id] = []
    moves = SpillOps(walk.builder, plan, walk.storage, spilled or Spilled.nothing(plan.n_positions))
    walk.let_go(moves, -1)
    for i, instruction in enumerate(spmd.instructions):
        walk.take_back(moves, i)
        match instruction:
            case Compute():
                walk.compute(instruction)
            case Fetch():
                walk.fetch(instruction)
            case PushAdd():
                walk.push_add(instruction)
            case Collective():
                walk.collective(instruction, schedules[i])
        walk.let_go(moves, i)
    walk.update(spmd, updates)
    if extend is not None:
        extend(walk.builder)
    return walk.builder.build()


class _Walk:
    """The walk over the instructions, position by position: `done` says which ops make each value complete, `made`
    which op alone made it, for values in `alone`, which have one reader; `last_of_threads` the last op of each compute
    thread, that of the thread whose turn it is first.
    """

    def __init__(
        self, plan: Plan, n_devices: int, storage: Storage, alone: Set[int], prefetch: int, compute_threads: int
    ) -> None:
        self.plan = plan
        self.storage = storage
        self.alone = alone
        self.made: dict[int, NDArray[np.int64]] = {}
        self.builder = ProgramBuilder(n_devices)
        self.devices = np.asarray(plan.devices, np.int64)
        self.done: dict[int, Layers] = {}
        self.last_of_threads: Layers = [np.full(plan.n_positions, -1, np.int64)] * compute_threads
        self.awaited: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.prefetch = prefetch
        self.before_paced = [self.last_of_threads] * prefetch

    def compute(self, instruction: Compute) -> None:
        """One op per device that has work to do; views cost nothing and make no op."""
        here = self.plan.on(instruction.stages)
        layers = _within(here, [layer for v in instruction.inputs for layer in self.done[v.id]])
        same, which = self._same_shapes((*instruction.inputs, *instruction.outputs))
        flops, read, write, shape = self._columns([self._work_at(instruction, p) for p in same])[:, which]
        busy = ((flops > 0) | (read > 0) | (write > 0)) & here
        if not busy.any():
            self._finish(instruction.outputs, layers)
            self._pass_on(instruction)
            return
        where = np.flatnonzero(busy)
        source = self._producer(instruction)
        size_bytes = [0 if source is None else self._spec(source, p).size_bytes for p in same]
        producer = np.full(len(where), -1) if source is None else self.made[source.id][where]
        ops = self.builder.compute(
            self.devices[where],
            label=instruction.label,
            op_class=instruction.op_class,
            number_format=self.storage.computed_in(instruction.inputs, _format_of(instruction)),
            flops=flops[where],
            read_bytes=read[where],
            write_bytes=write[where],
            shape=shape[where],
            producer=producer,
            producer_bytes=np.where(producer < 0, 0, np.asarray(size_bytes, np.int64)[which][where]),
        )
        for layer in (*layers, self.last_of_threads[0]):
            self.builder.depend(ops, layer[where])
        for value in instruction.outputs:
            if value.id in self.alone:
                self.made[value.id] = _scattered(self.plan.n_positions, where, ops)
        self._await_room(where, ops)
        self._take_turns(where, ops)
        idle = [np.where(busy, -1, layer) for layer in layers] if not busy.all() else []
        self._finish(instruction.outputs, [_scattered(self.plan.n_positions, where, ops), *idle])

    def fetch(self, instruction: Fetch) -> None:
        """One message per box that crosses devices."""
        source, output = instruction.source, instruction.output
        held = _within(self.plan.on(output.layout.stages), self.done[source.id])
        boxes = pieces(source.shape, source.layout, output.layout, self.plan)
        moves = boxes.moves
        arrived = self._messages(
            boxes.src[moves], boxes.dst[moves], boxes.n_elements[moves] * self.storage.itemsize(source), source,
            instruction.label,
        )  # fmt: skip
        self._finish((output,), [*held, *_layered(self.plan.n_positions, boxes.dst[moves], arrived)])

    def push_add(self, instruction: PushAdd) -> None:
        """The messages of the fetch, backwards, and one addition per device that gets any."""
        source, output = instruction.source, instruction.output
        boxes = pieces(output.shape, output.layout, source.layout, self.plan)
        moves = boxes.moves
        owner, itemsize = boxes.src[moves], self.storage.itemsize(source)
        size_bytes = boxes.n_elements[moves] * itemsize
        arrived = self._messages(boxes.dst[moves], owner, size_bytes, source, instruction.label)
        received = np.zeros(self.plan.n_positions, np.int64)
        np.add.at(received, owner, size_bytes)
        where = np.flatnonzero(received)
        adds = self.builder.reduce(
            self.devices[where],
            label=instruction.label,
            op_class="halo_add",
            number_format=self.storage.number_format(source),
            flops=received[where] // itemsize,
            read_bytes=2 * received[where],
            write_bytes=received[where],
        )
        added = _scattered(self.plan.n_positions, where, adds)
        for layer in (*self.done[source.id], *_layered(self.plan.n_positions, owner, arrived)):
            self.builder.depend(adds, layer[where])
        others = [np.where(added >= 0, -1, layer) for layer in self.done[source.id]]
        self._finish((output,), [added, *others])

    def collective(self, instruction: Collective, schedule: Schedule) -> None:
        """The schedule's ops, for every group."""
        layers = [layer for v in instruction.sources for layer in self.done[v.id]]
        if instruction.paced:
            layers += self._paced(instruction)
        waits = _merged(layers)
        members, _, _ = self.plan.groups(instruction.axes, instruction.stages)
        positions, ops = [], []
        itemsize, number_format = self.storage.carried(instruction)
        size_of: Callable[[Value], int] = one
        if self.storage.mixed(instruction):
            itemsize, size_of = 1, self.storage.itemsize
        for group in members:
            bounds = chunk_bounds(instruction, schedule.n_chunks, group, self.plan, size_of)
            participant, op = emit(
                self.builder,
                schedule,
                self.devices[group],
                n_elements=int(bounds[-1]),
                bounds=bounds,
                itemsize=row_length(instruction) * itemsize,
                label=instruction.label,
                op_class=f"reduce_{instruction.combine}",
                number_format=number_format,
                after=[layer[group] for layer in waits],
            )
            positions.append(group[participant])
            ops.append(op)
        self._finish(
            instruction.outputs, _layered(self.plan.n_positions, np.concatenate(positions), np.concatenate(ops))
        )

    def let_go(self, moves: SpillOps, index: int) -> None:
        """Blocks that are idle after instruction `index` leave, once it is done with them."""
        for spill in moves.leaving(index):
            moves.leave(spill, _merged([*self.done[spill.idle.block.value.id], *self.last_of_threads]))

    def take_back(self, moves: SpillOps, index: int) -> None:
        """Before operator `index`: what it needs room of has left; what there is room for again comes back."""
        for left in moves.left_before(index):
            self.awaited.append((left, np.where(left >= 0, len(self.last_of_threads), 0)))
        for spill in moves.returning(index):
            back = moves.come_back(spill, _merged(self.last_of_threads))
            for value_id in spill.idle.block.values:
                self.made.pop(value_id, None)
                if value_id in self.done:
                    self.done[value_id] = [*self.done[value_id], back]

    def _await_room(self, where: NDArray[np.int64], ops: NDArray[np.int64]) -> None:
        """The next op of every thread waits for blocks to have left."""
        for left, n_waiting in self.awaited:
            self.builder.depend(ops, np.where(n_waiting[where] > 0, left[where], -1))
            n_waiting[where] -= 1
        self.awaited = [(left, n_waiting) for left, n_waiting in self.awaited if (n_waiting > 0).any()]

    def _take_turns(self, where: NDArray[np.int64], ops: NDArray[np.int64]) -> None:
        """The threads whose turn it was have their next op, where there is one; the turn is the next thread's there."""
        taken = np.zeros(self.plan.n_positions, np.bool_)
        taken[where] = True
        turned = [*self.last_of_threads[1:], _scattered(self.plan.n_positions, where, ops)]
        self.last_of_threads = [
            np.where(taken, new, old) for old, new in zip(self.last_of_threads, turned, strict=True)
        ]

    def _paced(self, instruction: Collective) -> Layers:
        """The work that a paced Collective waits for. A stage of a pipeline counts its own."""
        if not self.prefetch:
            return self.last_of_threads
        here, earlier = self.plan.on(instruction.stages), self.before_paced
        later = [*earlier[1:], self.last_of_threads]
        self.before_paced = [
            [np.where(here, new, old) for old, new in zip(*layers, strict=True)]
            for layers in zip(earlier, later, strict=True)
        ]
        return earlier[0]

    def update(self, spmd: Spmd, updates: Mapping[str, Update]) -> None:
        """The optimizer's update: every device steps its blocks of the parameters, kind by kind."""
        updated = {name: value for name, value in spmd.gradients.items() if name in updates}
        layers = _merged([layer for value in updated.values() for layer in self.done[value.id]])
        for op_class in dict.fromkeys(updates[name].op_class for name in updated):
            work = np.zeros((4, self.plan.n_positions), np.int64)
            chosen = {name: value for name, value in updated.items() if updates[name].op_class == op_class}
            for name, value in chosen.items():
                here = self.plan.on(value.layout.stages)
                same, which = self._same_shapes((value,))
                works = [self._update_work(updates[name], value, p) for p in same]
                sums = [(w.flops, w.read_bytes, w.write_bytes, sum(part[0] for part in w.shape)) for w in works]
                work += here * np.asarray(sums, np.int64)[which].T
            where = np.flatnonzero(work.any(axis=0))
            flops, read, write, elements = work[:, where]
            distinct, of = np.unique(elements, return_inverse=True)
            shapes = np.asarray([self.builder.shape(((int(n),),)) for n in distinct], np.int64)
            ops = self.builder.compute(
                self.devices[where],
                label="optimizer",
                op_class=op_class,
                number_format=self.storage.number_format(next(iter(chosen.values()))),
                flops=flops,
                read_bytes=read,
                write_bytes=write,
                shape=shapes[of],
            )
            for layer in (*layers, *self.last_of_threads):
                self.builder.depend(ops, layer[where])

    def _pass_on(self, view: Compute) -> None:
        """A view of all of a value with one reader is that value for whoever reads the view."""
        if base_name(view.op_class) not in VIEWS or len(view.inputs) != 1 or len(view.outputs) != 1:
            return
        source, output = view.inputs[0], view.outputs[0]
        if source.id in self.made and self._like(source, output):
            self.made[output.id] = self.made[source.id]

    def _producer(self, instruction: Compute) -> Value | None:
        """The input that a pointwise op alone reads, element by element; of several, the one that was made last."""
        if base_name(instruction.op_class) not in POINTWISE or len(instruction.outputs) != 1:
            return None
        output = instruction.outputs[0]
        found = [v for v in instruction.inputs if v.id in self.alone and v.id in self.made]
        whole = [v for v in found if prod(v.shape) == prod(output.shape)]
        return max(whole, key=lambda v: int(self.made[v.id].max()), default=None)

    def _like(self, one: Value, other: Value) -> bool:
        return prod(one.shape) == prod(other.shape) and self.storage.itemsize(one) == self.storage.itemsize(other)

    def _messages(
        self, src: NDArray[np.int64], dst: NDArray[np.int64], size_bytes: NDArray[np.int64], source: Value, label: str
    ) -> NDArray[np.int64]:
        """One message per row, sent when `source` is complete at its position; returns the RECV ops."""
        _, send, recv = self.builder.messages(self.devices[src], self.devices[dst], size_bytes, label=label)
        for layer in self.done[source.id]:
            self.builder.depend(send, layer[src])
        return recv

    def _finish(self, outputs: tuple[Value, ...], layers: Layers) -> None:
        for value in outputs:
            self.done[value.id] = layers

    def _columns(self, works: list[Work]) -> NDArray[np.int64]:
        """Flops, bytes read, bytes written and number of the shape (rows) of each work."""
        shape = self.builder.shape
        return np.asarray([(w.flops, w.read_bytes, w.write_bytes, shape(w.shape)) for w in works], np.int64).T

    def _same_shapes(self, values: tuple[Value, ...]) -> tuple[list[int], NDArray[np.int64]]:
        """(one position for each set of block shapes of `values`, the index of its set by position)."""
        n = self.plan.n_positions
        columns = [
            np.asarray([split.length(c) for c in range(len(split.ranges))], np.int64)[self.plan.index(split.axes)]
            for value in values
            for split in value.layout.splits
        ]
        if not columns:
            return [0], np.zeros(n, np.int64)
        _, same, which = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
        return [int(position) for position in same], which.ravel()

    def _update_work(self, update: Update, value: Value, position: int) -> Work:
        shape = value.layout.local_shape(value.shape, self.plan.at(position))
        return update.work(TensorSpec(shape, value.dtype.itemsize), self._spec(value, position))

    def _work_at(self, instruction: Compute, position: int) -> Work:
        place = self.plan.at(position)
        if not instruction.takes_empty and any(v.layout.empty(place) for v in instruction.inputs):
            return Work(0, 0, 0)
        inputs = [self._spec(v, position) for v in instruction.inputs]
        outputs = [self._spec(v, position) for v in instruction.outputs]
        return op_work(instruction.op_class, inputs, outputs, instruction.attributes)

    def _spec(self, value: Value, position: int) -> TensorSpec:
        return TensorSpec(value.layout.local_shape(value.shape, self.plan.at(position)), self.storage.itemsize(value))


def _format_of(instruction: Compute) -> str:
    dtypes = [v.dtype for v in (*instruction.inputs, *instruction.outputs)]
    floating = [d for d in dtypes if d.is_floating_point]
    dtype = (floating or dtypes or [torch.float32])[0]
    return number_format(dtype)


def _scattered(n: int, where: NDArray[np.int64], ops: NDArray[np.int64]) -> NDArray[np.int64]:
    layer = np.full(n, -1, np.int64)
    layer[where] = ops
    return layer


def _layered(n: int, position: NDArray[np.int64], ops: NDArray[np.int64]) -> Layers:
    """Several ops per position as layers of one op each."""
    if not len(ops):
        return []
    order = np.argsort(position, kind="stable")
    sorted_position = position[order]
    first = np.searchsorted(sorted_position, sorted_position)
    depth = np.arange(len(order)) - first
    return [
        _scattered(n, sorted_position[depth == d], ops[order][depth == d]) for d in range(int(depth.max()) + 1)
    ]


def _within(here: NDArray[np.bool_], layers: Layers) -> Layers:
    """Layers without repetitions, as far as they concern the positions `here`."""
    if here.all():
        return _merged(layers)
    return [layer for layer in _merged([np.where(here, layer, -1) for layer in layers]) if (layer >= 0).any()]


def _merged(layers: Layers) -> Layers:
    """Layers without repetitions."""
    distinct: dict[bytes, NDArray[np.int64]] = {layer.tobytes(): layer for layer in layers}
    return list(distinct.values())
