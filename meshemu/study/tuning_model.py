"""What can be chosen for a configured model on its system: its plans, and for one of them the options."""

from collections.abc import Mapping
from typing import Any

from meshemu.collectives import lacking
from meshemu.config import Config
from meshemu.emulator.build_step import op_cost
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.study.tuning_cuts import stage_cuts
from meshemu.study.tuning_options import COLLECTIVES, IN_NETWORK, Options
from meshemu.study.tuning_space import extent, n_devices, placements, plan_tables
from meshemu.workload.dependence import updated_buffers
from meshemu.workload.graph import Graph, Role

__all__ = ["options_for", "plans_for"]

USED = ("all_reduce", "reduce_scatter", "all_gather")
"""Kinds of collectives in a step."""


def plans_for(config: Config, mesh: Mesh, graph: Graph | None) -> list[dict[str, Any]]:
    """`plan_tables` of a model: images are cut where there are any, stages only where that leaves its statistics alone.

    graph: of its step; None where none could be captured.
    """
    parts = config.training.micro_batches
    batch = [] if graph is None else [item.node.meta["val"] for item in graph.inputs if item.role is Role.BATCH]
    return plan_tables(
        mesh,
        config.data.batch_size,
        images=any(value.ndim >= 4 for value in batch),
        pipelines=graph is not None and (parts > 1 or not updated_buffers(graph)),
        micro_batches=parts,
    )


def options_for(config: Config, system: System, graph: Graph | None, table: Mapping[str, Any]) -> Options:
    """What can be chosen for a plan. Stages are cut where modules of the graph of the whole batch begin."""
    mesh, stages = flatten(system), extent(table.get("pipeline", 1))
    cuts: list[tuple[str, ...]] = []
    if graph is not None and stages > 1 and "stages" not in table:
        cuts = stage_cuts(graph, stages, op_cost(system.device, n_devices(table) // stages))
    forking = config.network.router is None and not any(lacking(kind, mesh) for kind in USED)
    return Options.of(
        table,
        config.timing,
        layouts=placements(table, mesh),
        cuts=cuts,
        collectives=[*COLLECTIVES, IN_NETWORK] if forking else COLLECTIVES,
        gradient_bytes=0 if graph is None else _gradient_bytes(graph),
    )


def _gradient_bytes(graph: Graph) -> int:
    values = [node.meta["val"] for node in graph.gradients.values()]
    return sum(value.numel() * value.itemsize for value in values)
