"""In which order the stages of a pipeline go through forward and backward passes of micro-batches.

    1f1b    as many forward passes as stages follow, itself included; then a backward and a forward pass in turn
            (PipeDream-Flush: Narayanan et al. 2021). Stage s of P keeps the activations of at most P - s micro-batches.
    gpipe   all forward passes, then all backward passes (Huang et al. 2019): the same time, all activations kept.

With passes of equal length on all stages, both take (m + P - 1) forward and backward passes for m micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ORDERS", "Turn", "stage_turns", "turns"]

ORDERS = ("1f1b", "gpipe")


@dataclass(frozen=True)
class Turn:
    """One pass of one micro-batch through one stage."""

    stage: int
    forward: bool
    micro_batch: int


def stage_turns(order: str, stage: int, n_stages: int, n_micro_batches: int) -> list[Turn]:
    """The turns of one stage, in its own order. Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
    ahead = n_micro_batches if order == "gpipe" else min(n_stages - stage, n_micro_batches)
    forward = [Turn(stage, True, k) for k in range(n_micro_batches)]
    backward = [Turn(stage, False, k) for k in range(n_micro_batches)]
    steady = [turn for pair in zip(backward, forward[ahead:], strict=False) for turn in pair]
    return [*forward[:ahead], *steady, *backward[n_micro_batches - ahead :]]


def turns(order: str, n_stages: int, n_micro_batches: int) -> tuple[Turn, ...]:
    """The turns of all stages in one list: each stage's own order is kept, and a pass comes after those it needs.

    Turns that may run at the same time, were all passes equally long, stand together.
    """
    waiting: list[Sequence[Turn]] = [stage_turns(order, s, n_stages, n_micro_batches) for s in range(n_stages)]
    done: set[Turn] = set()
    result: list[Turn] = []
    while any(waiting):
        ready = [mine[0] for mine in waiting if mine and _needs(mine[0], n_stages) <= done]
        if not ready:
            raise AssertionError(f"{order} of {n_stages} stages and {n_micro_batches} micro-batches waits for itself")
        waiting = [mine[1:] if mine and mine[0] in ready else mine for mine in waiting]
        result += ready
        done.update(ready)
    return tuple(result)


def _needs(turn: Turn, n_stages: int) -> set[Turn]:
    """The turns whose results a turn starts from."""
    stage, k = turn.stage, turn.micro_batch
    if turn.forward:
        return {Turn(stage - 1, True, k)} if stage else set()
    behind = {Turn(stage + 1, False, k)} if stage + 1 < n_stages else set()
    return {Turn(stage, True, k)} | behind
