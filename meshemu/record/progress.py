"""How far a run has come, as its growing file tells another process."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from meshemu.errors import RecordError
from meshemu.record.reader import Run, open_run

__all__ = ["Progress", "Watcher"]

_SETTLING_S = 2.0  # for so long after a write, what cannot be read may yet become a run


@dataclass(frozen=True)
class Progress:
    """n_steps of n_planned steps are done; complete: the run has ended in order.

    loss: of the last step, NaN if it was timed only. step_time_ps: its virtual time. step_wall_s: wall time of a step
    in the mean of those seen, None before the first. quiet_s: how long ago the file was written last.
    """

    n_steps: int
    n_planned: int
    complete: bool
    loss: float
    step_time_ps: int
    step_wall_s: float | None
    quiet_s: float

    @property
    def remaining_s(self) -> float | None:
        """Wall time until the last step, None where no step tells."""
        if self.step_wall_s is None:
            return None
        return max(self.n_planned - self.n_steps, 0) * self.step_wall_s


class Watcher:
    """Looks at the file at `path` again and again: not there yet, growing, replaced by another run, complete."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._identity: tuple[int, int, str] | None = None

    def look(self) -> Progress | None:
        """The state now; None while there is no file, or one that holds nothing readable yet.

        Raises:
            RecordError: what is there will not become a results file that can be read.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {os.strerror(error.errno or 0)}") from None
        quiet_s = max(time.time() - found.st_mtime, 0.0)
        try:
            run = open_run(self.path)
            progress = _progress(run, quiet_s)
        except RecordError:
            if quiet_s < _SETTLING_S and not self.path.is_dir():  # its head is still being written
                return None
            raise
        self._identity = (found.st_dev, found.st_ino, run.created_utc)
        return progress

    @property
    def identity(self) -> tuple[int, int, str] | None:
        """What tells the run seen last from one that has taken its place."""
        return self._identity


def _progress(run: Run, quiet_s: float) -> Progress:
    steps = run.steps
    last = steps.iloc[-1] if run.n_steps else None
    return Progress(
        n_steps=run.n_steps,
        n_planned=run.n_steps_planned,
        complete=run.complete,
        loss=float("nan") if last is None else float(last["loss"]),
        step_time_ps=0 if last is None else int(last["time_ps"]),
        step_wall_s=None if last is None else float(steps["wall_s"].mean()),
        quiet_s=quiet_s,
    )
