"""`meshemu sweep`: the runs of a study file, those that are not done yet, shared by processes.

Runs fall into units that are independent of each other: runs of one Program, of which the first is built and the others
time that Program again. A process keeps the captured steps of the models that it has met.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meshemu.config import Config, to_toml
from meshemu.emulator.changes import Setting
from meshemu.emulator.retiming import retime_in
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.errors import InputError, MeshemuError, RecordError
from meshemu.record.reader import open_run
from meshemu.study.captures import captures_of
from meshemu.study.output import folder, write_text
from meshemu.study.pool import map_jobs
from meshemu.study.run_key import model_key, program_key, run_key
from meshemu.study.study_file import Study

__all__ = ["Task", "Unit", "files_of", "run_unit", "sweep", "units"]

RUNS = "runs"
FAILED = ".failed.txt"


@dataclass(frozen=True)
class Task:
    """One run of a sweep. name: of its files, without a suffix; retimes: whether it times its unit's first Program."""

    number: int
    name: str
    config: Config
    retimes: bool


@dataclass(frozen=True)
class Unit:
    """Runs that go one after the other. model: `model_key` of all of them."""

    tasks: tuple[Task, ...]
    model: str
    execute: bool


def units(study: Study) -> list[Unit]:
    """The runs of a study in units, those of one model beside each other; a run that occurs twice is done once."""
    groups: dict[str, list[Task]] = {}
    seen: set[str] = set()
    for number, run in enumerate(study.runs):
        key = run_key(run.config, execute=study.execute)
        program = program_key(run.config, execute=study.execute, keep_program=study.keep_program)
        group = groups.setdefault(program or key, [])
        name = key[:16] if not group or not study.keep_program else f"{key[:16]}-{group[0].name[:8]}"
        if name not in seen:
            group.append(Task(number, name, run.config, retimes=bool(group)))
            seen.add(name)
    found = [Unit(tuple(group), model_key(group[0].config), study.execute) for group in groups.values() if group]
    return sorted(found, key=lambda unit: unit.model)


def sweep(study: Study, into: Path, *, jobs: int, told: Callable[[str], None] = lambda _line: None) -> None:
    """Do what is not done yet of a study, with its files in the folder `into`; failures are noted there.

    told: is given a line for each unit that ends. Raises InputError where the folder cannot be written.
    """
    folder(into / RUNS)
    undone = [unit for unit in units(study) if not all(_done(into, task) for task in unit.tasks)]
    for number, faults in enumerate(map_jobs(partial(run_unit, into), undone, jobs), start=1):
        failed = "".join(f"; failed: {fault}" for fault in faults)
        told(f"{number} of {len(undone)} parts of the sweep done{failed}")


def files_of(study: Study, into: Path) -> Iterator[tuple[int, Path, str, bool]]:
    """(number, results file, why the run failed or "", whether its Program was taken over) of every run, in order."""
    by_key = {task.name[:16]: task for unit in units(study) for task in unit.tasks}
    for number, run in enumerate(study.runs):
        task = by_key[run_key(run.config, execute=study.execute)[:16]]
        fault = "" if _done(into, task) else "not done yet"
        noted = _path(into, task).with_suffix(FAILED)
        if fault and noted.exists():
            fault = noted.read_text(encoding="utf-8").strip()
        yield number, _path(into, task), fault, task.retimes


def run_unit(into: Path, unit: Unit, comm: Any = None) -> list[str]:
    """Do what is not done yet of a unit; returns the messages of the runs that failed, which are also noted.

    A run fails by a MeshemuError or a fault in the user's model; whatever it is, the next goes on.
    """
    rank = 0 if comm is None else comm.rank
    faults = []
    for task in unit.tasks:
        if _done(into, task):
            continue
        noted = _path(into, task).with_suffix(FAILED)
        try:
            _do(into, unit, task, comm)
        except MeshemuError as error:
            faults.append(str(error))
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            if rank == 0:
                noted.unlink(missing_ok=True)
            continue
        if rank == 0:
            write_text(noted, faults[-1])
    return faults


def _do(into: Path, unit: Unit, task: Task, comm: Any) -> None:
    from meshemu.emulator.running import run  # loads torch, which a process that only makes a table does not need

    path, first = _path(into, task), unit.tasks[0]
    if comm is None or comm.rank == 0:
        path.unlink(missing_ok=True)  # what a killed run left behind
    output = task.config.output.model_copy(update={"overwrite": True})
    config = task.config.model_copy(update={"output": output})
    if not task.retimes:
        run(config, path, execute=unit.execute, comm=comm, capture=captures_of(unit.model))
    elif _done(into, first):
        retime_in(open_run(_path(into, first)), _setting(config), path, overwrite=True, comm=comm)
    else:
        raise InputError(f"its Program is that of run {first.number}, which failed")


def _setting(config: Config) -> Setting:
    """The setting of a run that times a stored Program."""
    from meshemu.emulator.running import system_of

    options = timing_options(TimingOptions(**config.timing.model_dump()), config.network.router)
    return Setting(system_of(config), options, to_toml(config))


def _path(into: Path, task: Task) -> Path:
    return into / RUNS / f"{task.name}.h5"


def _done(into: Path, task: Task) -> bool:
    path = _path(into, task)
    if not path.exists():
        return False
    try:
        return open_run(path).complete
    except RecordError:  # what a killed run left behind
        return False
