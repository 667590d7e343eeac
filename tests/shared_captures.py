"""Steps captured once for several emulations: capture knows nothing of plans and ranks, and takes most of the time."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import Any
from unittest.mock import patch

from meshemu.emulator import emulation, evaluating
from meshemu.emulator.prepare import prepare
from meshemu.workload.capture import capture_maths
from meshemu.workload.graph import Graph
from meshemu.workload.step_maths import StepMaths


class Captures:
    """Graphs of steps by key and shapes; whoever comes first captures, ranks in threads wait for it."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Graph] = {}
        self._lock = RLock()
        self._patches = ExitStack()
        self._key: tuple[Hashable, ...] = ()
        self._users = self._asked = 0

    @contextmanager
    def of(self, *key: Hashable) -> Iterator[None]:
        """Meanwhile `meshemu.emulate` and `meshemu.evaluate` share what they capture: with one key go one model, one
        loss and one precision, whatever the plan. Ranks in threads may each enter. Fails if neither asked for a graph.
        """
        with self._lock:
            if not self._users:
                self._key, self._asked = key, 0
                for module in (emulation, evaluating):
                    self._patches.enter_context(
                        patch.object(module, "prepare", partial(prepare, capture=self.capture))
                    )
            assert key == self._key, "ranks share one key"
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._patches.close()
        assert self._asked, f"nothing was captured for {key}"

    def capture(self, maths: StepMaths, leaves: Sequence[Any]) -> Graph:
        """What `prepare` and `meshemu.run` take as `capture`."""
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        with self._lock:
            self._asked += 1
            known = self._key, maths.gradients, maths.autocast_dtype, shapes
            if known not in self._graphs:
                self._graphs[known] = capture_maths(maths, leaves)
            return self._graphs[known]
