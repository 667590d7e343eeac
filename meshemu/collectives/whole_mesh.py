"""A Program that is one collective over all devices of a mesh: for studies and tests."""

import numpy as np

from meshemu.collectives.build import build
from meshemu.collectives.emit import emit
from meshemu.collectives.in_network import check_routers
from meshemu.collectives.joined import joined
from meshemu.collectives.recurrence import Combine
from meshemu.collectives.select import select
from meshemu.errors import InputError
from meshemu.mesh import Mesh
from meshemu.program import Program, ProgramBuilder, verify

__all__ = ["collective_program"]

_FORMATS = {1: "int8", 2: "bf16", 4: "fp32", 8: "fp64"}


def collective_program(
    kind: str, algorithm: str, mesh: Mesh, size_bytes: int, itemsize: int = 1, root: int | None = None,
    n_chunks: int | None = None, *, number_format: str | None = None, combine: Combine = np.zeros_like,
) -> Program:
    """Return the verified Program of one collective over all alive devices of `mesh`.

    algorithm: a name, or "auto" for the cheapest by `select`. size_bytes: the whole buffer, a multiple of itemsize.
    root: participant, i.e. index among the alive devices in id order (default 0, only for broadcast and reduce).
    number_format: of the combinations (default int8, bf16, fp32 or fp64, by itemsize).
    combine: for "auto", sizes in bytes -> ps of one combination (default: none).
    Raises InputError for what does not fit.
    """
    if itemsize < 1 or size_bytes < 1 or size_bytes % itemsize:
        raise InputError(f"size_bytes = {size_bytes} must be a positive multiple of itemsize = {itemsize}")
    if number_format is None and itemsize not in _FORMATS:
        known = ", ".join(map(str, _FORMATS))
        raise InputError(f"itemsize = {itemsize} bytes needs a number_format; sizes with a default: {known}")
    grid = np.where(mesh.alive, np.arange(mesh.n_devices), -1).reshape(mesh.rows, mesh.cols)
    if algorithm == "auto":
        algorithm = select(kind, mesh, grid, size_bytes, itemsize, combine, root=root or 0)
    check_routers(kind, algorithm, mesh)
    absent = np.flatnonzero(~mesh.alive).tolist()
    schedule = build(
        kind, algorithm, mesh.rows, mesh.cols, root=root, n_chunks=n_chunks, absent=absent, verified=False,
        joined=joined(mesh, grid),
    )
    builder = ProgramBuilder(mesh.n_devices)
    emit(
        builder, schedule, schedule.position, n_elements=size_bytes // itemsize, itemsize=itemsize,
        label=f"{kind} {algorithm}", number_format=number_format or _FORMATS[itemsize],
    )
    program = builder.build()
    verify(program)
    return program
