"""Plain data-parallel training: gradients are averaged over two ranks, piece by piece, as a ring of two does it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from meshemu.comm import Comm

__all__ = ["average", "averaged_alone"]

Exchange = Callable[[torch.Tensor, torch.Tensor], None]
"""(sent, received): what a rank does with the other one."""


def average(gradients: Sequence[torch.Tensor], comm: Comm) -> None:
    """Replace fp32 gradients by their means over the two ranks of `comm`: each sums one half, then they swap halves."""
    other = 1 - comm.rank

    def exchange(sent: torch.Tensor, received: torch.Tensor) -> None:
        comm.exchange({other: _bytes(sent)}, {other: _bytes(received)})

    _average(gradients, comm.rank, exchange)


def averaged_alone(gradients: Sequence[torch.Tensor]) -> None:
    """All that a rank does in `average` but for its messages: what an all-reduce costs besides the network."""
    _average(gradients, 0, lambda _sent, _received: None)


def _average(gradients: Sequence[torch.Tensor], rank: int, exchange: Exchange) -> None:
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
    half = -(-len(whole) // 2)
    halves = whole[:half], whole[half:]
    mine, theirs = halves[rank], halves[1 - rank]
    received = torch.empty_like(mine)
    exchange(theirs, received)
    mine.add_(received).mul_(0.5)
    exchange(mine, theirs)
    begin = 0
    for gradient in gradients:
        gradient.copy_(whole[begin : begin + gradient.numel()].view_as(gradient))
        begin += gradient.numel()


def _bytes(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return tensor.numpy().view(np.uint8)
