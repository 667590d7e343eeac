"""Fusion: a pointwise op runs within the op that makes the block which it alone reads.

The block then stays in registers: its producer does not store it, its reader does not load it and is not launched. What
else either loads, stores or calculates stays its own, so a chain costs its arithmetic, what goes in and what comes out.
Ids and dependencies stay as they are. Which op made a block that nobody else reads is in the Program
(`Program.producer`), so that a stored one is fused in the same way.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import Program

__all__ = ["Costs", "fused", "separate"]


@dataclass(frozen=True, eq=False)
class Costs:
    """Bytes that every op reads and writes, int64[n_ops]; whether it is launched, and whether fusion changed it."""

    read_bytes: NDArray[np.int64]
    write_bytes: NDArray[np.int64]
    launched: NDArray[np.bool_]
    changed: NDArray[np.bool_]


def separate(program: Program) -> Costs:
    """Every op for itself."""
    return Costs(
        program.read_bytes,
        program.write_bytes,
        launched=np.ones(program.n_ops, np.bool_),
        changed=np.zeros(program.n_ops, np.bool_),
    )


def fused(program: Program) -> Costs:
    """Pointwise ops within their producers."""
    reader = np.flatnonzero(program.producer >= 0)
    producer, size_bytes = program.producer[reader], program.producer_bytes[reader]
    read_bytes, write_bytes = program.read_bytes.copy(), program.write_bytes.copy()
    read_bytes[reader] -= size_bytes
    np.subtract.at(write_bytes, producer, size_bytes)
    launched, changed = np.ones(program.n_ops, np.bool_), np.zeros(program.n_ops, np.bool_)
    launched[reader] = False
    changed[reader] = changed[producer] = True
    return Costs(read_bytes, write_bytes, launched, changed)
