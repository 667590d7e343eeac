"""What happens between two steps: a checkpoint where one is due, and the end of the run where a signal asks for it."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meshemu.comm import Comm
from meshemu.emulator.recording import Recorder
from meshemu.emulator.root import on_root
from meshemu.errors import StoppedError
from meshemu.execute.state import write_state
from meshemu.execute.training import Trainer, digest_of
from meshemu.record.checkpoint_files import CheckpointFolder
from meshemu.runtime.stopping import StopRequest
from meshemu.version import __version__

__all__ = ["Boundary"]


@dataclass(frozen=True, eq=False)
class Boundary:
    """The boundaries between the steps of a run of `n_steps`.

    every_steps: how often a checkpoint is written, 0 for only when the run is told to stop. trainer: whose state it is;
    without one there is none, and nothing to write. identity: what of the configuration results depend on.
    """

    folder: CheckpointFolder
    every_steps: int
    n_steps: int
    identity: Mapping[str, str]
    seed: int
    trainer: Trainer | None
    recorder: Recorder
    comm: Comm
    request: StopRequest

    def passed(self, n_done: int) -> None:
        """After so many steps: write a checkpoint if it is due, stop if any rank was asked to. Collective.

        Raises on every rank:
            RecordError: a checkpoint cannot be written.
            StoppedError: the run was told to stop; its file is closed and can be continued.
        """
        last = n_done == self.n_steps
        signum = 0 if last else self.request.agreed(self.comm)
        due = bool(self.every_steps) and (last or n_done % self.every_steps == 0)
        if due or signum:
            self._write(n_done)
        if signum:
            self.recorder.close()
            raise StoppedError(
                f"stopped by {signal.Signals(signum).name} after {n_done} of {self.n_steps} steps; "
                "the same command with --resume goes on from there"
            )

    def _write(self, n_done: int) -> None:
        """Write the state after so many steps, once what was recorded of them is on the disk."""
        if self.trainer is None:
            return
        self.recorder.sync()
        on_root(self.comm, partial(self._write_alone, self.trainer, n_done))

    def _write_alone(self, trainer: Trainer, n_done: int) -> Path:
        state = trainer.state_dict()
        content: dict[str, Any] = state | {
            "step": n_done,
            "seed": self.seed,
            "parameters_sha256": digest_of(state["model"]),
            "identity": dict(self.identity),
            "meshemu_version": __version__,
        }
        return self.folder.write(n_done, lambda file: write_state(file, content))
