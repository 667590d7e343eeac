"""Hand the results of a step to ranks that emulate no device of the plan: a plan may leave devices of the mesh out."""

from collections.abc import Sequence

import numpy as np
import torch

from meshemu.comm import Comm
from meshemu.execute.blocks import Host, Key
from meshemu.execute.transport import Exchange
from meshemu.workload.spmd import Value

__all__ = ["HandOver"]


class HandOver:
    """Sends replicated values from the rank of the plan's first position to every rank without a position."""

    def __init__(self, values: Sequence[Value], host: Host, comm: Comm) -> None:
        idle = np.setdiff1d(np.arange(comm.size), host.rank_of_position).tolist()
        self._root = int(host.rank_of_position[0])
        self._receivers = idle if host.rank == self._root else []
        self._receives = host.rank in idle
        by_dtype: dict[torch.dtype, list[Value]] = {}
        for value in values:
            by_dtype.setdefault(value.dtype, []).append(value)
        self._batches = []
        for dtype, batch in by_dtype.items():
            sizes = [torch.Size(v.shape).numel() for v in batch]
            self._batches.append((batch, Exchange(comm, dtype, {self._root: sizes} if self._receives else {})))

    def run(self, environment: dict[int, dict[Key, torch.Tensor]]) -> None:
        """Give the ranks without a position their copy."""
        for batch, exchange in self._batches:
            if self._receivers:
                sent = [environment[v.id][()] for v in batch]
                exchange.run(dict.fromkeys(self._receivers, sent))
            if self._receives:
                for value, flat in zip(batch, exchange.run({})[self._root], strict=True):
                    environment[value.id] = {(): flat.view(value.shape)}
