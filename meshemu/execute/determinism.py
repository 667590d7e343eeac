"""Settings of torch under which the same operator on the same block gives the same bits on every rank."""

import torch

__all__ = ["make_deterministic"]


def make_deterministic() -> None:
    """One thread per rank: their number changes the order of sums inside an operator.

    torch.use_deterministic_algorithms is not needed on one CPU thread, and would load the compiler (2 s).
    """
    torch.set_num_threads(1)
