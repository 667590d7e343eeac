"""Move pieces of tensors between ranks: a fixed list of boxes per peer, packed into one buffer each way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.comm import Comm

__all__ = ["Exchange"]

Message = Sequence[torch.Tensor]
"""The parts of a message, which travel one after the other."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """sizes to receive, in elements, in the order that each peer sends them: peer -> (number of elements, ...)."""

    comm: Comm
    dtype: torch.dtype
    receive_sizes: Mapping[int, Sequence[int]]

    def run(self, send: Mapping[int, Sequence[Message]]) -> dict[int, list[torch.Tensor]]:
        """Send lists of messages; return, per peer, flat tensors of the sizes agreed on."""
        outgoing = {peer: _bytes(_packed(messages)) for peer, messages in send.items()}
        landed = {peer: torch.empty(sum(sizes), dtype=self.dtype) for peer, sizes in self.receive_sizes.items()}
        self.comm.exchange(outgoing, {peer: _bytes(buffer) for peer, buffer in landed.items()})
        return {peer: list(torch.split(landed[peer], list(self.receive_sizes[peer]))) for peer in landed}


def _packed(messages: Sequence[Message]) -> torch.Tensor:
    """All parts of all messages, one after the other; one alone is sent from where it is."""
    parts = [part.reshape(-1) for message in messages for part in message]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous tensor as bytes."""
    return tensor.view(torch.uint8).numpy()
