"""The flat grid of devices: links, routes, transit times, and its split over ranks."""

from meshemu.mesh.capacity import bandwidth_between_bytes_per_s, bisection_bytes_per_s
from meshemu.mesh.dependency import deadlock_free_levels, dependency_cycle
from meshemu.mesh.flatten import flatten
from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh
from meshemu.mesh.region import cut_links, lookahead_ps, ranks_of_vertices, regions, split_bounds
from meshemu.mesh.rings import grid_distance
from meshemu.mesh.routing import Order, Routes, routes
from meshemu.mesh.shortcuts import message_routes
from meshemu.mesh.switches import Switches
from meshemu.mesh.transit import check_links, link_rates, message_ps, rate, serialisation_ps
from meshemu.mesh.trees import Trees, trees, trees_ps
from meshemu.mesh.z_plane import ZPlane

__all__ = [
    "EAST",
    "NORTH",
    "SOUTH",
    "WEST",
    "Mesh",
    "Order",
    "Routes",
    "Switches",
    "Trees",
    "ZPlane",
    "bandwidth_between_bytes_per_s",
    "bisection_bytes_per_s",
    "check_links",
    "cut_links",
    "deadlock_free_levels",
    "dependency_cycle",
    "flatten",
    "grid_distance",
    "link_rates",
    "lookahead_ps",
    "message_ps",
    "message_routes",
    "ranks_of_vertices",
    "rate",
    "regions",
    "routes",
    "serialisation_ps",
    "split_bounds",
    "trees",
    "trees_ps",
]
