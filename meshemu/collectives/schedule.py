"""A collective as data: which participant sends which chunks to whom, phase by phase.

Participants are numbered 0..n-1 in row-major order over the present positions of the group's grid. The buffer of the
collective is cut into `n_chunks` chunks. Within a phase every transfer reads the state at the end of the last phase;
transfers into the same chunk of the same participant are combined in the order of the arrays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Schedule"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Transfers of one collective, sorted by phase.

    kind: all_reduce, reduce_scatter, all_gather, broadcast, reduce. algorithm: ring, rows_columns, tree, in_network.
    grid: (rows, cols). position: int32[n], the grid position row * cols + col of each participant.
    root: participant that broadcast reads and reduce fills (else -1).
    Transfers (t): phase, src, dst, chunk_lo, chunk_hi int32 (chunks chunk_lo <= c < chunk_hi); reduce bool (combine
    into dst's buffer, else overwrite it). tree: int32[t], transfers with one number >= 0 stand side by side and travel
    as one, a multicast if they share src, else a reduction in the network; -1, or None for all: alone.
    """

    kind: str
    algorithm: str
    grid: tuple[int, int]
    position: NDArray[np.int32]
    root: int
    n_chunks: int
    phase: NDArray[np.int32]
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    chunk_lo: NDArray[np.int32]
    chunk_hi: NDArray[np.int32]
    reduce: NDArray[np.bool_]
    tree: NDArray[np.int32] | None = None

    @property
    def n_participants(self) -> int:
        """Number of devices that take part."""
        return len(self.position)
