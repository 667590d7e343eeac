"""The plans that `meshemu tune` considers for a mesh and a batch, and how fast each could be at best."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any

import numpy as np

from meshemu.cost import durations_ps
from meshemu.cost.op_classes import OPTIMIZERS, base_name
from meshemu.errors import PlanError
from meshemu.hardware import DeviceSpec
from meshemu.mesh import Mesh
from meshemu.program.ir import OpKind, Program
from meshemu.workload.candidates import inner_block, largest
from meshemu.workload.placement import make_plan

__all__ = ["AloneTime", "alone_time", "plan_bound_ps", "plan_estimate_ps", "plan_tables"]

MOST_TENSOR = 25
MOST_STAGES = 8
PARTS = (1, 2, 3, 6)
"""Replicas are as many as fit, and these parts of that: more devices compute less and wait longer for each other."""


@dataclass(frozen=True)
class AloneTime:
    """What one device alone takes for the step, without updates: work_ps that any number may share, and launches of
    ops, each of which some device of every stage makes.
    """

    work_ps: int
    launch_ps: int


def alone_time(program: Program, device: DeviceSpec | None) -> AloneTime:
    """Of the Program of a step on one device."""
    if device is None:
        return AloneTime(0, 0)
    durations = durations_ps(program, device)
    of_step = np.array([base_name(name) not in OPTIMIZERS for name in program.op_classes], np.bool_)
    counted = (program.kind == OpKind.COMPUTE) & (durations > 0) & of_step[program.op_class]
    launches = int(counted.sum()) * device.op_launch_ps
    return AloneTime(int(durations[counted].sum()) - launches, launches)


def plan_bound_ps(table: dict[str, Any], alone: AloneTime) -> int:
    """No step under the plan is faster: its work shared evenly, and its launches, which only stages share."""
    axes = ("pipeline", "data", "shard", "tensor", "spatial")
    n_devices = prod(prod(_extent(table[kind])) for kind in axes if kind in table)
    return ceil(alone.work_ps / n_devices) + alone.launch_ps // prod(_extent(table.get("pipeline", 1)))


def plan_estimate_ps(table: dict[str, Any], alone: AloneTime, collectives_ps: float = 0.0) -> int:
    """About what a step takes under the plan: micro-batches launch their ops each, the stages of a pipeline fill and
    drain, and collectives take as long as the mesh of a stage is across. collectives_ps: of one device, as it were.
    """
    n_stages, n_parts = prod(_extent(table.get("pipeline", 1))), int(table.get("micro_batches", 1))
    shared = plan_bound_ps(table, AloneTime(alone.work_ps, 0)) + alone.launch_ps * n_parts // n_stages
    across = sqrt(prod(prod(_extent(table[kind])) for kind in ("data", "shard", "tensor", "spatial") if kind in table))
    return shared * (n_parts + n_stages - 1) // n_parts + round(collectives_ps * across)


def plan_tables(mesh: Mesh, batch_size: int, *, images: bool, pipelines: bool) -> list[dict[str, Any]]:
    """Plans as tables, without repetition.

    Replicas (as many as mesh and batch allow, and parts of that), whole or with parameters sharded at each ZeRO level,
    times tensor or spatial cuts, times pipeline stages with twice and four times as many micro-batches as stages.
    """
    found: dict[str, dict[str, Any]] = {}
    n_alive = int(np.count_nonzero(mesh.alive))
    for inner in _inner(mesh, n_alive, images=images):
        for stages in [n for n in range(1, MOST_STAGES + 1) if n == 1 or (pipelines and 2 * n <= batch_size)]:
            if stages * prod(prod(_extent(value)) for value in inner.values()) > n_alive:
                continue
            for micro_batches in (2 * stages, 4 * stages) if stages > 1 else (1,):
                flow = {"pipeline": stages, "micro_batches": micro_batches} if stages > 1 else {}
                for table in _replicated(mesh, {**flow, **inner}, n_alive, batch_size // micro_batches):
                    found.setdefault(repr(sorted(table.items())), table)
    return list(found.values())


def _inner(mesh: Mesh, n_alive: int, *, images: bool) -> Iterator[dict[str, Any]]:
    """Cuts within a replica."""
    yield {}
    rows, cols = inner_block(mesh)
    blocks = dict.fromkeys([(rows, cols), (1, cols), (rows, 1), (mesh.rows, mesh.cols)])
    sizes = dict.fromkeys([*(n for n in range(2, min(MOST_TENSOR, n_alive) + 1) if n_alive % n == 0)])
    for size in sizes:
        yield {"tensor": size}
    for block in blocks:
        if images and prod(block) > 1:
            yield {"spatial": list(block)}


def _replicated(mesh: Mesh, inner: dict[str, Any], n_alive: int, most: int) -> Iterator[dict[str, Any]]:
    """Plans with as many replicas as there are samples and devices for, and with fewer, of each kind."""
    limit = min(most, n_alive // prod(prod(_extent(inner[k])) for k in ("pipeline", "tensor", "spatial") if k in inner))
    if inner and _fits(inner, mesh):
        yield inner
    for kind, levels in (("data", (None,)), ("shard", (1, 2, 3))):
        for level in levels:
            options = {} if level is None else {"zero": level}
            for part in PARTS if limit > 1 else ():
                count = largest(mesh, kind, limit // part, inner)
                if count > 1:
                    yield {**inner, kind: count, **options}


def _fits(table: dict[str, Any], mesh: Mesh) -> bool:
    try:
        make_plan(table, mesh)
    except PlanError:
        return False
    return True


def _extent(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
