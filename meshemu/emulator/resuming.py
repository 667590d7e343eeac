"""Where a run goes on: what its file holds, which checkpoint fits, and whether it is the same run at all.

Steps that are in the file and after the checkpoint are run again, and what they give is compared with what is there:
nothing that was committed is ever taken back, and a machine that computes differently is noticed.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshemu.comm import Comm
from meshemu.config import Config, difference, identity, parse
from meshemu.emulator.root import on_root
from meshemu.errors import InputError, RecordError
from meshemu.execute.schedule import length_of
from meshemu.execute.state import read_state
from meshemu.execute.training import digest_of
from meshemu.record.atomic import one_line
from meshemu.record.checkpoint_files import CheckpointFolder
from meshemu.record.claim import check_free
from meshemu.record.reader import Run, open_run
from meshemu.record.step_record import TrainingRecord

__all__ = ["Start", "find_start", "identity_of"]

_PIECE_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run starts. n_recorded: steps in its file, None if there is none to be continued; records: what their
    maths gave. first_step: the first that is run. checkpoint: the content of the file `name`, on every rank; b"" for
    none. remarks: what to say about it. done: there is nothing to do.
    """

    n_recorded: int | None = None
    records: list[TrainingRecord] = field(default_factory=list)
    first_step: int = 0
    checkpoint: bytes = b""
    name: str = ""
    remarks: tuple[str, ...] = ()
    done: bool = False

    def state(self) -> dict[str, Any]:
        """The state of the checkpoint."""
        return read_state(io.BytesIO(self.checkpoint), self.name)


def identity_of(settings: Config, *, contents: bool = True) -> dict[str, str]:
    """As `config.identity`, with the length of a schedule, which follows the number of steps unless it is given."""
    found = identity(settings, contents=contents)
    schedule = settings.training.schedule
    if schedule is not None:
        length = length_of(schedule.model_dump(), settings.training.steps)
        found |= {f"training.schedule.{key}": repr(value) for key, value in length.items()}
    return found


def find_start(
    path: Path, folder: CheckpointFolder, settings: Config, comm: Comm, *, resume: bool, execute: bool
) -> Start:
    """Where a run with the results file `path` starts; the same on every rank, of which the first looks.

    Raises:
        RecordError: there is a file, or checkpoints, of a run that is not to be continued, or they cannot be read.
        InputError: the run in the file is another one.
    """

    def find() -> Start:
        if resume and path.exists():
            return _of_file(path, folder, settings, execute)
        check_free(path, overwrite=settings.output.overwrite)
        if folder.steps():
            if not settings.output.overwrite:
                raise RecordError(_stranded(path, folder, resume=resume))
            folder.clear()
        return Start(remarks=(f"there is no {path}: starting from scratch",) if resume else ())

    start: Start | None = on_root(comm, find)
    return _shared(start, comm)


def _shared(start: Start | None, comm: Comm) -> Start:
    """What rank 0 found, on every rank; a checkpoint in pieces that a message can carry."""
    content = b"" if start is None else start.checkpoint
    others = None if start is None else {**vars(start), "checkpoint": b""}
    others, size_bytes = comm.broadcast((others, len(content)))
    pieces = [comm.broadcast(content[at : at + _PIECE_BYTES]) for at in range(0, size_bytes, _PIECE_BYTES)]
    return Start(**{**others, "checkpoint": b"".join(pieces)})


def _stranded(path: Path, folder: CheckpointFolder, *, resume: bool) -> str:
    last = folder.file(folder.steps()[-1])
    if resume:
        return f"cannot resume {path}: it is not there, but {last} is (--overwrite starts from scratch and removes it)"
    return f"cannot write {path}: {last} is of an earlier run (use --overwrite, --resume or another path)"


def _of_file(path: Path, folder: CheckpointFolder, settings: Config, execute: bool) -> Start:
    stored = open_run(path)
    n_steps, n_recorded = settings.training.steps, stored.n_steps
    _check_same(stored, settings)
    records = stored.training()
    if records and execute != bool(records[-1].parameters_sha256):
        how = "executed: leave --no-execute out" if not execute else "only timed: give --no-execute"
        raise InputError(f"cannot resume {path}: its steps were {how}")
    if n_recorded > n_steps or (n_recorded == n_steps and stored.complete):
        said = f"{path} holds {n_recorded} steps, {n_steps} are asked for: nothing to do"
        return Start(n_recorded, records[:n_steps], n_steps, remarks=(said,), done=True)
    holds = f"{path} holds {n_recorded} of {n_steps} steps"
    if not execute:
        return Start(n_recorded, records, n_recorded, remarks=(f"{holds}, and goes on",))
    remarks: list[str] = []
    for step in reversed(folder.steps()):
        content, fault = _checkpoint(folder.file(step), step, records, identity_of(settings))
        if not fault:
            again = f"; steps {step} to {n_recorded - 1} are run again and compared" if step < n_recorded else ""
            remarks.append(f"{holds}; it goes on after step {step - 1} from {folder.file(step)}{again}")
            return Start(n_recorded, records, step, content, str(folder.file(step)), tuple(remarks))
        remarks.append(f"{folder.file(step)} is left aside: {fault}")
    again = "; what is there is run again and compared" if n_recorded else ""
    remarks.append(f"{holds}, and there is no checkpoint to go on from: starting from scratch{again}")
    return Start(n_recorded, records, remarks=tuple(remarks))


def _check_same(stored: Run, settings: Config) -> None:
    """Raise InputError unless the configuration in a file is that of `settings`."""
    try:
        before = parse(stored.config, origin=f"the config in {stored.path}", directory=Path())
    except InputError as error:
        raise InputError(f"cannot resume {stored.path}: {error}") from None
    different = difference(identity_of(before, contents=False), identity_of(settings, contents=False))
    if different:
        raise InputError(f"cannot resume {stored.path}: {different}")


def _checkpoint(
    file: Path, step: int, records: list[TrainingRecord], now: Mapping[str, str]
) -> tuple[bytes, str]:
    """(content, "") of a checkpoint that fits the steps in the file, or (b"", why it does not).

    Raises:
        InputError: the run that it is of is another one.
    """
    try:
        content = file.read_bytes()
        state = read_state(io.BytesIO(content), str(file))
    except OSError as error:
        return b"", one_line(error)
    except InputError:
        return b"", "it is damaged"
    expected = {"model": Mapping, "identity": Mapping, "step": int, "seed": int}
    if any(not isinstance(state.get(key), kind) for key, kind in expected.items()) or state["step"] != step:
        return b"", "it is no checkpoint of this step"
    if different := difference(state["identity"], now):
        raise InputError(f"cannot resume from {file}: {different}")
    if step > len(records):
        return b"", f"only {len(records)} steps are recorded"
    if digest_of(state["model"]) != records[step - 1].parameters_sha256:
        return b"", f"its parameters are not those that were recorded after step {step - 1}"
    return content, ""
