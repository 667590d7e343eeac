"""A sweep as a Slurm array: one task per part of the sweep, then a job that makes the table."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from meshemu.errors import InputError
from meshemu.study.output import folder, write_text
from meshemu.study.study_file import Study

__all__ = ["Scripts", "scripts", "submit"]


@dataclass(frozen=True)
class Scripts:
    """Two batch scripts; the second is to run when the first has ended, whatever its tasks did."""

    array: str
    collect: str


def scripts(study: Study, into: Path, n_parts: int, *, jobs: int | None = None) -> Scripts:
    """The batch scripts of a sweep of `n_parts` parts (`sweep.units`); jobs: how many run at once, None: no limit."""
    limit = "" if jobs is None else f"%{jobs}"
    name = study.path.stem
    command = [sys.executable, "-m", "meshemu", "sweep", str(study.path.resolve()), "-o", str(into.resolve())]
    ranks = study.slurm.ntasks
    task = f"srun {shlex.join(command)}" if ranks > 1 else shlex.join(command)
    logs = into.resolve()
    array = _script(
        study,
        {"job-name": name, "array": f"0-{n_parts - 1}{limit}", "ntasks": ranks, "output": f"{logs}/%x-%a.log"},
        f'{task} --part "$SLURM_ARRAY_TASK_ID"',
    )
    collect = _script(
        study,
        {"job-name": f"{name}-table", "ntasks": 1, "output": f"{logs}/%x.log"},
        f"{shlex.join(command)} --collect",
    )
    return Scripts(array, collect)


def submit(found: Scripts, into: Path) -> str:
    """Write both scripts to the folder of the sweep and submit them; returns the number of the array job.

    Raises InputError where sbatch is missing or refuses.
    """
    folder(into)
    array, collect = into / "sweep.sbatch", into / "collect.sbatch"
    write_text(array, found.array.rstrip("\n"))
    write_text(collect, found.collect.rstrip("\n"))
    job = _sbatch([str(array)])
    _sbatch([f"--dependency=afterany:{job}", str(collect)])
    return job


def _script(study: Study, fixed: dict[str, str | int], command: str) -> str:
    options = [f"#SBATCH --{key}={value}" for key, value in (study.slurm.options | fixed).items()]
    threads = 'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"'
    return "\n".join(["#!/bin/bash", *options, "", "set -e", threads, *study.slurm.setup, command, ""])


def _sbatch(words: list[str]) -> str:
    try:
        done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise InputError("--slurm: there is no sbatch here; --slurm --dry-run prints the scripts") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"--slurm: sbatch refuses: {' '.join(error.stderr.split())}") from None
    return done.stdout.strip().partition(";")[0]
