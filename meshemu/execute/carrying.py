"""The number format in which a collective carries terms of sums."""

from dataclasses import dataclass

import torch

from meshemu.hardware.format_roles import Carried
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.formats.random_bits import Stream
from meshemu.workload.formats.storing import rounded

__all__ = ["Carrier"]

MASK = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Carrier:
    """Rounds what is sent in one step. seed: of the collective in this step."""

    carried: Carried
    seed: int
    maxima: Maxima

    def __call__(self, piece: torch.Tensor, start: int, sender: int, phase: int) -> torch.Tensor:
        """A piece as it is sent in a phase. start: number of its first element; sender: number of the block that its
        sender has, the same for all that have the same numbers to send.
        """
        role = self.carried.role
        tracker = self.maxima.tracker(self.carried.key) if role.sliding else None
        seed = (self.seed + sender * 0xD1B54A32D192ED03 + phase * 0x8CB92BA72F3D8DD7) & MASK
        flat = piece.reshape(-1)
        stop = start + len(flat)
        return rounded(flat, role, tracker, {0: (start, stop)}, Stream((stop,)), seed).view(piece.shape)
