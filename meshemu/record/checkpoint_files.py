"""The checkpoints of a run as files: a folder beside the results file, one file for each step that is kept."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meshemu.errors import RecordError
from meshemu.record.atomic import UNFINISHED, one_line, write_atomically

__all__ = ["CheckpointFolder"]

_NAME = re.compile(r"step-(\d{6,})\.pt")


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of files step-000012.pt, each the state after so many steps; the `keep` last ones are kept."""

    path: Path
    keep: int = 2

    @classmethod
    def of(cls, results: Path, path: str | None = None, keep: int = 2) -> "CheckpointFolder":
        """The folder `path`, or without one RUN.checkpoints beside the results file RUN.h5."""
        return cls(results.parent / f"{results.stem}.checkpoints" if path is None else Path(path), keep)

    def file(self, n_steps: int) -> Path:
        """Where the state after `n_steps` steps lies."""
        return self.path / f"step-{n_steps:06d}.pt"

    def steps(self) -> list[int]:
        """After how many steps there are checkpoints, ascending.

        Raises:
            RecordError: the folder cannot be read.
        """
        try:
            names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {one_line(error)}") from None
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def write(self, n_steps: int, write: Callable[[BinaryIO], object]) -> Path:
        """Write a checkpoint, then remove those that are no longer kept; older ones stay until the new one is there.

        Raises:
            RecordError: it cannot be written.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be made: {one_line(error)}") from None
        write_atomically(self.file(n_steps), write)
        self._remove([step for step in self.steps() if step <= n_steps][: -self.keep])
        return self.file(n_steps)

    def clear(self) -> None:
        """Remove all checkpoints, and what was left of one that was never finished.

        Raises:
            RecordError: one cannot be removed.
        """
        self._remove(self.steps())
        try:
            for left in self.path.glob(f"step-*.pt{UNFINISHED}"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be cleared: {one_line(error)}") from None

    def _remove(self, steps: list[int]) -> None:
        try:
            for step in steps:
                self.file(step).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be cleared: {one_line(error)}") from None
