"""How the terms of a partial value are combined: the operation of an all-reduce, on rows that are never cut apart.

Every operation is associative and commutative up to rounding, so any schedule may carry it out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

__all__ = ["COMBINES", "Combination", "merge_moments"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Combination:
    """row: how many numbers belong together. merge: two tensors (n, row) -> the two together."""

    row: int
    merge: Callable[[Tensor, Tensor], Tensor]


def merge_moments(a: Tensor, b: Tensor) -> Tensor:
    """Moments (n, 3) of two disjoint sets together (Chan, Golub and LeVeque 1979, eq. 2.1); a set may be empty."""
    n_a, mean_a, m2_a = a.unbind(1)
    n_b, mean_b, m2_b = b.unbind(1)
    n = n_a + n_b
    weight = n_b / n.clamp(min=1)
    delta = mean_b - mean_a
    return torch.stack([n, mean_a + delta * weight, m2_a + m2_b + delta.square() * n_a * weight], dim=1)


def merge_log_sums(a: Tensor, b: Tensor) -> Tensor:
    """(maximum, sum of exp(x - maximum)) of two disjoint sets together, (n, 2); of an empty set it is (-inf, 0)."""
    highest = torch.maximum(a[:, 0], b[:, 0])
    shift = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    total = a[:, 1] * (a[:, 0] - shift).exp() + b[:, 1] * (b[:, 0] - shift).exp()
    return torch.stack([highest, total], dim=1)


COMBINES: Mapping[str, Combination] = MappingProxyType({
    "sum": Combination(1, torch.add),
    "product": Combination(1, torch.mul),
    "max": Combination(1, torch.maximum),
    "min": Combination(1, torch.minimum),
    "moments": Combination(3, merge_moments),
    "log_sums": Combination(2, merge_log_sums),
})  # fmt: skip
"""Name -> operation. moments: (count, mean, sum of squared deviations); log_sums: (maximum, scaled sum of exp)."""
