"""Spmd -> Program: the ops and messages of every device, by shapes alone.

The messages of a Fetch come from `windows.pieces` and those of a Collective from its schedule, exactly as in the
executor. A device's compute ops run in program order (a static schedule); messages and reductions run beside them as
soon as their data are ready, so that gradient buckets overlap with the rest of the backward pass.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule, emit
from meshemu.cost import TensorSpec, Update, Work, op_work
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.workload.chunks import chunk_bounds, one, row_length
from meshemu.workload.dtypes import number_format
from meshemu.workload.formats.storage import Storage, storage_of
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Collective, Compute, Fetch, PushAdd, Spmd, Value
from meshemu.workload.windows import pieces

__all__ = ["build_program"]

Layers = list[NDArray[np.int64]]
"""Ops that a value waits for: arrays over positions, -1 where a position waits for nothing."""


def build_program(
    spmd: Spmd, plan: Plan, n_devices: int, schedules: Mapping[int, Schedule], updates: Mapping[str, Update]
) -> Program:
    """The Program of one training step.

    schedules: index of a Collective instruction -> schedule. updates: parameter name -> what its update costs;
    parameters that are not updated are left out.
    """
    walk = _Walk(plan, n_devices, storage_of(spmd))
    for value in (*spmd.inputs.values(), *spmd.constants.values()):
        walk.done[value.id] = []
    for i, instruction in enumerate(spmd.instructions):
        match instruction:
            case Compute():
                walk.compute(instruction)
            case Fetch():
                walk.fetch(instruction)
            case PushAdd():
                walk.push_add(instruction)
            case Collective():
                walk.collective(instruction, schedules[i])
    walk.update(spmd, updates)
    return walk.builder.build()


class _Walk:
    """The walk over the instructions: `done` says which ops make each value complete, position by position."""

    def __init__(self, plan: Plan, n_devices: int, storage: Storage) -> None:
        self.plan = plan
        self.storage = storage
        self.builder = ProgramBuilder(n_devices)
        self.devices = np.asarray(plan.devices, np.int64)
        self.done: dict[int, Layers] = {}
        self.last_compute = np.full(plan.n_positions, -1, np.int64)
        self.paced_compute = self.last_compute

    def compute(self, instruction: Compute) -> None:
        """One op per device that has work to do; views cost nothing and make no op."""
        here = self.plan.on(instruction.stages)
        layers = _within(here, [layer for v in instruction.inputs for layer in self.done[v.id]])
        flops, read, write, busy = self._work(instruction)
        busy = busy & here
        if not busy.any():
            self._finish(instruction.outputs, layers)
            return
        where = np.flatnonzero(busy)
        ops = self.builder.compute(
            self.devices[where],
            label=instruction.label,
            op_class=instruction.op_class,
            number_format=self.storage.computed_in(instruction.inputs, _format_of(instruction)),
            flops=flops[where],
            read_bytes=read[where],
            write_bytes=write[where],
        )
        for layer in (*layers, self.last_compute):
            self.builder.depend(ops, layer[where])
        self.last_compute = self.last_compute.copy()
        self.last_compute[where] = ops
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
            layers.append(self.paced_compute)
            here = self.plan.on(instruction.stages)
            self.paced_compute = np.where(here, self.last_compute, self.paced_compute)
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

    def update(self, spmd: Spmd, updates: Mapping[str, Update]) -> None:
        """The optimizer's update: every device steps its blocks of the parameters, kind by kind."""
        updated = {name: value for name, value in spmd.gradients.items() if name in updates}
        layers = _merged([layer for value in updated.values() for layer in self.done[value.id]])
        for op_class in dict.fromkeys(updates[name].op_class for name in updated):
            work = np.zeros((3, self.plan.n_positions), np.int64)
            chosen = {name: value for name, value in updated.items() if updates[name].op_class == op_class}
            for name, value in chosen.items():
                here = self.plan.on(value.layout.stages)
                work += here * self._by_shape((value,), partial(self._update_work, updates[name], value))
            where = np.flatnonzero(work.any(axis=0))
            flops, read, write = work[:, where]
            ops = self.builder.compute(
                self.devices[where],
                label="optimizer",
                op_class=op_class,
                number_format=self.storage.number_format(next(iter(chosen.values()))),
                flops=flops,
                read_bytes=read,
                write_bytes=write,
            )
            for layer in (*layers, self.last_compute):
                self.builder.depend(ops, layer[where])

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

    def _work(
        self, instruction: Compute
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(flops, bytes read, bytes written, busy) per position."""
        values = (*instruction.inputs, *instruction.outputs)
        work = self._by_shape(values, partial(self._work_at, instruction))
        return work[0], work[1], work[2], np.asarray(work.any(axis=0))

    def _by_shape(self, values: tuple[Value, ...], work: Callable[[int], Work]) -> NDArray[np.int64]:
        """(flops, bytes read, bytes written) by position; work(position) is asked once for each set of block shapes."""
        n = self.plan.n_positions
        columns = [
            np.asarray([split.length(c) for c in range(len(split.ranges))], np.int64)[self.plan.index(split.axes)]
            for value in values
            for split in value.layout.splits
        ]
        if not columns:
            representative, inverse = np.zeros(1, np.int64), np.zeros(n, np.int64)
        else:
            _, representative, inverse = np.unique(
                np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
            )
        works = [work(int(position)) for position in representative]
        table = np.asarray([(w.flops, w.read_bytes, w.write_bytes) for w in works], np.int64)
        return np.asarray(table[inverse.ravel()].T)

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
