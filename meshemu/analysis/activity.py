"""What the units of a device did over a step, as spans of time; and which devices stand for all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import OpKind, Program

__all__ = ["UNITS", "Spans", "representatives", "unit_spans"]

_I64 = NDArray[np.int64]

UNITS = (("compute", OpKind.COMPUTE), ("combine", OpKind.REDUCE))


@dataclass(frozen=True, eq=False)
class Spans:
    """Time in which a unit was busy, one after the other.

    start_ps, end_ps: int64[n]. n_ops: int64[n], ops in the span. op: int64[n], the longest of them.
    """

    start_ps: _I64
    end_ps: _I64
    n_ops: _I64
    op: _I64


def unit_spans(
    program: Program, start_ps: _I64, end_ps: _I64, device: int, kind: OpKind, least_gap_ps: int = 0
) -> Spans:
    """Ops of one kind on a device as spans; start_ps, end_ps: int64[n_ops].

    Ops that overlap become one span, and so do those less than `least_gap_ps` apart; ops without duration are left out.
    """
    ops = np.flatnonzero((program.device == device) & (program.kind == kind) & (end_ps > start_ps))
    ops = ops[np.argsort(start_ps[ops], kind="stable")]
    if not len(ops):
        nothing = np.zeros(0, np.int64)
        return Spans(nothing, nothing, nothing, nothing)
    reached_ps = np.maximum.accumulate(end_ps[ops])
    gap_ps = start_ps[ops[1:]] - reached_ps[:-1]
    first = np.append(0, np.flatnonzero(gap_ps >= least_gap_ps) + 1)
    last = np.append(first[1:], len(ops)) - 1
    taken_ps = end_ps[ops] - start_ps[ops]
    longest = [int(low + taken_ps[low : high + 1].argmax()) for low, high in zip(first, last, strict=True)]
    return Spans(start_ps[ops[first]], reached_ps[last], last - first + 1, ops[longest])


def representatives(compute_ps: _I64, alive: NDArray[np.bool_]) -> list[tuple[str, int]]:
    """(what it stands for, device): the busiest, median and idlest live device by compute time, each device once."""
    devices = np.flatnonzero(alive)
    ranked = devices[np.argsort(-compute_ps[devices], kind="stable")]
    if not len(ranked):
        return []
    places = {"busiest": 0, "median": len(ranked) // 2, "idlest": len(ranked) - 1}
    chosen: dict[int, str] = {}
    for name, place in places.items():
        chosen.setdefault(int(ranked[place]), name)
    return [(name, device) for device, name in chosen.items()]
