"""How long ops at interface processors take: bytes over the rate of what they occupy, none faster than memory.

    over PCIe:      ceil(s / min(host, PCIe, memory))
    over the link:  ceil(s / min(link, memory)), and the latency of the link

Queues in front of them, and what these cost, are for the network to say (`program.units`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.exact import time_ps
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.program.interfaces import HOST_TO_MEMORY, LINK_LATENCY
from meshemu.program.ir import OpKind, Program
from meshemu.program.order import describe_op

__all__ = ["InterfaceRates", "interface_durations_ps", "interface_rates", "interfaces_of"]


@dataclass(frozen=True)
class InterfaceRates:
    """Of one interface processor: what hosts make ready for it, its PCIe, its memory, and its link, either way."""

    host_bytes_per_s: int
    pcie_bytes_per_s: int
    memory_bytes_per_s: int
    link_bytes_per_s: int
    link_latency_ps: int

    def limits(self, op_class: str) -> dict[str, int]:
        """What bounds the rate of ops of a class, in bytes/s by the names of the figures `interface....`."""
        memory = {"memory_bandwidth": self.memory_bytes_per_s}
        if op_class == HOST_TO_MEMORY:
            return {"host_bandwidth": self.host_bytes_per_s, "pcie_bandwidth": self.pcie_bytes_per_s, **memory}
        return {"link_bandwidth": self.link_bytes_per_s, **memory}

    def bytes_per_s(self, op_class: str) -> int:
        """The rate of ops of a class."""
        return min(self.limits(op_class).values())


def interfaces_of(system: System) -> InterfaceRates | None:
    """The rates of each interface processor of a system; None where it has none, or where each feeds many devices."""
    rate = {key.removeprefix("interface."): f.number for key, f in system.entries if key.startswith("interface.")}
    if not rate or system.devices == system.levels[0].unit:
        return None
    return InterfaceRates(
        host_bytes_per_s=rate["host_bandwidth"],
        pcie_bytes_per_s=rate["pcie_bandwidth"],
        memory_bytes_per_s=rate["memory_bandwidth"],
        link_bytes_per_s=rate["link_bandwidth"],
        link_latency_ps=rate["link_latency"],
    )


def interface_rates(system: System) -> InterfaceRates:
    """As `interfaces_of`, but InputError, with the reason, where there are none to use."""
    found = interfaces_of(system)
    if found is not None:
        return found
    if not any(key.startswith("interface.") for key, _ in system.entries):
        raise InputError(f"ingest: no interface processors are known of {system.name}; leave ingest.enabled = false")
    raise InputError(
        f"ingest: an interface processor feeds the edge of a whole {system.levels[1].unit}, which is many devices "
        f"where {system.devices}s are the devices; set system.devices = {system.levels[1].unit!r}"
    )


def interface_durations_ps(program: Program, rates: InterfaceRates | None) -> NDArray[np.int64]:
    """What INTERFACE ops take, int64[n_ops], 0 for all others.

    Raises InputError, naming the first, where a Program has some and the system no interface processors.
    """
    durations = np.zeros(program.n_ops, np.int64)
    op = np.flatnonzero(program.kind == OpKind.INTERFACE)
    if not len(op):
        return durations
    if rates is None:
        raise InputError(
            f"{describe_op(program, int(op[0]))} needs interface processor {program.interface[op[0]]}, but the system "
            "has no interface processors that its devices could use"
        )
    size_bytes = program.read_bytes + program.write_bytes  # of the memory, which is either read or written
    for number, name in enumerate(program.op_classes):
        own = op[program.op_class[op] == number]
        durations[own] = rates.link_latency_ps if name == LINK_LATENCY else time_ps(
            size_bytes[own], rates.bytes_per_s(name)
        )
    return durations
