"""How the emulator itself scales over MPI ranks: wall time of the same run, launched with more and more ranks.

Not to be taken for the scaling of the emulated system, whose virtual times do not depend on ranks.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from meshemu.analysis.table import table
from meshemu.errors import CheckError, InputError
from meshemu.record.compare import compare
from meshemu.record.reader import open_run
from meshemu.study.output import csv_text, leave, new_figure

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["EmulatorRow", "EmulatorStudy", "emulator_scaling", "plot", "render", "save", "to_csv", "to_json"]


@dataclass(frozen=True)
class EmulatorRow:
    """One number of ranks: wall seconds of preparing the step, of the timing engine in it, and of all steps."""

    ranks: int
    prepare_s: float
    engine_s: float
    steps_s: float
    speedup: float
    efficiency: float


@dataclass(frozen=True)
class EmulatorStudy:
    """rows: by ranks; speed-ups are of the wall time of prepare_s + steps_s over the first row's."""

    title: str
    cores: int
    rows: tuple[EmulatorRow, ...]


def emulator_scaling(
    config: str | Path, ranks: Sequence[int], *, overrides: Sequence[str] = (), execute: bool = True
) -> EmulatorStudy:
    """Run the configuration on each number of ranks with mpirun, and compare wall times.

    Raises InputError where there is no mpirun or a run fails, CheckError where results depend on the ranks.
    """
    for count in ranks:
        if count < 1 or list(ranks).count(count) > 1:
            raise InputError(f"--ranks {count}: numbers of ranks are at least 1, each given once")
    walls: list[tuple[int, float, float, float]] = []
    with TemporaryDirectory(prefix="meshemu-") as place:
        files = [Path(place) / f"{count}.h5" for count in sorted(ranks)]
        for count, file in zip(sorted(ranks), files, strict=True):
            _launch(config, count, file, overrides, execute)
            told = open_run(file).run_attributes
            prepare, engine, steps = (float(told[f"{name}_wall_s"]) for name in ("prepare", "timing", "steps"))
            walls.append((count, prepare, engine, steps))
            difference = compare(files[0], file)
            if difference is not None:
                raise CheckError(f"results on {count} ranks are not those on {walls[0][0]}: {difference}")
    first = walls[0]
    rows = []
    for count, prepare, engine, steps in walls:
        speedup = (first[1] + first[3]) / (prepare + steps)
        rows.append(EmulatorRow(count, prepare, engine, steps, speedup, speedup * first[0] / count))
    return EmulatorStudy(str(config), len(os.sched_getaffinity(0)), tuple(rows))


def render(study: EmulatorStudy) -> str:
    """The rows as a table."""
    head = ["ranks", "prepare", "of it the engine", "steps", "speed-up", "efficiency"]
    cells = [
        [
            str(row.ranks), f"{row.prepare_s:.2f} s", f"{row.engine_s:.3f} s", f"{row.steps_s:.2f} s",
            f"{row.speedup:.2f}", f"{100 * row.efficiency:.0f} %",
        ]
        for row in study.rows
    ]  # fmt: skip
    about = f"{study.title}: the emulator itself over MPI ranks, wall time on {study.cores} cores; equal results"
    return f"{about}\n{table(head, cells, left=0)}"


def to_json(study: EmulatorStudy) -> str:
    """The study as JSON."""
    return json.dumps(asdict(study), indent=2)


def to_csv(study: EmulatorStudy) -> str:
    """One row for each number of ranks."""
    return csv_text([asdict(row) for row in study.rows])


def save(study: EmulatorStudy, into: Path) -> list[Path]:
    """emulator.txt, .json, .csv and .png in a folder. Raises InputError if they cannot be written."""
    texts = {"txt": render(study), "json": to_json(study), "csv": to_csv(study)}
    named = {f"emulator.{suffix}": text for suffix, text in texts.items()}
    return leave(into, named, {"emulator.png": plot(study)})


def plot(study: EmulatorStudy) -> "Figure":
    """Speed-up over ranks, beside the ideal."""
    figure = new_figure(5, 3.4)
    axes = figure.add_subplot()
    ranks = [row.ranks for row in study.rows]
    axes.plot(ranks, [count / ranks[0] for count in ranks], color="grey", label="ideal")
    axes.plot(ranks, [row.speedup for row in study.rows], "o-", label="measured")
    axes.set(xlabel="MPI ranks", ylabel="speed-up of wall time", title=f"the emulator itself, {study.cores} cores")
    axes.legend()
    return figure


def _launch(config: str | Path, ranks: int, file: Path, overrides: Sequence[str], execute: bool) -> None:
    beside = Path(sys.executable).with_name("mpirun")
    launcher = os.environ.get("MPIRUN") or (str(beside) if beside.exists() else which("mpirun"))
    if launcher is None:
        raise InputError("--emulator: there is no mpirun; name one in the environment variable MPIRUN")
    words = [launcher, "-n", str(ranks), sys.executable, "-m", "meshemu", "run", str(config), "-o", str(file)]
    words += [f"--set={override}" for override in overrides] + ([] if execute else ["--no-execute"])
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--emulator: {launcher} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise InputError(f"--emulator: with {ranks} ranks: {last.removeprefix('meshemu: error: ')}")
