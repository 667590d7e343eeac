"""Which device needs which bytes of the next batch, and from which interface processor they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.ingest import ingest_label
from meshemu.mesh import Mesh
from meshemu.program.builder import ProgramBuilder
from meshemu.workload.formats.storage import storage_of
from meshemu.workload.memory import block_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd, inputs_of

__all__ = ["Piece", "add_ingest", "needed_bytes", "pieces_of_batch"]

PIECES_PER_INTERFACE = 4
"""Blocks are cut so that there are at least about so many pieces: shared evenly, and passed on while others come in."""

ARRIVAL = "empty"
"""Op class of a piece's arrival beside its interface processor: memory is taken, nothing is computed."""

Group = tuple[int, ...]
"""Devices that need the same bytes."""


@dataclass(frozen=True)
class Piece:
    """Bytes that one interface processor gets once and sends to each of `devices`; number: in its queue."""

    interface: int
    number: int
    size_bytes: int
    devices: Group


def needed_bytes(spmd: Spmd, plan: Plan) -> dict[Group, int]:
    """Devices -> bytes of the batch that these and no others read, each its block."""
    storage = storage_of(spmd)
    read = {value.id for instruction in spmd.instructions for value in inputs_of(instruction)}
    found: dict[Group, int] = {}
    devices = np.asarray(plan.devices, np.int64)
    for name, value in spmd.inputs.items():
        if not name.startswith("batch.") or value.id not in read:
            continue
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
    count = np.zeros(len(interfaces), np.int64)
    result = []
    for group in sorted(needed):
        bounds = [needed[group] * i // parts for i in range(parts + 1)]
        away = _hops(mesh, interfaces, group)
        for lo, hi in pairwise(bounds):
            if hi > lo:
                at = int(np.lexsort((np.arange(len(load)), away, load))[0])
                result.append(Piece(at, int(count[at]), hi - lo, group))
                load[at] += hi - lo
                count[at] += 1
    return result


def add_ingest(
    builder: ProgramBuilder, pieces: Sequence[Piece], interfaces: NDArray[np.int64], number_format: str
) -> None:
    """The ops that bring them: a message from the edge to every other device, an op without work for the one there.

    Nothing in the step waits for them: they are of the next step. number_format: of some other op in the step.
    """
    for piece in pieces:
        edge = int(interfaces[piece.interface])
        label = ingest_label(piece.interface, piece.number, piece.size_bytes)
        others = [device for device in piece.devices if device != edge]
        if edge in piece.devices:
            builder.compute(
                [edge], label=label, op_class=ARRIVAL, number_format=number_format,
                flops=0, read_bytes=0, write_bytes=0,
            )  # fmt: skip
        if others:
            builder.messages([edge] * len(others), others, piece.size_bytes, label=label)


def _hops(mesh: Mesh, interfaces: NDArray[np.int64], group: Group) -> NDArray[np.int64]:
    """Hops from the device beside each interface processor to all devices of a group together."""
    devices = np.asarray(group, np.int64)
    rows = np.abs(mesh.row[interfaces][:, None].astype(np.int64) - mesh.row[devices])
    cols = np.abs(mesh.col[interfaces][:, None].astype(np.int64) - mesh.col[devices])
    return np.asarray((rows + cols).sum(axis=1))
