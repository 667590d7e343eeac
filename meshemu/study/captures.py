"""What the runs of a study share within one process: models, data and captured steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from meshemu.config import Config
from meshemu.study.run_key import model_key

if TYPE_CHECKING:  # loads torch, which a process that only makes a table does not need
    from meshemu.emulator.configured import Parts
    from meshemu.emulator.prepared_step import PreparedStep

__all__ = ["captures_of", "timed_step"]

_Capture = Callable[[Any, Sequence[Any]], Any]


def captures_of(model: str) -> _Capture:
    """What to pass to `run` as `capture` for all runs of one model (`run_key.model_key`): it captures the step for each
    shape of batch once in this process.
    """
    return _shared(model).capture


def timed_step(config: Config, capture: _Capture | None = None) -> "PreparedStep":
    """The timed step of a configuration, without maths and without a results file. Model and data are built once for
    all configurations of one model. capture: None for `captures_of` that model. Raises InputError as `run` does.
    """
    from meshemu.emulator.running import prepared_step

    shared = _shared(model_key(config))
    return prepared_step(shared.parts(config), config, capture=capture or shared.capture)


class _Shared:
    """Of one model: its parts, built for whichever configuration comes first, and captured steps by their shapes."""

    def __init__(self) -> None:
        self._parts: Parts | None = None
        self._captured: dict[str, Any] = {}

    def parts(self, config: Config) -> "Parts":
        """Those of a configuration, with its own system."""
        from meshemu.emulator.configured import parts_of, system_of

        if self._parts is None:
            self._parts = parts_of(config)
        return replace(self._parts, settings=config, system=system_of(config))

    def capture(self, maths: Any, leaves: Sequence[Any]) -> Any:
        """As `capture_maths`."""
        from meshemu.workload.capture import capture_maths

        tensors = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
        shapes = repr((maths.gradients, maths.autocast_dtype, tensors))
        if shapes not in self._captured:
            self._captured[shapes] = capture_maths(maths, list(leaves))
        return self._captured[shapes]


@lru_cache(maxsize=2)
def _shared(_model: str) -> _Shared:
    return _Shared()
