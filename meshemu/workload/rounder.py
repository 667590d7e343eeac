"""What lowering asks of number formats: the seam between the instructions of a step and where values are rounded."""

from collections.abc import Sequence
from typing import Protocol

from meshemu.hardware.format_roles import Carried
from meshemu.workload.spmd import Value

__all__ = ["Rounder"]


class Rounder(Protocol):
    """Rounds values to number formats as they are sent and summed."""

    def sent(self, value: Value) -> Value:
        """What messages of a value carry."""

    def pushed(self, value: Value) -> Value:
        """What messages of windows carry that are added to blocks."""

    def carried(self, terms: Sequence[Value]) -> Carried | None:
        """How a collective carries terms of sums."""

    def moved(self, source: Value, output: Value) -> None:
        """`output` has the numbers, or some of the terms, of `source`."""

    def summed(self, term: Value, total: Value) -> Value:
        """The sum of a value's terms, as it is stored."""

    def roll_back(self, n_values: int) -> None:
        """Forget values from this number on."""
