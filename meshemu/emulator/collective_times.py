"""Collectives over all devices of a system: as verified Programs, and how long each algorithm takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meshemu.collectives import (
    ALGORITHMS,
    KINDS,
    closed_form_ps,
    collective_lower_bound_ps,
    collective_program,
    lacking,
)
from meshemu.cost import combine_cost
from meshemu.emulator.changes import hardware_figures, timing_options_of
from meshemu.emulator.timing import time
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import Mesh, flatten
from meshemu.program.ir import Program
from meshemu.units import format_bytes, format_time

__all__ = ["CollectiveTime", "collective", "collective_times", "collectives_table", "configured_system"]

ITEMSIZE = 4  # fp32


def collective(
    kind: str,
    algorithm: str = "auto",
    *,
    system: System,
    size_bytes: int,
    itemsize: int = 1,
    root: int | None = None,
    n_chunks: int | None = None,
) -> Program:
    """A verified schedule of one collective over all live devices of `system`.

    kind: all_reduce, reduce_scatter, all_gather, broadcast, reduce. algorithm: ring, rows_columns, tree or auto (the
    fastest by the contention-free model). size_bytes: the whole buffer; elements of `itemsize` bytes are never cut.
    root: participant that broadcast reads and reduce fills (default 0).
    """
    number_format = "fp32" if itemsize not in (1, 2, 4, 8) else None
    combine = combine_cost(system.device, "fp32")
    return collective_program(
        kind, algorithm, flatten(system), size_bytes, itemsize=itemsize, root=root, n_chunks=n_chunks,
        number_format=number_format, combine=combine,
    )  # fmt: skip


@dataclass(frozen=True)
class CollectiveTime:
    """One collective over all live devices by one algorithm; without times where it cannot be, and `fault` says why.

    model_ps: by the contention-free formula. simulated_ps: with contention. bound_ps: no algorithm is faster on these
    links. traffic_bytes: sum of its messages.
    """

    kind: str
    algorithm: str
    size_bytes: int
    bound_ps: int
    model_ps: int | None
    simulated_ps: int | None
    n_messages: int | None
    traffic_bytes: int | None
    fault: str


def collective_times(
    system: System, sizes_bytes: Sequence[int], *, kinds: Sequence[str] = KINDS, router: Router | None = None,
    comm: Any = None,
) -> list[CollectiveTime]:
    """Every algorithm of `kinds` over all live devices of `system`, for each size of the whole buffer in fp32.

    in_network is among the algorithms where routers can do it. Raises InputError for unknown kinds and for sizes that
    are no whole number of elements, before anything is timed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"unknown collective {kind!r}; known: {', '.join(KINDS)}")
    for size in sizes_bytes:
        if size % ITEMSIZE or size < ITEMSIZE:
            raise InputError(f"--size {size} B is no whole number of fp32 elements of {ITEMSIZE} B")
    mesh = flatten(system)
    return [
        _timed(kind, algorithm, size, system, mesh, router, comm)
        for kind in kinds
        for size in sizes_bytes
        for algorithm in ALGORITHMS
        if algorithm != "in_network" or not lacking(kind, mesh)
    ]


def configured_system(system_name: str, overrides: Sequence[str]) -> tuple[System, Router | None]:
    """A preset and the routers to simulate it with, after "system.KEY=VALUE" and "network.KEY=VALUE"."""
    figures, others = hardware_figures(overrides, ("system", "network"))
    router = timing_options_of({}, others, origin=system_name).router
    return System.preset(system_name).override(figures), router


def collectives_table(
    system_name: str, size_bytes: int, *, overrides: Sequence[str] = (), comm: Any = None
) -> str:
    """Every collective by every algorithm over the devices of a preset: contention-free model beside simulation.

    overrides: "system.KEY=VALUE" and "network.KEY=VALUE" as in a configuration.
    """
    system, router = configured_system(system_name, overrides)
    lines = [
        f"{system_name}: {system.rows} x {system.cols} devices, buffer of {format_bytes(size_bytes)}"
        + ("" if router is None else f"; simulated with routers: {router.describe()}"),
        f"{'collective':<16}{'algorithm':<16}{'model':>14}{'simulated':>14}{'messages':>12}",
    ]
    for row in collective_times(system, [size_bytes], router=router, comm=comm):
        name = f"{row.kind:<16}{row.algorithm:<16}"
        if row.model_ps is None or row.simulated_ps is None:
            lines.append(f"{name}  {row.fault}")
        else:
            times = f"{format_time(row.model_ps):>14}{format_time(row.simulated_ps):>14}"
            lines.append(f"{name}{times}{row.n_messages:>12,}")
    return "\n".join(lines)


def _timed(
    kind: str, algorithm: str, size_bytes: int, system: System, mesh: Mesh, router: Router | None, comm: Any
) -> CollectiveTime:
    grid = np.where(mesh.alive, np.arange(mesh.n_devices), -1).reshape(mesh.rows, mesh.cols)
    bound = collective_lower_bound_ps(kind, mesh, grid, size_bytes)
    try:
        program = collective(kind, algorithm, system=system, size_bytes=size_bytes, itemsize=ITEMSIZE)
        simulated = time(program, system, router=router, timeline_bins=0, comm=comm).end_ps
    except InputError as error:
        return CollectiveTime(kind, algorithm, size_bytes, bound, None, None, None, None, str(error))
    model = closed_form_ps(kind, algorithm, mesh, grid, size_bytes, ITEMSIZE, combine_cost(system.device, "fp32"))
    traffic = int(program.size_bytes.sum())
    return CollectiveTime(kind, algorithm, size_bytes, bound, model, simulated, program.n_messages, traffic, "")
