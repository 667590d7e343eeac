"""When data of the next batch leave the edge of the mesh: hosts, PCIe and interface processors in closed form.

A host writes piece after piece over PCIe into the memory of an interface processor, which sends each on, whole, over
its link to the device beside it, once for every device that needs it. Nothing else uses these, so that their queues
have a closed form; from the edge on, the pieces are messages like others.

    in memory:  m_k = ceil((s_1 + ... + s_k) / host rate)
    on device:  d_j = max(d_(j-1), m_k) + ceil(s_k / link rate), and the latency of the link
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.program.ir import OpKind, Program

__all__ = ["InterfaceRates", "ingest_label", "ingest_ops", "interface_rates", "release_ps"]

PS_PER_S = 10**12
_LABEL = re.compile(r"ingest interface (\d+) piece (\d+) \((\d+) B\)")


@dataclass(frozen=True)
class InterfaceRates:
    """Of one interface processor: what hosts write into it, what it sends to the device beside it."""

    host_bytes_per_s: int
    link_bytes_per_s: int
    link_latency_ps: int


def interface_rates(system: System) -> InterfaceRates:
    """The rates of each interface processor of a system: none is faster than its memory.

    Raises InputError for a system without interface processors, and for devices that are smaller than what they feed.
    """
    figures = {key: figure for key, figure in system.entries if key.startswith("interface.")}
    if not figures:
        raise InputError(f"ingest: no interface processors are known of {system.name}; leave ingest.enabled = false")
    if system.devices == system.levels[0].unit:
        raise InputError(
            f"ingest: an interface processor feeds the edge of a whole {system.levels[1].unit}, which is many devices "
            f"where {system.devices}s are the devices; set system.devices = {system.levels[1].unit!r}"
        )
    rate = {key.removeprefix("interface."): figure.number for key, figure in figures.items()}
    host = min(rate["host_bandwidth"], rate["pcie_bandwidth"], rate["memory_bandwidth"])
    return InterfaceRates(host, min(rate["link_bandwidth"], rate["memory_bandwidth"]), rate["link_latency"])


def ingest_label(interface: int, piece: int, size_bytes: int) -> str:
    """The label of the ops that bring a piece to the devices."""
    return f"ingest interface {interface} piece {piece} ({size_bytes} B)"


def ingest_ops(program: Program) -> NDArray[np.bool_]:
    """Which ops bring input data of the next step, bool[n_ops]."""
    labels = np.asarray([_LABEL.fullmatch(label) is not None for label in program.labels], np.bool_)
    return labels[program.label] if len(labels) else np.zeros(program.n_ops, np.bool_)


def release_ps(program: Program, system: System) -> NDArray[np.int64]:
    """When each op may start at the earliest, int64[n_ops]: ingest once its piece is at the edge, else 0."""
    release = np.zeros(program.n_ops, np.int64)
    leaving = ingest_ops(program) & (program.kind != OpKind.RECV)
    if not leaving.any():
        return release
    found = (_LABEL.fullmatch(label) for label in program.labels)
    pieces = {number: tuple(map(int, match.groups())) for number, match in enumerate(found) if match}
    rates = interface_rates(system)
    queue = sorted((*pieces[int(program.label[op])], int(op)) for op in np.flatnonzero(leaving))
    written: dict[int, int] = {}
    last_piece: dict[int, int] = {}
    free_ps: dict[int, int] = {}
    for interface, piece, size_bytes, op in queue:
        if last_piece.get(interface) != piece:
            written[interface] = written.get(interface, 0) + size_bytes
            last_piece[interface] = piece
        in_memory = _ceil_ps(written[interface], rates.host_bytes_per_s)
        start = max(free_ps.get(interface, 0), in_memory)
        free_ps[interface] = start + _ceil_ps(size_bytes, rates.link_bytes_per_s)
        release[op] = free_ps[interface] + rates.link_latency_ps
    return release


def _ceil_ps(size_bytes: int, bytes_per_s: int) -> int:
    """Picoseconds that a number of bytes take, rounded up."""
    return -(-size_bytes * PS_PER_S // bytes_per_s)
