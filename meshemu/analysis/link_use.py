"""How much each link was in use over the recorded step, bin by bin."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.record import Run

__all__ = ["LinkUse", "link_use"]


@dataclass(frozen=True, eq=False)
class LinkUse:
    """Shares of time in which links carried a packet.

    edge_ps: int64[n_bins + 1], where bins begin, and the end of the last. busy_ps: int64[n_bins, n_links].
    """

    edge_ps: NDArray[np.int64]
    busy_ps: NDArray[np.int64]

    @property
    def n_bins(self) -> int:
        """Number of bins; 0 where no timeline was recorded."""
        return len(self.busy_ps)

    @property
    def share(self) -> NDArray[np.float64]:
        """busy_ps over the width of the bin, float64[n_bins, n_links], 0 to 1."""
        return np.asarray(self.busy_ps / np.maximum(np.diff(self.edge_ps), 1)[:, None])


def link_use(run: Run, most_bins: int | None = None) -> LinkUse:
    """Use of all links in the first recorded step; neighbouring bins are merged until there are at most `most_bins`.

    Bins after the end of the step are left out, and the last one ends with it.
    """
    table = run.timeline()
    start_ps = table.index.to_numpy(np.int64)
    step = run.recorded_steps[0] if run.recorded_steps else 0
    end_ps = int(run.steps["time_ps"].iloc[step]) if run.n_steps else 0
    n_bins = int(np.searchsorted(start_ps, end_ps))
    busy_ps = table.to_numpy(np.int64)[:n_bins]
    edge_ps = np.append(start_ps[:n_bins], end_ps)
    if not n_bins:
        return LinkUse(np.zeros(1, np.int64), busy_ps)
    together = 1 if most_bins is None else -(-n_bins // max(most_bins, 1))
    first = np.arange(0, n_bins, together)
    return LinkUse(np.append(edge_ps[first], end_ps), np.add.reduceat(busy_ps, first, axis=0))
