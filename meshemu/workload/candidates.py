"""Plans worth trying on a mesh for a model, for `plan = "auto"`."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from meshemu.errors import PlanError
from meshemu.mesh import Mesh
from meshemu.workload.graph import Graph, Role
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import Plan

__all__ = ["candidates", "inner_block", "largest"]

Spec = Mapping[str, int | list[int]]


def candidates(graph: Graph, mesh: Mesh) -> list[Plan]:
    """A small family of legal plans, most parallel in the batch first; never empty.

    The batch over as many devices as it has samples for, with parameters whole or sharded; images or features cut
    within each tile (within each row of devices where there is one tile only) and the batch over tiles; images or
    features over the whole mesh.
    """
    shapes = [tuple(i.node.meta["val"].shape) for i in graph.inputs if i.role is Role.BATCH]
    batch_size = next((shape[0] for shape in shapes if shape), 1)
    images = any(len(shape) >= 4 for shape in shapes)
    plans: dict[str, Plan] = {}
    for spec in _specs(mesh, batch_size, images=images):
        try:
            plan = make_plan(spec, mesh)
        except PlanError:
            continue
        if plan.size(plan.batch_axes) <= batch_size:
            plans.setdefault(plan.describe(), plan)
    if not plans:
        plan = make_plan({"data": 1}, mesh)
        plans[plan.describe()] = plan
    return list(plans.values())


def _specs(mesh: Mesh, batch_size: int, *, images: bool) -> Iterator[Spec]:
    n_alive = int(np.count_nonzero(mesh.alive))
    most = largest(mesh, "data", min(n_alive, batch_size))
    rows, cols = inner_block(mesh)
    blocks = [mesh.rows // rows, mesh.cols // cols]
    yield {"data": most}
    yield {"shard": most}
    if images:
        yield {"data": blocks, "spatial": [rows, cols]}
        yield {"shard": blocks, "spatial": [rows, cols]}
        yield {"spatial": [mesh.rows, mesh.cols]}
    yield {"data": blocks, "tensor": [rows, cols]}
    yield {"shard": blocks, "tensor": [rows, cols]}
    yield {"tensor": n_alive}


def largest(mesh: Mesh, kind: str, limit: int, others: Spec = MappingProxyType({})) -> int:
    """The largest axis of a kind, up to `limit`, that can be laid out beside `others`; 1 if none can."""
    for n in range(limit, 1, -1):
        try:
            make_plan({**others, kind: n}, mesh)
        except PlanError:
            continue
        return n
    return 1


def inner_block(mesh: Mesh) -> tuple[int, int]:
    """(rows, cols) of a tile; of a row of devices where the mesh is one tile."""
    n_rows, n_cols = int(mesh.tile_row.max()) + 1, int(mesh.tile_col.max()) + 1
    if (n_rows, n_cols) == (1, 1):
        return 1, mesh.cols
    return mesh.rows // n_rows, mesh.cols // n_cols
