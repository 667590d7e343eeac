"""What to do about a step that does not fit into the memory of its devices: `[memory] when_full`.

A device of the machine has its SRAM and nothing behind it, so a step that needs more cannot run, and a time for it
would be wrong: by default it is refused, with the arithmetic and what would help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from meshemu.cost.memory_use import MemoryUse, breakdown
from meshemu.errors import InputError, PlanError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.units import format_bytes

__all__ = [
    "POLICIES",
    "REFUSE",
    "MemoryOptions",
    "capacity_bytes",
    "fits",
    "memory_options",
    "overflow",
    "refuse",
]

POLICIES = ("refuse", "recompute", "spill", "allow")


@dataclass(frozen=True)
class MemoryOptions:
    """when_full: one of POLICIES. spill_ahead: operators that a block has to leave in, and to come back in. edges: of
    the mesh, where interface processors are. Raises InputError for a value that is none.
    """

    when_full: str = "refuse"
    spill_ahead: int = 4
    edges: tuple[str, ...] = ("west", "east")

    def __post_init__(self) -> None:
        if isinstance(self.spill_ahead, bool) or not isinstance(self.spill_ahead, int) or self.spill_ahead < 1:
            raise InputError(f"memory.spill_ahead = {self.spill_ahead!r}: must be a whole number of at least 1")
        if self.when_full not in POLICIES:
            raise InputError(f"memory.when_full = {self.when_full!r} is not one of {', '.join(POLICIES)}")


REFUSE = MemoryOptions()


def memory_options(table: Mapping[str, Any] | None, edges: Sequence[str] = ()) -> MemoryOptions:
    """The options that a [memory] table gives, None for the defaults. Raises InputError for an unknown key.

    edges: of the mesh, that batches come in over; () for the defaults.
    """
    known = [field.name for field in fields(MemoryOptions) if field.name != "edges"]
    for key in table or {}:
        if key not in known:
            raise InputError(f"memory: unknown key {key!r}; there are {', '.join(known)}")
    given: dict[str, Any] = {**(table or {}), **({"edges": tuple(edges)} if edges else {})}
    return MemoryOptions(**given)


def capacity_bytes(system: System) -> int | None:
    """Memory of a device, None where nothing is known of it."""
    return None if system.device is None else system.device.sram_bytes


def fits(use: MemoryUse, system: System) -> bool:
    """Whether every device holds what it needs at all times."""
    capacity = capacity_bytes(system)
    return capacity is None or use.most_bytes <= capacity


def overflow(use: MemoryUse, mesh: Mesh, system: System) -> str:
    """In words, which device needs how much of what it has, and for what."""
    needed, there = format_bytes(use.most_bytes), format_bytes(capacity_bytes(system) or 0)
    return f"{mesh.place(use.busiest)} needs {needed} of {there}: {breakdown(use.peak_bytes[:, use.busiest])}"


def refuse(words: str, helps: Sequence[str]) -> PlanError:
    """The error for a step that does not fit. words: as `overflow`. helps: changes with which, by estimate, it fits."""
    ending = f"by estimate it fits with {' or '.join(helps)}" if helps else "cut it over more devices"
    return PlanError(f"memory: {words}; {ending} (memory.when_full = allow times it all the same)")
