"""Maths of one block of operators that are a linear map of each of several dims."""

from dataclasses import dataclass

import torch

from meshemu.workload.kernels import accumulator

__all__ = ["Matrix", "resample"]

Tensor = torch.Tensor
Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear map of one dim: weights (size after, size before); picks: the only column of each row with weight 1."""

    weights: Tensor
    picks: Tensor | None

    @classmethod
    def of(cls, weights: Tensor) -> "Matrix":
        """From its weights."""
        copies = ((weights != 0).sum(1) == 1) & (weights.sum(1) == 1)
        return cls(weights, weights.argmax(1) if weights.numel() and bool(copies.all()) else None)

    def transposed(self) -> "Matrix":
        """The map of the gradient."""
        return Matrix.of(self.weights.T.contiguous())

    def reach(self, lo: int, hi: int) -> Range:
        """The columns that rows lo..hi use, from the first to the last."""
        used = torch.nonzero((self.weights[lo:hi] != 0).any(0)).flatten()
        return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, min(1, self.weights.shape[1]) if hi > lo else 0)

    def apply(self, x: Tensor, dim: int, rows: Range, columns: Range) -> Tensor:
        """Rows `rows` of the result, from x that holds `columns` along `dim`."""
        if self.picks is not None and rows[1] > rows[0]:
            picks = self.picks[rows[0] : rows[1]] - columns[0]
            if bool((picks >= 0).all()) and bool((picks < x.shape[dim]).all()):
                return x.index_select(dim, picks)
        weights = self.weights[rows[0] : rows[1], columns[0] : columns[1]].to(accumulator(x.dtype))
        return torch.matmul(x.to(weights.dtype).movedim(dim, -1), weights.T).movedim(-1, dim).to(x.dtype)


def resample(x: Tensor, maps: list[tuple[Matrix, int, Range, Range]]) -> Tensor:
    """Each map (matrix, dim, range of the output, range of x) applied to its dim."""
    for matrix, dim, rows, columns in maps:
        x = matrix.apply(x, dim, rows, columns)
    return x.contiguous()
