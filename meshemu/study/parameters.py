"""The parameters of a machine that a what-if scales, one by one, each as a change of links or devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.hardware import DeviceSpec
from meshemu.hardware.topology import WRAP_LINK
from meshemu.mesh.z_plane import PLANE_CLASSES
from meshemu.study.machine import Machine

__all__ = ["Parameter", "chosen", "parameters", "with_bandwidth"]

Change = Callable[[Machine, float], Machine]

DIGITS = 6
"""A scaled bandwidth keeps so many decimal digits: links count in whole fractions of a picosecond per byte."""


_INTERFACES = (
    ("host_bandwidth", "host_bytes_per_s", "what hosts make ready for an interface processor"),
    ("pcie_bandwidth", "pcie_bytes_per_s", "PCIe into an interface processor"),
    ("memory_bandwidth", "memory_bytes_per_s", "memory of an interface processor"),
    ("link_bandwidth", "link_bytes_per_s", "link of an interface processor to the mesh"),
    ("link_latency", "link_latency_ps", "latency of that link"),
)

_LINKS = {
    "injection": "injection",
    "ejection": "ejection",
    WRAP_LINK: "links around the mesh",
    **dict(zip(PLANE_CLASSES, ("links to interface processors", "Ethernet between interface processors"), strict=True)),
}
"""Classes of links in words, where they are not between units."""


@dataclass(frozen=True)
class Parameter:
    """What a factor scales. about: in words; change: the machine with it scaled."""

    name: str
    about: str
    change: Change


def parameters(machine: Machine) -> dict[str, Parameter]:
    """All parameters of a machine by name, in a fixed order; those that are nothing on it (0) are left out."""
    mesh, device = machine.mesh, machine.device
    found = []
    for number, name in enumerate(mesh.class_names):
        of_class = mesh.link_class == number
        about = _LINKS.get(name) or f"links between {name.removesuffix('_edge').replace('noc', 'node')}s"
        found.append(Parameter(f"{name}.bandwidth", f"bandwidth of {about}", _bandwidth(of_class)))
        if mesh.latency_ps[of_class].any():
            found.append(Parameter(f"{name}.latency", f"latency of {about}", _latency(of_class)))
    if (mesh.reduction or mesh.multicast) and mesh.combine_ps:
        found.append(Parameter("mesh.combine", "merging messages in routers", _mesh_combine))
    if device is not None:
        found += [
            Parameter("matrix", "peak of the matrix units", _rates("matrix_flops_per_s")),
            Parameter("vector", "peak of the vector units", _rates("vector_flops_per_s")),
            Parameter("load_bandwidth", "loads from SRAM", _of_device("load_bytes_per_s")),
            Parameter("store_bandwidth", "stores to SRAM", _of_device("store_bytes_per_s")),
        ]
        fixed = [("op_launch", "starting an op"), ("combine", "combining a received piece")]
        found += [
            Parameter(name, f"fixed cost of {words}", _of_device(f"{name}_ps"))
            for name, words in fixed
            if getattr(device, f"{name}_ps")
        ]
        found += _fit(device)
    if machine.interfaces is not None:
        found += [Parameter(f"interface.{name}", about, _of_interfaces(field)) for name, field, about in _INTERFACES]
    return {parameter.name: parameter for parameter in found}


def _fit(device: DeviceSpec) -> list[Parameter]:
    """How shapes fit a node, where that is known; the peak stays what it is."""
    found = []
    if device.matrix_unit is not None:
        found += [
            Parameter(f"matrix_unit.{side}", f"{words} of a matrix unit, in whole numbers", _matrix_unit(number))
            for number, (side, words) in enumerate((("m", "rows"), ("n", "columns"), ("k", "terms of a sum")))
        ]
    if device.vector_bytes:
        found.append(Parameter("vector_width", "bytes of a vector", _of_device("vector_bytes", least=1)))
    if device.ingest_bytes_per_s:
        about = "operands that nodes of a device share, into each"
        found.append(Parameter("broadcast_bandwidth", about, _of_device("ingest_bytes_per_s", least=1)))
    return found


def chosen(known: Mapping[str, Parameter], names: list[str] | None) -> list[Parameter]:
    """The parameters of these names (None: all). InputError for unknown and repeated names, with the valid ones."""
    wanted = list(known) if names is None else names
    for name in wanted:
        if name not in known:
            raise InputError(f"--parameters {name}: not a parameter of this run; it has {', '.join(known)}")
        if wanted.count(name) > 1:
            raise InputError(f"--parameters {name}: named {wanted.count(name)} times")
    if not wanted:
        raise InputError("--parameters: none is named")
    return [known[name] for name in wanted]


def with_bandwidth(machine: Machine, links: NDArray[np.bool_], factor: float) -> Machine:
    """The machine with the bandwidth of some links scaled; links: bool[n_links]."""
    scaled = machine.mesh.bandwidth_bytes_per_s.copy()
    scaled[links] = [_rounded(rate * factor) for rate in scaled[links].tolist()]
    return replace(machine, mesh=replace(machine.mesh, bandwidth_bytes_per_s=scaled))


def _bandwidth(links: NDArray[np.bool_]) -> Change:
    return lambda machine, factor: with_bandwidth(machine, links, factor)


def _latency(links: NDArray[np.bool_]) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        scaled = machine.mesh.latency_ps.copy()
        scaled[links] = np.rint(scaled[links] * factor).astype(np.int64)
        return replace(machine, mesh=replace(machine.mesh, latency_ps=scaled))

    return change


def _mesh_combine(machine: Machine, factor: float) -> Machine:
    return replace(machine, mesh=replace(machine.mesh, combine_ps=round(machine.mesh.combine_ps * factor)))


def _of_device(name: str, least: int = 0) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        assert machine.device is not None
        value = max(least, round(getattr(machine.device, name) * factor))
        return replace(machine, device=replace(machine.device, **{name: value}))

    return change


def _matrix_unit(side: int) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        assert machine.device is not None and machine.device.matrix_unit is not None
        sides = list(machine.device.matrix_unit)
        sides[side] = max(1, round(sides[side] * factor))
        m, n, k = sides
        return replace(machine, device=replace(machine.device, matrix_unit=(m, n, k)))

    return change


def _of_interfaces(field: str) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        assert machine.interfaces is not None
        value = max(field.endswith("bytes_per_s"), round(getattr(machine.interfaces, field) * factor))
        return replace(machine, interfaces=replace(machine.interfaces, **{field: value}))

    return change


def _rates(name: str) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        assert machine.device is not None
        old: Mapping[str, int] = getattr(machine.device, name)
        scaled: Any = {key: max(1, round(rate * factor)) for key, rate in old.items()}
        return replace(machine, device=replace(machine.device, **{name: scaled}))

    return change


def _rounded(rate: float) -> int:
    return max(1, round(float(f"{rate:.{DIGITS - 1}e}")))
