"""Plain data-parallel training: gradients are averaged over two ranks, piece by piece, as a ring of two does it."""

from collections.abc import Sequence

import numpy as np
import torch

from meshemu.comm import Comm

__all__ = ["average"]


def average(gradients: Sequence[torch.Tensor], comm: Comm) -> None:
    """Replace fp32 gradients by their means over the two ranks of `comm`: each sums one half, then they swap halves."""
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
    half, other = -(-len(whole) // 2), 1 - comm.rank
    halves = whole[:half], whole[half:]
    mine, theirs = halves[comm.rank], halves[other]
    received = torch.empty_like(mine)
    comm.exchange({other: _bytes(theirs)}, {other: _bytes(received)})
    mine.add_(received).mul_(0.5)
    comm.exchange({other: _bytes(mine)}, {other: _bytes(theirs)})
    begin = 0
    for gradient in gradients:
        gradient.copy_(whole[begin : begin + gradient.numel()].view_as(gradient))
        begin += gradient.numel()


def _bytes(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return tensor.numpy().view(np.uint8)
