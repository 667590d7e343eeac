"""Captured steps that the runs of a study share, within one process."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["captures_of"]


@lru_cache(maxsize=2)
def captures_of(_model: str) -> Callable[[Any, Sequence[Any]], Any]:
    """What to pass to `run` as `capture` for all runs of one model (`run_key.model_key`): it captures the step for each
    shape of batch once in this process.
    """
    from meshemu.workload.capture import capture_maths

    known: dict[str, Any] = {}

    def capture(maths: Any, leaves: Sequence[Any]) -> Any:
        tensors = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
        shapes = repr((maths.gradients, maths.autocast_dtype, tensors))
        if shapes not in known:
            known[shapes] = capture_maths(maths, list(leaves))
        return known[shapes]

    return capture
