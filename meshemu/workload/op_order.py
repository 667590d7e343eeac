"""The order in which devices carry out operators: which comes so many after an instruction, or before it."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection

from meshemu.workload.spmd import Compute, Spmd, inputs_of

__all__ = ["OpOrder"]

Stages = tuple[int, ...]


class OpOrder:
    """Indices of the instructions that compute something. views: op classes that do not."""

    def __init__(self, spmd: Spmd, views: Collection[str]) -> None:
        self._computing = [
            (i, instruction.stages)
            for i, instruction in enumerate(spmd.instructions)
            if isinstance(instruction, Compute) and not (instruction.op_class in views and inputs_of(instruction))
        ]
        self._on: dict[Stages, list[int]] = {}

    def on(self, stages: Stages) -> list[int]:
        """Those that these stages of a pipeline, or some of them, carry out; () stands for all."""
        if stages not in self._on:
            self._on[stages] = [
                i for i, others in self._computing if not stages or not others or not set(stages).isdisjoint(others)
            ]
        return self._on[stages]

    def after(self, index: int, stages: Stages, n: int) -> int | None:
        """The n-th that stages carry out after instruction `index`; None where there are not so many."""
        ops = self.on(stages)
        at = bisect_right(ops, index) + n - 1
        return ops[at] if at < len(ops) else None

    def before(self, index: int, stages: Stages, n: int) -> int | None:
        """The n-th that stages carry out before instruction `index`; None where there are not so many."""
        ops = self.on(stages)
        at = bisect_left(ops, index) - n
        return ops[at] if at >= 0 else None
