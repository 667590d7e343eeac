"""Collectives over all devices of a system: as verified Programs, and as a table of algorithms and times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from meshemu.collectives import ALGORITHMS, KINDS, closed_form_ps, collective_program, lacking
from meshemu.cost import combine_cost
from meshemu.emulator.changes import hardware_figures, timing_options_of
from meshemu.emulator.timing import time
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.program.ir import Program
from meshemu.units import format_bytes, format_time

__all__ = ["collective", "collectives_table"]

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


def collectives_table(
    system_name: str, size_bytes: int, *, overrides: Sequence[str] = (), comm: Any = None
) -> str:
    """Every collective by every algorithm over the devices of a preset: contention-free model beside simulation.

    overrides: "system.KEY=VALUE" and "network.KEY=VALUE" as in a configuration. in_network is among the algorithms
    where routers can do it.
    """
    if size_bytes % ITEMSIZE:
        raise InputError(f"--size {size_bytes} B is no whole number of fp32 elements of {ITEMSIZE} B")
    figures, others = hardware_figures(overrides, ("system", "network"))
    router = timing_options_of({}, others, origin=system_name).router
    system = System.preset(system_name).override(figures)
    mesh = flatten(system)
    grid = np.where(mesh.alive, np.arange(mesh.n_devices), -1).reshape(mesh.rows, mesh.cols)
    combine = combine_cost(system.device, "fp32")
    lines = [
        f"{system_name}: {mesh.rows} x {mesh.cols} devices, buffer of {format_bytes(size_bytes)}"
        + ("" if router is None else f"; simulated with routers: {router.describe()}"),
        f"{'collective':<16}{'algorithm':<16}{'model':>14}{'simulated':>14}{'messages':>12}",
    ]
    for kind in KINDS:
        for algorithm in ALGORITHMS:
            if algorithm == "in_network" and lacking(kind, mesh):
                continue
            try:
                program = collective(kind, algorithm, system=system, size_bytes=size_bytes, itemsize=ITEMSIZE)
                simulated = time(program, system, router=router, comm=comm).end_ps
            except InputError as error:
                lines.append(f"{kind:<16}{algorithm:<16}  {error}")
                continue
            model = closed_form_ps(kind, algorithm, mesh, grid, size_bytes, ITEMSIZE, combine)
            lines.append(
                f"{kind:<16}{algorithm:<16}{format_time(model):>14}{format_time(simulated):>14}"
                f"{program.n_messages:>12,}"
            )
    return "\n".join(lines)
