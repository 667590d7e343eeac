"""What a what-if says of the size of SRAM."""

from meshemu.analysis.table import percent, table
from meshemu.cost.memory_use import breakdown
from meshemu.study.capacity import Capacity, MadeAgain
from meshemu.units import format_bytes, format_time

__all__ = ["capacity_text"]

_WHEN_FULL = {
    "refuse": "memory.when_full = refuse: below that, the run is refused",
    "recompute": "memory.when_full = recompute: below that, a run makes activations again, which takes longer",
    "spill": "memory.when_full = spill: below that, a run moves tensors to interface processors, which takes longer",
    "allow": "memory.when_full = allow: below that, a run takes as long, as if there were room",
}
_ANOTHER_RUN = "; how much, only a run with that size tells (--set system)"


def capacity_text(found: Capacity, step_ps: int) -> str:
    """The capacity question as text; step_ps: the time of the step."""
    head = (
        f"Size of SRAM (of no effect on time as long as the step fits)\n"
        f"  {found.place} holds most: {format_bytes(found.peak_bytes)} of {format_bytes(found.size_bytes)} "
        f"({percent(found.peak_bytes, found.size_bytes)}): {breakdown(list(found.holds.values()))}"
    )
    cells = [
        [f"x {size.factor:g}", format_bytes(size.size_bytes), str(size.devices_over), _fit(size.devices_over)]
        for size in found.sizes
    ]
    policy = _WHEN_FULL.get(found.when_full, f"memory.when_full = {found.when_full}")
    longer = _ANOTHER_RUN if policy.endswith("longer") else ""
    least = f"Fits from x {found.least_factor:.3g} on. {policy}{longer}."
    parts = [head, table(["SRAM", "size", "devices over", "the step"], cells), least]
    if found.made_again is not None:
        parts.append(_again(found.made_again, step_ps))
    if found.spill_ps:
        share = percent(found.spill_ps, step_ps)
        parts.append(
            f"Links of interface processors take {format_time(found.spill_ps)} ({share}) of the critical path for "
            "tensors that SRAM had no room for, besides the way of these over the mesh"
        )
    return "\n".join(parts)


def _fit(devices_over: int) -> str:
    return "does not fit" if devices_over else "fits"


def _again(made: MadeAgain, step_ps: int) -> str:
    text = (
        f"{made.ops:,} ops make activations again that SRAM had no room for: {format_time(made.compute_ps)} on the "
        f"device that has most of them, {format_time(made.path_ps)} ({percent(made.path_ps, step_ps)}) of the critical "
        "path, which more SRAM would save at most"
    )
    return f"{text}\n  {made.remark}" if made.remark else text
