"""Running maxima of tensors: what sliding biases follow, one number a tensor, the same on every rank.

During a step ranks note the largest magnitudes of the blocks that they compute; when it ends they agree on those of
whole tensors. The bias of a step comes from the steps before it, so nothing waits for a maximum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from meshemu.comm import Comm

__all__ = ["DECAY", "HEADROOM", "Maxima", "Tracker"]

HEADROOM = 2.0
"""A bias leaves room for so many times the running maximum."""

DECAY = 0.9
"""What is left of a running maximum after a step: it forgets a factor of two in seven steps."""


class Maxima:
    """Running maxima by the key of a tensor."""

    def __init__(self) -> None:
        self._running: dict[str, float] = {}
        self._found: dict[str, float] = {}

    def tracker(self, key: str) -> "Tracker":
        """Access to one of them."""
        return Tracker(self, key)

    def running(self, key: str) -> float | None:
        """The running maximum of earlier steps, None before the first."""
        return self._running.get(key)

    def note(self, key: str, maximum: float) -> None:
        """A block of this step."""
        self._found[key] = max(self._found.get(key, 0.0), maximum)

    def end_step(self, comm: Comm) -> None:
        """Make running maxima of what all ranks noted, in whatever order they did."""
        agreed: dict[str, float] = {}
        for found in comm.all_gather(self._found):
            for key, maximum in found.items():
                agreed[key] = max(agreed.get(key, 0.0), maximum)
        self._found = {}
        for key, maximum in agreed.items():
            self._running[key] = max(maximum, DECAY * self._running.get(key, 0.0))

    def state_dict(self) -> dict[str, float]:
        """A copy of all running maxima."""
        return dict(sorted(self._running.items()))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from running maxima of an earlier run."""
        self._running = {key: float(maximum) for key, maximum in state.items()}


@dataclass(frozen=True)
class Tracker:
    """The running maximum of one tensor."""

    maxima: Maxima
    key: str

    @property
    def wanted(self) -> float | None:
        """What a bias should leave room for; None before the first step."""
        running = self.maxima.running(self.key)
        return None if running is None else HEADROOM * running

    def note(self, block: torch.Tensor) -> None:
        """The largest finite magnitude of a block of this step."""
        if not block.numel():
            return
        low, high = (float(bound) for bound in torch.aminmax(block.detach()))
        maximum = max(-low, high)
        if not maximum < float("inf"):
            finite = block[block.isfinite()]
            maximum = float(finite.abs().max()) if finite.numel() else 0.0
        self.maxima.note(self.key, maximum)
