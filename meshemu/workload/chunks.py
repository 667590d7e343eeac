"""How the buffer of a Collective is cut into the chunks of its schedule."""

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import even_bounds
from meshemu.workload.combines import COMBINES
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Collective, Value

__all__ = ["block_elements", "chunk_bounds", "one", "row_length"]


def row_length(instruction: Collective) -> int:
    """Numbers that belong together and are never cut apart: 3 for moments, 1 for sums ..."""
    return COMBINES[instruction.combine].row


def one(_value: Value) -> int:
    """Counts elements."""
    return 1


def block_elements(
    values: tuple[Value, ...], plan: Plan, position: int, size_of: Callable[[Value], int] = one
) -> int:
    """Elements of all the blocks of `values` at a position; size_of: what an element of a value counts."""
    place = plan.at(position)
    return sum(prod(v.layout.local_shape(v.shape, place)) * size_of(v) for v in values)


def chunk_bounds(
    instruction: Collective,
    n_chunks: int,
    group: NDArray[np.int64],
    plan: Plan,
    size_of: Callable[[Value], int] = one,
) -> NDArray[np.int64]:
    """Row of the buffer where each chunk begins, and where the last one ends: int64[n_chunks + 1].

    group: positions of the members in order. An all-reduce is cut evenly; elsewhere chunk i is what member i holds of
    `instruction.blocks`, one value after the other. size_of: what an element of a value counts, in place of one row.
    """
    if instruction.kind == "all_reduce":
        n_rows = block_elements(instruction.sources, plan, int(group[0])) // row_length(instruction)
        return even_bounds(n_chunks, n_rows)
    sizes = [block_elements(instruction.blocks, plan, position, size_of) for position in group.tolist()]
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))
