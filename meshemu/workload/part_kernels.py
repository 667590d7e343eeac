"""Maths of one block where parts of tensors are put into others."""

from dataclasses import dataclass

import torch

from meshemu.workload.layout import Split

__all__ = ["Spread", "lower_triangle", "spread_over", "spread_over_zeros", "upper_triangle"]

Tensor = torch.Tensor
Range = tuple[int, int]


@dataclass(frozen=True)
class Spread:
    """Element i of a part of `size` elements lies at start + i * step of `dim`."""

    dim: int
    start: int
    step: int
    size: int

    def elements(self, lo: int, hi: int) -> Range:
        """Which elements of the part lie in lo..hi."""
        first, last = (min(max(-((self.start - bound) // self.step), 0), self.size) for bound in (lo, hi))
        return first, max(first, last)

    def window(self, cut: Split | None) -> Split | None:
        """What each block of the whole takes of the part."""
        return None if cut is None else Split(self.dim, cut.axes, tuple(self.elements(*r) for r in cut.ranges))

    def place(self, block: Tensor, part: Tensor, inside: Range) -> Tensor:
        """Write the part's elements into a block that holds `inside` of the dim."""
        first, last = self.elements(*inside)
        begin = self.start + first * self.step - inside[0]
        end = begin + (last - first) * self.step
        if last > first:
            torch.ops.aten.slice.Tensor(block, self.dim, begin, end, self.step).copy_(part)
        return block


def spread_over_zeros(part: Tensor, shape: tuple[int, ...], spread: Spread, inside: Range) -> Tensor:
    """A block of zeros with its share of a part."""
    return spread.place(torch.zeros(shape, dtype=part.dtype), part, inside)


def spread_over(base: Tensor, part: Tensor, spread: Spread, inside: Range) -> Tensor:
    """A block with its share of a part in place of what it held."""
    return spread.place(base.clone(memory_format=torch.contiguous_format), part, inside)


def lower_triangle(x: Tensor, diagonal: int, rows: Range, cols: Range) -> Tensor:
    """torch.tril of a block."""
    return torch.tril(x, diagonal + rows[0] - cols[0])


def upper_triangle(x: Tensor, diagonal: int, rows: Range, cols: Range) -> Tensor:
    """torch.triu of a block."""
    return torch.triu(x, diagonal + rows[0] - cols[0])
