"""Other ways to join the edges of the mesh under a stored Program: wrap-around links, and the Z-plane.

Messages are routed anew. What a run chooses by its mesh, collectives and how batches come in, stays as it was stored.
"""

from collections.abc import Iterator

from meshemu.hardware.topology import WRAPS
from meshemu.study.discrete import Discrete, changed_system
from meshemu.study.machine import StoredStep

__all__ = ["topologies"]

_WRAPS = {
    "none": "no links around the mesh",
    "rows": "a link between the ends of each row",
    "columns": "a link between the ends of each column",
    "both": "links between the ends of each row and column",
}


def topologies(step: StoredStep) -> Iterator[Discrete]:
    """Every topology that is one change away from that of the step."""
    system = step.machine.system
    for wrap in WRAPS:
        if wrap != system.wrap:
            yield changed_system(step, f"wrap = {wrap}", _WRAPS[wrap], {"wrap": wrap})
    if system.z_plane:
        yield changed_system(step, "z_plane = false", "no Ethernet between interface processors", {"z_plane": False})
    else:
        about = "Ethernet between interface processors at the west and east edges"
        yield changed_system(step, "z_plane = true", about, {"z_plane": True})
