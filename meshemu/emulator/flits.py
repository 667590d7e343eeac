"""How much work routers make of a Program, and a word to the user where that takes long."""

import sys

import numpy as np

from meshemu.hardware import Router
from meshemu.mesh import Mesh
from meshemu.program.ir import Program

__all__ = ["announce_flits", "flit_hops"]

MANY = 200_000_000
"""Flits over links that take about a minute."""


def flit_hops(program: Program, mesh: Mesh, router: Router) -> int:
    """Flits of all messages times the links between their devices, detours left out."""
    flits = -(-program.size_bytes // router.flit_bytes)
    hops = np.abs(mesh.row[program.src] - mesh.row[program.dst]) + np.abs(mesh.col[program.src] - mesh.col[program.dst])
    return int((flits * hops).sum())


def announce_flits(program: Program, mesh: Mesh, router: Router) -> None:
    """Say on stderr that timing takes long, if there are many flits."""
    n = flit_hops(program, mesh, router)
    if n > MANY:
        print(
            f"meshemu: {n:,} flits over links to time, some millions a second; larger network.router.flit_bytes "
            f"(now {router.flit_bytes}) or no routers are faster",
            file=sys.stderr,
        )
