"""Spmd -> Program: the ops and messages of every device, by shapes alone.

The messages of a Fetch come from `windows.pieces` and those of an AllReduce from its schedule, exactly as in the
executor. A device's compute ops run in program order (a static schedule); messages and reductions run beside them as
soon as their data are ready, so that gradient buckets overlap with the rest of the backward pass.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule, emit
from meshemu.cost import TensorSpec, Work, op_work
from meshemu.cost.op_classes import OPTIMIZERS
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.workload.dtypes import number_format
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import AllReduce, Compute, Fetch, PushAdd, Spmd, Value
from meshemu.workload.windows import pieces

__all__ = ["build_program"]

Layers = list[NDArray[np.int64]]
"""Ops that a value waits for: arrays over positions, -1 where a position waits for nothing."""


def build_program(
    spmd: Spmd, plan: Plan, n_devices: int, schedules: Mapping[int, Schedule], optimizer: str | None
) -> Program:
    """The Program of one training step.

    schedules: index of an AllReduce instruction -> schedule. optimizer: op class of the update that follows ("sgd",
    "sgd_momentum", "adamw"; None: no update).
    """
    walk = _Walk(plan, n_devices)
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
            case AllReduce():
                walk.all_reduce(instruction, schedules[i])
    if optimizer is not None:
        walk.update(spmd, optimizer)
    return walk.builder.build()


class _Walk:
    """The walk over the instructions: `done` says which ops make each value complete, position by position."""

    def __init__(self, plan: Plan, n_devices: int) -> None:
        self.plan = plan
        self.builder = ProgramBuilder(n_devices)
        self.devices = np.asarray(plan.devices, np.int64)
        self.done: dict[int, Layers] = {}
        self.last_compute = np.full(plan.n_positions, -1, np.int64)

    def compute(self, instruction: Compute) -> None:
        """One op per device that has work to do; views cost nothing and make no op."""
        layers = _merged([layer for v in instruction.inputs for layer in self.done[v.id]])
        flops, read, write, busy = self._work(instruction)
        if not busy.any():
            self._finish(instruction.outputs, layers)
            return
        where = np.flatnonzero(busy)
        ops = self.builder.compute(
            self.devices[where],
            label=instruction.label,
            op_class=instruction.op_class,
            number_format=_format_of(instruction),
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
        boxes = pieces(source.shape, source.layout, output.layout, self.plan)
        moves = boxes.moves
        arrived = self._messages(
            boxes.src[moves], boxes.dst[moves], boxes.n_elements[moves] * source.dtype.itemsize, source,
            instruction.label,
        )  # fmt: skip
        self._finish((output,), [*self.done[source.id], *_layered(self.plan.n_positions, boxes.dst[moves], arrived)])

    def push_add(self, instruction: PushAdd) -> None:
        """The messages of the fetch, backwards, and one addition per device that gets any."""
        source, output = instruction.source, instruction.output
        boxes = pieces(output.shape, output.layout, source.layout, self.plan)
        moves = boxes.moves
        owner, itemsize = boxes.src[moves], source.dtype.itemsize
        size_bytes = boxes.n_elements[moves] * itemsize
        arrived = self._messages(boxes.dst[moves], owner, size_bytes, source, instruction.label)
        received = np.zeros(self.plan.n_positions, np.int64)
        np.add.at(received, owner, size_bytes)
        where = np.flatnonzero(received)
        adds = self.builder.reduce(
            self.devices[where],
            label=instruction.label,
            op_class="halo_add",
            number_format=number_format(source.dtype),
            flops=received[where] // itemsize,
            read_bytes=2 * received[where],
            write_bytes=received[where],
        )
        added = _scattered(self.plan.n_positions, where, adds)
        for layer in (*self.done[source.id], *_layered(self.plan.n_positions, owner, arrived)):
            self.builder.depend(adds, layer[where])
        others = [np.where(added >= 0, -1, layer) for layer in self.done[source.id]]
        self._finish((output,), [added, *others])

    def all_reduce(self, instruction: AllReduce, schedule: Schedule) -> None:
        """The schedule's ops, for every group."""
        layers = [layer for v in instruction.sources for layer in self.done[v.id]]
        row = 3 if instruction.combine == "moments" else 1
        members, _, _ = self.plan.groups(instruction.axes)
        positions, ops = [], []
        for group in members:
            elements = sum(self._local_elements(v, int(group[0])) for v in instruction.sources)
            participant, op = emit(
                self.builder,
                schedule,
                self.devices[group],
                n_elements=elements // row,
                itemsize=row * instruction.sources[0].dtype.itemsize,
                label=instruction.label,
                op_class=f"reduce_{instruction.combine}",
                number_format=number_format(instruction.sources[0].dtype),
                after=[layer[group] for layer in _merged(layers)],
            )
            positions.append(group[participant])
            ops.append(op)
        self._finish(
            instruction.outputs, _layered(self.plan.n_positions, np.concatenate(positions), np.concatenate(ops))
        )

    def update(self, spmd: Spmd, optimizer: str) -> None:
        """The optimizer's update of all parameters, on every device."""
        layers = _merged([layer for v in spmd.gradients.values() for layer in self.done[v.id]])
        specs = [TensorSpec(v.shape, v.dtype.itemsize) for v in spmd.gradients.values()]
        n_states = OPTIMIZERS[optimizer][2]
        works = [op_work(optimizer, [spec] * (2 + n_states), [spec] * (1 + n_states), {}) for spec in specs]
        dtype = next(iter(spmd.gradients.values())).dtype
        ops = self.builder.compute(
            self.devices,
            label="optimizer",
            op_class=optimizer,
            number_format=number_format(dtype),
            flops=sum(w.flops for w in works),
            read_bytes=sum(w.read_bytes for w in works),
            write_bytes=sum(w.write_bytes for w in works),
        )
        for layer in (*layers, self.last_compute):
            self.builder.depend(ops, layer)

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

    def _local_elements(self, value: Value, position: int) -> int:
        return prod(value.layout.local_shape(value.shape, self.plan.at(position)))

    def _work(
        self, instruction: Compute
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(flops, bytes read, bytes written, busy) per position; each distinct set of block shapes is costed once."""
        n = self.plan.n_positions
        values = (*instruction.inputs, *instruction.outputs)
        columns = [
            np.asarray([hi - lo for lo, hi in split.ranges], np.int64)[self.plan.index(split.axes)]
            for value in values
            for split in value.layout.splits
        ]
        if not columns:
            representative, inverse = np.zeros(1, np.int64), np.zeros(n, np.int64)
        else:
            _, representative, inverse = np.unique(
                np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
            )
        works = [self._work_at(instruction, int(position)) for position in representative]
        table = np.asarray([(w.flops, w.read_bytes, w.write_bytes) for w in works], np.int64)
        rows = table[inverse.ravel()]
        return rows[:, 0], rows[:, 1], rows[:, 2], np.asarray(rows.any(axis=1))

    def _work_at(self, instruction: Compute, position: int) -> Work:
        place = self.plan.at(position)

        def spec(value: Value) -> TensorSpec:
            return TensorSpec(value.layout.local_shape(value.shape, place), value.dtype.itemsize)

        if any(v.layout.empty(place) for v in instruction.inputs):
            return Work(0, 0, 0)
        inputs = [spec(v) for v in instruction.inputs]
        return op_work(instruction.op_class, inputs, [spec(v) for v in instruction.outputs], instruction.attributes)


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


def _merged(layers: Layers) -> Layers:
    """Layers without repetitions."""
    distinct: dict[bytes, NDArray[np.int64]] = {layer.tobytes(): layer for layer in layers}
    return list(distinct.values())
