"""Unbounded FIFOs beside routers with finite buffers: the same work timed by both, and how far they disagree."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshemu.hardware import Router
from meshemu.network.events import Ints
from meshemu.network.results import MessageTimes, Timing

__all__ = ["Disagreement", "compare_modes"]

Result = TypeVar("Result", MessageTimes, Timing)


@dataclass(frozen=True, eq=False)
class Disagreement(Generic[Result]):
    """What both modes found for the same work."""

    fifo: Result
    router: Result

    @property
    def end_ps(self) -> tuple[int, int]:
        """When all is done, with FIFOs and with routers."""
        return self.fifo.end_ps, self.router.end_ps

    @property
    def wait_ps(self) -> tuple[Ints, Ints]:
        """How long packets waited for each link, int64[n_links], with FIFOs and with routers."""
        return self.fifo.links.wait_ps, self.router.links.wait_ps

    @property
    def relative(self) -> float:
        """How much longer everything takes with routers, as a fraction of what it takes with FIFOs."""
        fifo, router = self.end_ps
        return (router - fifo) / fifo if fifo else 0.0


def compare_modes(simulate: Callable[[Router | None], Result], router: Router) -> Disagreement[Result]:
    """Time work in both modes, by simulate(None) and by simulate(router).

    For example:

        compare_modes(lambda router: meshemu.time(program, system, router=router), meshemu.Router())

    Raises what `simulate` raises.
    """
    return Disagreement(fifo=simulate(None), router=simulate(router))
