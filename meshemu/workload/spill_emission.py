"""The ops and messages of blocks that leave the memory of devices and come back: for `emission`.

A block goes, as one message, to the device beside its interface processor and over that one's link into its memory. To
get it back the device sends a request, one packet, at the operator from which on it has room; the block comes the same
way. Operators of the device wait until it has left before they use its memory, and until it is back to read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.program.builder import ProgramBuilder
from meshemu.program.interfaces import to_device, to_memory
from meshemu.workload.formats.storage import Storage
from meshemu.workload.memory import block_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.spill import Spill

__all__ = ["REQUEST_BYTES", "SpillOps", "Spilled"]

REQUEST_BYTES = 64
"""Of the message that asks for a block: one packet of the machine's network."""

Ids = NDArray[np.int64]
Layers = Sequence[Ids]


@dataclass(frozen=True, eq=False)
class Spilled:
    """All spills of a step. interface: int64[n_positions], the interface processor that each position uses; beside:
    int64[n_positions], the device that stands beside it.
    """

    spills: tuple[Spill, ...]
    interface: Ids
    beside: Ids

    @classmethod
    def nothing(cls, n_positions: int) -> "Spilled":
        """No spills."""
        nowhere = np.full(n_positions, -1, np.int64)
        return cls((), nowhere, nowhere)


class SpillOps:
    """Adds ops to a Program at the instructions around each idle time."""

    def __init__(self, builder: ProgramBuilder, plan: Plan, storage: Storage, spilled: Spilled) -> None:
        self._builder, self._plan, self._storage = builder, plan, storage
        self._devices = np.asarray(plan.devices, np.int64)
        self._interface, self._beside = spilled.interface, spilled.beside
        self._at: dict[str, dict[int, list[Spill]]] = {"after": {}, "freed": {}, "fetched": {}}
        for spill in spilled.spills:
            for when, found in self._at.items():
                found.setdefault(getattr(spill.idle, when), []).append(spill)
        self._left: dict[Spill, Ids] = {}
        self._stored: dict[Spill, Ids] = {}

    def leaving(self, index: int) -> Sequence[Spill]:
        """What leaves after instruction `index`."""
        return self._at["after"].get(index, ())

    def returning(self, index: int) -> Sequence[Spill]:
        """What is asked for before operator `index`."""
        return self._at["fetched"].get(index, ())

    def left_before(self, index: int) -> Layers:
        """What operator `index`, and those that run beside it, wait for: the memory that they use is free then."""
        return [self._left[spill] for spill in self._at["freed"].get(index, ())]

    def leave(self, spill: Spill, after: Layers) -> None:
        """A block leaves once the ops `after` have ended."""
        where, device, beside, interface, size, away = self._ends(spill)
        label = f"spill {spill.idle.block.label}"
        stored, left = np.full((2, len(where)), -1, np.int64)
        _, sent, arrived = self._builder.messages(device[away], beside[away], size[away], label=label)
        for layer in after:
            self._builder.depend(sent, layer[where[away]])
        stored[away] = to_memory(self._builder, beside[away], interface[away], size[away], label, [arrived])
        here = ~away
        stored[here] = to_memory(
            self._builder, device[here], interface[here], size[here], label, [layer[where[here]] for layer in after]
        )
        left[away], left[here] = sent, stored[here]
        self._stored[spill], self._left[spill] = stored, self._scattered(where, left)

    def come_back(self, spill: Spill, after: Layers) -> Ids:
        """The ops that end when a block is back, one for every position (-1: none); asked for after the ops `after`."""
        where, device, beside, interface, size, away = self._ends(spill)
        label, stored, here = f"fetch {spill.idle.block.label}", self._stored[spill], ~away
        back = np.full(len(where), -1, np.int64)
        _, asked, heard = self._builder.messages(device[away], beside[away], REQUEST_BYTES, label=f"ask to {label}")
        for layer in after:
            self._builder.depend(asked, layer[where[away]])
        read = to_device(self._builder, beside[away], interface[away], size[away], label, [stored[away], heard])
        _, sent, back[away] = self._builder.messages(beside[away], device[away], size[away], label=label)
        self._builder.depend(sent, read)
        waits = [stored[here], *(layer[where[here]] for layer in after)]
        back[here] = to_device(self._builder, device[here], interface[here], size[here], label, waits)
        return self._scattered(where, back)

    def _ends(self, spill: Spill) -> tuple[Ids, Ids, Ids, Ids, Ids, NDArray[np.bool_]]:
        """(positions, their devices, the devices beside interface processors, these, bytes, whether there is a way)."""
        where = np.flatnonzero(spill.where)
        device, beside = self._devices[where], self._beside[where]
        size = block_bytes(spill.idle.block.value, self._plan, self._storage)[where]
        return where, device, beside, self._interface[where], size, device != beside

    def _scattered(self, where: Ids, ops: Ids) -> Ids:
        layer = np.full(self._plan.n_positions, -1, np.int64)
        layer[where] = ops
        return layer
