"""Subcommand watch: the progress of a run, live, from another process."""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshemu.cli.commands import Commands
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

if TYPE_CHECKING:  # reads HDF5, which --help need not load
    from meshemu.record.progress import Progress, Watcher

__all__ = ["register"]

_CHECK_FAILED = 1


def register(commands: Commands) -> None:
    """Add watch."""
    about = "follow a run that is still going on, from another terminal; exit code 1 if its steps stop coming"
    watch = commands.add("watch", _watch, about)
    watch.add_argument("file", type=Path, metavar="RUN.h5")
    watch.add_argument("--once", action="store_true", help="print how far it is now, and end")
    every = "seconds between looks (default: %(default)s)"
    watch.add_argument("--interval", type=float, default=1.0, metavar="S", help=every)
    stale = "end when nothing was written for so many seconds, or ten steps if that is longer (default: %(default)s)"
    watch.add_argument("--stale", type=float, default=60.0, metavar="S", help=stale)


def _watch(arguments: argparse.Namespace, _launch: Launch) -> int:
    for key in ("interval", "stale"):
        if not (math.isfinite(getattr(arguments, key)) and getattr(arguments, key) > 0):
            raise InputError(f"--{key} {getattr(arguments, key)}: should be a number of seconds above 0")
    from meshemu.record.progress import Watcher

    watcher = Watcher(arguments.file)
    if arguments.once:
        now = watcher.look()
        if now is None:
            raise InputError(f"cannot read {arguments.file}: there is no run in it yet")
        print(_line(now))
        return 0
    return _follow(watcher, arguments.interval, arguments.stale, _Lines())


def _follow(watcher: "Watcher", interval_s: float, stale_s: float, lines: "_Lines") -> int:
    """Print until the run is complete (0) or nothing has come for too long (1)."""
    began = time.monotonic()
    shown: tuple[object, ...] | None = None
    identity = None
    while True:
        now = watcher.look()
        if now is None:
            if identity is not None:
                lines.note(f"{watcher.path}: the file is gone; waiting for another run")
                identity, shown, began = None, None, time.monotonic()
            waited_s = time.monotonic() - began
            if waited_s > stale_s:
                lines.note(f"{watcher.path}: no run for {waited_s:.0f} s")
                return _CHECK_FAILED
        else:
            if identity not in (None, watcher.identity):
                lines.note(f"{watcher.path}: another run has taken its place")
            identity = watcher.identity
            if (state := (identity, now.n_steps, now.complete)) != shown:
                lines.show(_line(now))
                shown = state
            if now.complete:
                lines.end()
                return 0
            if now.quiet_s > max(stale_s, 10 * (now.step_wall_s or 0.0)):
                lines.note(f"{watcher.path}: no step for {now.quiet_s:.0f} s; its run has ended or hangs")
                return _CHECK_FAILED
        time.sleep(interval_s)


class _Lines:
    """One line that is written over on a terminal; a line for each state elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._width = 0

    def show(self, line: str) -> None:
        """Print the state."""
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", flush=True)
            self._width = len(line)
        else:
            print(line, flush=True)

    def note(self, line: str) -> None:
        """Print something that stays."""
        self.end()
        print(line, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._width:
            print(flush=True)
        self._width = 0


def _line(now: "Progress") -> str:
    """Step n of N, loss, virtual time of a step, steps a second, time to go."""
    from meshemu.units import format_time

    words = [f"step {now.n_steps} of {now.n_planned}"]
    if now.n_steps:
        if not math.isnan(now.loss):
            words.append(f"loss {now.loss:.6g}")
        words.append(f"{format_time(now.step_time_ps)} a step")
    if now.step_wall_s:
        words.append(f"{1 / now.step_wall_s:.3g} steps/s")
    if now.complete:
        words.append("complete")
    elif now.remaining_s is not None:
        words.append(f"{_duration(now.remaining_s)} to go")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
