"""The parameters of a machine that a what-if scales, one by one, each as a change of links or devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.study.machine import Machine

__all__ = ["Parameter", "chosen", "parameters", "with_bandwidth"]

Change = Callable[[Machine, float], Machine]

DIGITS = 6
"""A scaled bandwidth keeps so many decimal digits: links count in whole fractions of a picosecond per byte."""


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
        kind = "" if name in ("injection", "ejection") else "links between "
        about = f"{kind}{name.replace('_edge', '').replace('noc', 'node')}{'s' if kind else ''}"
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
    return {parameter.name: parameter for parameter in found}


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


def _of_device(name: str) -> Change:
    def change(machine: Machine, factor: float) -> Machine:
        assert machine.device is not None
        value = round(getattr(machine.device, name) * factor)
        return replace(machine, device=replace(machine.device, **{name: value}))

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
