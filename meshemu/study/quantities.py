"""What the model has for the quantities of `hardware.published.TOTALS`, by the code that runs use."""

from collections.abc import Callable

import numpy as np

from meshemu.emulator.timing import simulate_messages
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.hardware.describe import total
from meshemu.mesh import Mesh, bandwidth_between_bytes_per_s, bisection_bytes_per_s, flatten

__all__ = ["hop_ps", "model_value"]


def model_value(system: System, quantity: str) -> int:
    """The model's value in the unit of the published figure. Raises InputError for a quantity that it does not have.

    bisection: from the northern half of the rows to the southern. edge: over one side of a tile. off tile: all four
    sides of an inner tile, both ways. link <class>: one link. hop <class>: its latency, as a message finds it.
    load_store: all loads and stores. fabric: all links, counted at both ends. power: of the whole system.
    """
    what, _, link_class = quantity.partition(" ")
    if what in ("link", "hop") and link_class:
        mesh = flatten(system)
        link = _first_of_class(mesh, link_class)
        return int(mesh.bandwidth_bytes_per_s[link]) if what == "link" else hop_ps(system, mesh, link)
    if quantity in _OF_SYSTEM:
        return _OF_SYSTEM[quantity](system)
    value = total(system, quantity)
    if value is None:
        raise InputError(f"{system.name} has no {quantity}")
    return value


def hop_ps(system: System, mesh: Mesh, link: int) -> int:
    """Latency that a message finds on a mesh link: what 1 byte takes over it, less what it takes to put it there."""
    ends = mesh.link_src[[link]], mesh.link_dst[[link]]
    one, two = (int(simulate_messages(system, *ends, size).arrival_ps[0]) for size in (1, 1001))
    slope = (two - one) / 1000
    ports = [mesh.injection_link[ends[0][0]], mesh.ejection_link[ends[1][0]]]
    return round(one - slope) - int(mesh.latency_ps[[port for port in ports if port >= 0]].sum())


def _first_of_class(mesh: Mesh, link_class: str) -> int:
    if link_class not in mesh.class_names:
        raise InputError(f"no links of class {link_class}; there are {', '.join(mesh.class_names)}")
    return int(np.flatnonzero(mesh.link_class == mesh.class_names.index(link_class))[0])


def _bisection(system: System) -> int:
    return bisection_bytes_per_s(flatten(system))


def _edge(system: System) -> int:
    mesh = flatten(system)
    first = (mesh.tile_row == 0) & (mesh.tile_col == 0)
    return bandwidth_between_bytes_per_s(mesh, first, (mesh.tile_row == 1) & (mesh.tile_col == 0))


def _off_tile(system: System) -> int:
    mesh = flatten(system.override({"tiles": [3, 3]}))
    inner = (mesh.tile_row == 1) & (mesh.tile_col == 1)
    return bandwidth_between_bytes_per_s(mesh, inner, ~inner) + bandwidth_between_bytes_per_s(mesh, ~inner, inner)


def _fabric(system: System) -> int:
    mesh = flatten(System.preset(system.name, "core").override(_changes(system)))
    between = mesh.on_grid
    return 2 * int(mesh.bandwidth_bytes_per_s[between].sum())


def _changes(system: System) -> dict[str, object]:
    return {key: figure.value for key, figure in system.figures() if figure.grade == "overridden"}


def _load_store(system: System) -> int:
    device = system.device
    return 0 if device is None else system.n_alive * (device.load_bytes_per_s + device.store_bytes_per_s)


def _power(system: System) -> int:
    if system.power_w is None:
        raise InputError(f"{system.name} has no figure of power")
    _, watts, count = system.power_w
    return watts * count


_OF_SYSTEM: dict[str, Callable[[System], int]] = {
    "bisection": _bisection,
    "edge": _edge,
    "off tile": _off_tile,
    "fabric": _fabric,
    "load_store": _load_store,
    "power": _power,
}
