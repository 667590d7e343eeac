"""Settings of torch under which the same operator on the same block gives the same bits on every rank."""

import torch

__all__ = ["make_deterministic"]


def make_deterministic() -> None:
    """One thread per rank (their number changes the order of sums inside an operator), deterministic algorithms."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
