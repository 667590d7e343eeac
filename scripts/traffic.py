"""Traffic patterns of a rows x cols mesh: where each message goes (W. Dally and B. Towles, Principles and Practices of
Interconnection Networks, 2004, section 3.2). Nodes are numbered row by row; a pattern may send a node to itself.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError

__all__ = ["PATTERNS", "bernoulli", "destinations"]

Ints = NDArray[np.int64]

HOT_FRACTION = 0.1  # of hotspot traffic that goes to the hot node, beside its share of the rest


def uniform(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """Any node, all alike, the sender included."""
    return rng.integers(0, rows * cols, len(src))


def transpose(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """From (row, col) to (col, row). InputError for a mesh that is not square."""
    if rows != cols:
        raise InputError(f"transpose needs a square mesh, not {rows} x {cols}")
    row, col = np.divmod(src, cols)
    return col * cols + row


def neighbour(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """One further along both dimensions, around the edge."""
    row, col = np.divmod(src, cols)
    return (row + 1) % rows * cols + (col + 1) % cols


def tornado(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """Almost half way around along both dimensions: ceil(k / 2) - 1 further of k."""
    row, col = np.divmod(src, cols)
    return (row + (rows + 1) // 2 - 1) % rows * cols + (col + (cols + 1) // 2 - 1) % cols


def bit_complement(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """To the opposite number, n - 1 - id: all bits of the id inverted where n is a power of two."""
    return rows * cols - 1 - src


def hotspot(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """A tenth of all messages to the node in the middle, (rows // 2, cols // 2), the others uniform."""
    hot = rows // 2 * cols + cols // 2
    return np.where(rng.random(len(src)) < HOT_FRACTION, hot, rng.integers(0, rows * cols, len(src)))


def all_to_all(rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """Message t = 0, 1, 2 ... of node i to node i + 1 + t mod (n - 1), around: every other node in turn."""
    n = rows * cols
    order = np.argsort(src, kind="stable")
    of_node = np.searchsorted(src[order], src[order])
    turn = np.empty(len(src), np.int64)
    turn[order] = np.arange(len(src)) - of_node
    return (src + 1 + turn % max(1, n - 1)) % n


PATTERNS: Mapping[str, Callable[[int, int, Ints, np.random.Generator], Ints]] = {
    "uniform": uniform,
    "transpose": transpose,
    "neighbour": neighbour,
    "bit_complement": bit_complement,
    "hotspot": hotspot,
    "all_to_all": all_to_all,
    "tornado": tornado,
}


def destinations(pattern: str, rows: int, cols: int, src: Ints, rng: np.random.Generator) -> Ints:
    """Destination of each message, in the order in which the nodes `src` send them, int64.

    InputError for an unknown pattern, with the valid names, or one that the mesh does not have.
    """
    if pattern not in PATTERNS:
        raise InputError(f"unknown traffic pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    return PATTERNS[pattern](rows, cols, src, rng)


def bernoulli(n_nodes: int, n_cycles: int, probability: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(cycle, node) of messages that each node creates in each cycle with this probability, in order of time."""
    if not 0 <= probability <= 1:
        raise InputError(f"{probability} messages per node and cycle: a probability is needed, 0 to 1")
    cycle, node = np.nonzero(rng.random((n_cycles, n_nodes)) < probability)
    return cycle.astype(np.int64), node.astype(np.int64)
