"""Interface processors in a Program: what hosts write into their memory, and what moves between it and the mesh.

An interface processor has memory, PCIe to a host, and a link to the device beside it, each way for itself:

    host --PCIe--> memory <--link--> device

Its ops stand on that device, and the class of an op says which of its units it occupies. Crossing the link takes two:
one occupies it for as long as it puts bytes on it, one is their flight, which occupies nothing.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import OpKind, Program
from meshemu.program.order import precedence

__all__ = [
    "DEVICE_TO_MEMORY",
    "HOST_TO_MEMORY",
    "INTERFACE_CLASSES",
    "LINK_LATENCY",
    "MEMORY_TO_DEVICE",
    "from_host",
    "ingest_ops",
    "interface_unit_name",
    "to_device",
    "to_memory",
]

HOST_TO_MEMORY, MEMORY_TO_DEVICE, DEVICE_TO_MEMORY, LINK_LATENCY = (
    "host_to_memory", "memory_to_device", "device_to_memory", "link_latency",
)  # fmt: skip
INTERFACE_CLASSES = (HOST_TO_MEMORY, MEMORY_TO_DEVICE, DEVICE_TO_MEMORY, LINK_LATENCY)
"""Classes of INTERFACE ops. Those of the last occupy no unit."""

_UNITS = {
    HOST_TO_MEMORY: "PCIe of interface processor {}",
    MEMORY_TO_DEVICE: "link of interface processor {} to the mesh",
    DEVICE_TO_MEMORY: "link of interface processor {} from the mesh",
    LINK_LATENCY: "latency of the link of interface processor {}",
}

Ids = NDArray[np.int64]


def from_host(
    builder: ProgramBuilder, device: ArrayLike, interface: ArrayLike, size_bytes: ArrayLike, label: str
) -> Ids:
    """Bytes come over PCIe: one op per entry of `device`, which ends when they are in memory. Returns the ids."""
    return builder.interface(
        device, interface=interface, label=label, op_class=HOST_TO_MEMORY, write_bytes=size_bytes
    )


def to_device(
    builder: ProgramBuilder,
    device: ArrayLike,
    interface: ArrayLike,
    size_bytes: ArrayLike,
    label: str,
    after: Iterable[ArrayLike] = (),
) -> Ids:
    """Bytes go from memory to the device beside it, once for each entry of `device`.

    after: arrays of ops that they wait for, -1 for none. Returns the ops that end when they are there.
    """
    return _crossed(builder, device, interface, label, after, op_class=MEMORY_TO_DEVICE, read_bytes=size_bytes)


def to_memory(
    builder: ProgramBuilder,
    device: ArrayLike,
    interface: ArrayLike,
    size_bytes: ArrayLike,
    label: str,
    after: Iterable[ArrayLike] = (),
) -> Ids:
    """Bytes go from the device beside it to memory; as `to_device`."""
    return _crossed(builder, device, interface, label, after, op_class=DEVICE_TO_MEMORY, write_bytes=size_bytes)


def ingest_ops(program: Program) -> NDArray[np.bool_]:
    """Which ops bring input data, bool[n_ops]: all that hosts write, and whatever follows from it."""
    found = interface_ops(program, HOST_TO_MEMORY)
    if not found.any():
        return found
    before, after = precedence(program)
    reached = 0
    while reached < (now := int(np.count_nonzero(found))):
        reached = now
        found[after[found[before]]] = True
    return found


def interface_ops(program: Program, op_class: str) -> NDArray[np.bool_]:
    """The INTERFACE ops of one class, bool[n_ops]."""
    if op_class not in program.op_classes:
        return np.zeros(program.n_ops, np.bool_)
    of_class = program.op_class == program.op_classes.index(op_class)
    return np.asarray((program.kind == OpKind.INTERFACE) & of_class)


def interface_unit_name(op_class: str, interface: int) -> str:
    """What an INTERFACE op occupies, in words."""
    return _UNITS[op_class].format(interface)


def _crossed(
    builder: ProgramBuilder,
    device: ArrayLike,
    interface: ArrayLike,
    label: str,
    after: Iterable[ArrayLike],
    **moved: Any,
) -> Ids:
    """Occupy the link with what is `moved`, once `after` has ended, and then take its latency."""
    crossing = builder.interface(device, interface=interface, label=label, **moved)
    for on in after:
        builder.depend(crossing, on)
    flight = builder.interface(device, interface=interface, label=label, op_class=LINK_LATENCY)
    builder.depend(flight, crossing)
    return flight
