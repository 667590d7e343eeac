"""How much memory each device needs: the liveness of every block over the instructions of a step."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.formats.storage import Storage, storage_of
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Compute, Spmd, Value, inputs_of, last_uses, outputs_of

__all__ = ["peak_memory_bytes"]

Bytes = NDArray[np.int64]


def peak_memory_bytes(
    spmd: Spmd,
    plan: Plan,
    n_devices: int,
    states: Mapping[str, int],
    views: Collection[str],
    state_bytes: Mapping[str, int] | None = None,
) -> Bytes:
    """Greatest sum of live blocks on every device, int64[n_devices] (0 on devices outside the plan).

    Parameters, buffers and the optimizer's tensors live throughout, each device holding its blocks of them; everything
    else from the instruction that makes it to its last use. A view shares the memory of its source. states: parameter
    name -> tensors of its shape that the optimizer keeps. views: op classes of views. state_bytes: parameter name ->
    bytes that these take for an element, where they are not in the parameter's number format. Buffers of messages in
    flight are not counted.
    """
    storage = storage_of(spmd)
    resident = [v for name, v in spmd.inputs.items() if not name.startswith("batch.")] + list(spmd.constants.values())
    live = sum((_block_bytes(v, plan, storage) for v in resident), np.zeros(plan.n_positions, np.int64))
    for name, value in spmd.gradients.items():
        per_element = (state_bytes or {}).get(name, states.get(name, 0) * value.dtype.itemsize)
        live = live + per_element * _block_elements(value, plan)
    owner = {v.id: v.id for v in resident}
    users: dict[int, int] = {}
    size: dict[int, Bytes] = {}
    permanent = {v.id for v in resident}
    for name, value in spmd.inputs.items():
        if name.startswith("batch."):
            owner[value.id], users[value.id], size[value.id] = value.id, 1, _block_bytes(value, plan, storage)
            live = live + size[value.id]
    peak = live.copy()
    released = last_uses(spmd)
    for i, instruction in enumerate(spmd.instructions):
        view = isinstance(instruction, Compute) and instruction.op_class in views and bool(instruction.inputs)
        for value in outputs_of(instruction):
            owner[value.id] = owner[inputs_of(instruction)[0].id] if view else value.id
            root = owner[value.id]
            if root in permanent:
                continue
            if root not in size:
                size[root] = _block_bytes(value, plan, storage)
                live = live + size[root]
            users[root] = users.get(root, 0) + 1
        peak = np.maximum(peak, live)
        for value_id in released.get(i, ()):
            root = owner[value_id]
            if root in permanent:
                continue
            users[root] -= 1
            if not users[root]:
                live = live - size.pop(root)
    result = np.zeros(n_devices, np.int64)
    result[np.asarray(plan.devices)] = peak
    return result


def _block_bytes(value: Value, plan: Plan, storage: Storage) -> Bytes:
    """Bytes of the block of `value` at every position, as it is stored."""
    return _block_elements(value, plan) * storage.itemsize(value)


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
