"""Pipelines worth trying on a mesh for a model, for `plan = "auto"`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from meshemu.errors import PlanError
from meshemu.mesh import Mesh
from meshemu.workload.candidates import inner_block, largest
from meshemu.workload.dependence import updated_buffers
from meshemu.workload.graph import Graph, Role
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import Plan
from meshemu.workload.samples import batch_size_of, with_micro_batches
from meshemu.workload.stages import most_stages

__all__ = ["pipeline_candidates"]

MOST_NODES = 20_000
"""Operators, counted once for each micro-batch, of a pipeline that is still tried: to build it takes seconds."""


def pipeline_candidates(graph: Graph, mesh: Mesh, batch: Any, micro_batches: int) -> list[Plan]:
    """At most four pipelines with their micro-batches, none where model or batch are too small for one.

    A stage on each tile (on each row of devices where there is one tile only), with the batch or the features cut
    within it; two stages with the batch over as many devices as fit; a stage on each device. micro_batches: how many
    were asked for, 1 where that is left open. A model whose step changes buffers, as batch norm does, gets a pipeline
    only if some were: its statistics would be those of micro-batches instead of those of the batch. One whose step
    depends on values gets none.
    """
    if graph.loss is None or any(item.role is Role.DECISION for item in graph.inputs):
        return []
    if micro_batches == 1 and updated_buffers(graph):
        return []
    most = most_stages(graph)
    plans: dict[str, Plan] = {}
    deepest = min(most, batch_size_of(batch), MOST_NODES // (2 * len(graph.nodes)))
    for spec in _specs(mesh, batch_size_of(batch), deepest):
        try:
            plan = with_micro_batches(make_plan(spec, mesh), batch, micro_batches)
        except PlanError:
            continue
        count = plan.micro_batches or 1
        if 1 < plan.n_stages <= most and 1 < count <= MOST_NODES // len(graph.nodes):
            plans.setdefault(plan.describe(), plan)
    return list(plans.values())


def _specs(mesh: Mesh, batch_size: int, deepest: int) -> Iterator[Mapping[str, int | list[int]]]:
    n_alive = int(np.count_nonzero(mesh.alive))
    rows, cols = inner_block(mesh)
    blocks = [mesh.rows // rows, mesh.cols // cols]
    yield {"pipeline": blocks, "data": [rows, cols]}
    yield {"pipeline": blocks, "tensor": [rows, cols]}
    replicas = largest(mesh, "data", min(n_alive, batch_size // 2) // 2, {"pipeline": 2})
    yield {"pipeline": 2, "data": replicas} if replicas > 1 else {"pipeline": 2}
    yield {"pipeline": largest(mesh, "pipeline", min(n_alive, deepest))}
