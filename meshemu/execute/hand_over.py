"""Give every rank the whole results of a step, whichever devices hold which blocks of them.

The emulator's own exchange, no part of the emulated traffic: a device updates its blocks of the parameters only, but
torch.optim works on the module's own parameters, which every rank keeps whole; and a plan may leave devices of the
mesh out, so that a rank may emulate none.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, Key, assembled
from meshemu.execute.transport import Exchange
from meshemu.workload.spmd import Value

__all__ = ["HandOver"]

Missing = list[tuple[Value, Key]]


class HandOver:
    """Sends each rank the blocks that none of its devices holds, from the rank of the first device that does."""

    def __init__(self, values: Sequence[Value], host: Host, comm: Comm) -> None:
        self._host = host
        self._values = list({value.id: value for value in values}.values())
        self._by_dtype = []
        for dtype in dict.fromkeys(value.dtype for value in self._values):
            sent: dict[int, Missing] = defaultdict(list)
            received: dict[int, Missing] = defaultdict(list)
            for value in self._values:
                if value.dtype == dtype:
                    self._sort(value, comm.size, sent, received)
            sizes = {peer: [self._elements(*block) for block in blocks] for peer, blocks in received.items()}
            self._by_dtype.append((sent, received, Exchange(comm, dtype, sizes)))

    def run(self, environment: dict[int, Blocks]) -> dict[int, torch.Tensor]:
        """Value id -> whole tensor."""
        landed: dict[int, Blocks] = {value.id: dict(environment.get(value.id, {})) for value in self._values}
        for sent, received, exchange in self._by_dtype:
            if not sent and not received:
                continue
            arrived = exchange.run({peer: [[landed[v.id][key]] for v, key in blocks] for peer, blocks in sent.items()})
            for peer, tensors in arrived.items():
                for (value, key), tensor in zip(received[peer], tensors, strict=True):
                    landed[value.id][key] = tensor.view(self._shape(value, key))
        return {value.id: assembled(landed[value.id], value, self._host) for value in self._values}

    def _sort(self, value: Value, n_ranks: int, sent: dict[int, Missing], received: dict[int, Missing]) -> None:
        host = self._host
        owners = {key: int(host.rank_of_position[p]) for key, p in host.holders(value.layout).items()}
        for rank in range(n_ranks):
            held = host.representatives(value.layout, rank)
            for key, owner in owners.items():
                if key in held:
                    continue
                if owner == host.rank:
                    sent[rank].append((value, key))
                if rank == host.rank:
                    received[owner].append((value, key))

    def _shape(self, value: Value, key: Key) -> tuple[int, ...]:
        return self._host.local_shape(value, self._host.holders(value.layout)[key])

    def _elements(self, value: Value, key: Key) -> int:
        return torch.Size(self._shape(value, key)).numel()
