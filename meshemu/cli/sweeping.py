"""The subcommand sweep: many runs from one study file, here or under Slurm."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meshemu.cli.commands import Commands, add_jobs, comm_of
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

if TYPE_CHECKING:
    from meshemu.study.study_file import Study

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add sweep."""
    about = "do the runs of a study file that are not done yet, and make one table; exit code 1 if any failed"
    sweep = commands.add("sweep", _sweep, about, parallel=True)
    sweep.add_argument("study", type=Path, metavar="STUDY.toml")
    sweep.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where its files go (default: STUDY)")
    add_jobs(sweep)
    sweep.add_argument("--slurm", action="store_true", help="submit the runs as a Slurm array")
    sweep.add_argument("--dry-run", action="store_true", help="only print what would be done")
    alone = sweep.add_mutually_exclusive_group()
    alone.add_argument("--part", type=int, metavar="N", help="do only this part of the sweep (what an array task does)")
    alone.add_argument("--collect", action="store_true", help="only make the table of what is done")


def _sweep(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.study.study_file import load_study

    study = load_study(arguments.study)
    into = arguments.output or Path(arguments.study.stem)
    if arguments.part is not None:
        return _part(study, into, arguments.part, launch)
    if launch.size > 1:
        raise InputError("sweep runs on one rank and starts its own processes (--jobs); only --part runs under mpirun")
    if arguments.slurm or arguments.dry_run:
        return _plan(study, into, arguments)
    from meshemu.study.pool import jobs_of
    from meshemu.study.sweep import sweep

    if not arguments.collect:
        sweep(study, into, jobs=jobs_of(arguments.jobs), told=lambda line: print(f"meshemu: {line}", file=sys.stderr))
    return _collect(study, into)


def _collect(study: "Study", into: Path) -> int:
    from meshemu.study import sweep_table
    from meshemu.study.output import folder

    folder(into)
    found = sweep_table.sweep_table(study, into)
    print(sweep_table.render(study, found))
    for path in sweep_table.save(found, into):
        print(f"written: {path}", file=sys.stderr)
    return 1 if (found["status"] == "failed").any() else 0


def _part(study: "Study", into: Path, number: int, launch: Launch) -> int:
    from meshemu.study.output import folder
    from meshemu.study.sweep import RUNS, run_unit, units

    parts = units(study)
    if not 0 <= number < len(parts):
        raise InputError(f"--part {number}: the sweep has parts 0 to {len(parts) - 1}")
    folder(into / RUNS)
    faults = run_unit(into, parts[number], comm_of(launch))
    for fault in faults if launch.rank == 0 else ():
        print(f"meshemu: failed: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _plan(study: "Study", into: Path, arguments: argparse.Namespace) -> int:
    """What --slurm submits, or with --dry-run only what would be done."""
    from meshemu.study.slurm import scripts, submit
    from meshemu.study.sweep import units

    parts = units(study)
    if not arguments.slurm:
        for number, unit in enumerate(parts):
            for task in unit.tasks:
                how = "times the Program of the part's first run" if task.retimes else "runs"
                print(f"part {number}: {how}: {study.runs[task.number].values} -> {into}/runs/{task.name}.h5")
        return 0
    found = scripts(study, into, len(parts), jobs=arguments.jobs)
    if arguments.dry_run:
        print(f"# sweep.sbatch\n{found.array}\n# collect.sbatch, when that has ended\n{found.collect}", end="")
    else:
        print(f"submitted: job {submit(found, into)}, {len(parts)} tasks; table in {into}/results.csv when they ended")
    return 0
