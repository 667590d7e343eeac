"""Collectives as schedules: built by name, verified, put into Programs, and estimated by formula."""

from meshemu.collectives.bounds import collective_lower_bound_ps
from meshemu.collectives.build import ALGORITHMS, KINDS, build
from meshemu.collectives.emit import emit, even_bounds
from meshemu.collectives.in_network import check_routers, lacking
from meshemu.collectives.joined import Joined, joined
from meshemu.collectives.model import closed_form_ps
from meshemu.collectives.order import dilation, ring_order
from meshemu.collectives.schedule import Schedule
from meshemu.collectives.select import feasible, select
from meshemu.collectives.verify import verify_schedule
from meshemu.collectives.whole_mesh import collective_program

__all__ = [
    "ALGORITHMS",
    "KINDS",
    "Joined",
    "Schedule",
    "build",
    "check_routers",
    "closed_form_ps",
    "collective_lower_bound_ps",
    "collective_program",
    "dilation",
    "emit",
    "even_bounds",
    "feasible",
    "joined",
    "lacking",
    "ring_order",
    "select",
    "verify_schedule",
]
