"""Which device needs which bytes of the next batch, and from which interface processor they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh, grid_distance
from meshemu.program.builder import ProgramBuilder
from meshemu.program.interfaces import from_host, to_device
from meshemu.workload.formats.storage import storage_of
from meshemu.workload.memory import batch_read, block_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd

__all__ = ["Piece", "add_ingest", "needed_bytes", "pieces_of_batch"]

LABEL = "batch of the next step"

PIECES_PER_INTERFACE = 4
"""Blocks are cut so that there are at least about so many pieces: shared evenly, and passed on while others come in."""

Group = tuple[int, ...]
"""Devices that need the same bytes."""


@dataclass(frozen=True)
class Piece:
    """Bytes that one interface processor, of those in use, gets once and sends to each of `devices`."""

    interface: int
    size_bytes: int
    devices: Group


def needed_bytes(spmd: Spmd, plan: Plan) -> dict[Group, int]:
    """Devices -> bytes of the batch that these and no others read, each its block."""
    storage = storage_of(spmd)
    found: dict[Group, int] = {}
    devices = np.asarray(plan.devices, np.int64)
    for value in batch_read(spmd):
        size_bytes, here = block_bytes(value, plan, storage), plan.on(value.layout.stages)
        block = plan.index(value.layout.axes)
        for number in np.unique(block[here]).tolist():
            holders = here & (block == number)
            size = int(size_bytes[holders][0])
            if size:
                group = tuple(sorted(devices[holders].tolist()))
                found[group] = found.get(group, 0) + size
    return found


def pieces_of_batch(needed: dict[Group, int], interfaces: NDArray[np.int64], mesh: Mesh) -> list[Piece]:
    """Share the bytes out: to the interface processor that has least to bring so far, of these to the nearest.

    interfaces: the device beside each.
    """
    parts = max(1, -(-PIECES_PER_INTERFACE * len(interfaces) // max(len(needed), 1)))
    load = np.zeros(len(interfaces), np.int64)
    result = []
    for group in sorted(needed):
        bounds = [needed[group] * i // parts for i in range(parts + 1)]
        away = _hops(mesh, interfaces, group)
        for lo, hi in pairwise(bounds):
            if hi > lo:
                at = int(np.lexsort((np.arange(len(load)), away, load))[0])
                result.append(Piece(at, hi - lo, group))
                load[at] += hi - lo
    return result


def add_ingest(
    builder: ProgramBuilder, pieces: Sequence[Piece], interfaces: NDArray[np.int64], numbers: NDArray[np.int64]
) -> None:
    """The ops that bring them: over PCIe once, over the link for each device, and on to it from the one at the edge.

    interfaces: the device beside each interface processor; numbers: theirs in the Program. Nothing in the step waits
    for the ops: they are of the next step.
    """
    for piece in pieces:
        edge, number = int(interfaces[piece.interface]), int(numbers[piece.interface])
        others = [device for device in piece.devices if device != edge]
        here = [edge] * len(piece.devices)  # a device at the edge first: its copy goes no further
        there = from_host(builder, [edge], number, piece.size_bytes, LABEL)
        arrived = to_device(builder, here, number, piece.size_bytes, LABEL, [there])
        if others:
            _, send, _ = builder.messages([edge] * len(others), others, piece.size_bytes, label=LABEL)
            builder.depend(send, arrived[len(piece.devices) - len(others) :])


def _hops(mesh: Mesh, interfaces: NDArray[np.int64], group: Group) -> NDArray[np.int64]:
    """Hops from the device beside each interface processor to all devices of a group together."""
    return np.asarray(grid_distance(mesh, interfaces[:, None], np.asarray(group, np.int64)).sum(axis=1))
