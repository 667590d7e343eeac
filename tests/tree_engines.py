"""Engines that time Programs with multicasts and reductions in the network, by name: tests hold all to one model."""

from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.network import time_program
from meshemu.network.oracle import reference_program

TREE_ENGINES = {"reference": reference_program, "compiled": time_program}


def routed_mesh(system: System, combine: str = "0 ps") -> Mesh:
    """The mesh of a system whose routers fork and merge messages."""
    return flatten(system.override({"mesh.multicast": True, "mesh.reduction": True, "mesh.combine": combine}))
