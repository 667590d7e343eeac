"""`meshemu scale`: one step of a model on more and more devices, timed only; where its time goes, and by what law."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshemu.config import Config, load
from meshemu.emulator.running import system_of
from meshemu.errors import InputError
from meshemu.study.captures import timed_step
from meshemu.study.resizing import resized
from meshemu.study.scaling_law import Law, fit_law
from meshemu.study.where import Where, where_of_step

__all__ = ["MODES", "ScaleRow", "ScaleStudy", "scale"]

MODES = ("strong", "weak")
"""The global batch stays, or grows with the devices."""


@dataclass(frozen=True)
class ScaleRow:
    """One number of devices. speedup: samples per second over those of the first row that is timed; efficiency: that
    over how many times as many devices there are. Without times where it cannot be, and `fault` says why.
    """

    mode: str
    devices: int
    rows: int
    cols: int
    batch_size: int
    plan: str
    step_ps: int | None
    speedup: float | None
    efficiency: float | None
    where: Where | None
    fault: str


@dataclass(frozen=True)
class ScaleStudy:
    """rows: by mode, then devices; laws: by mode, None where too few points were timed."""

    title: str
    rows: tuple[ScaleRow, ...]
    laws: dict[str, Law | None]


def scale(
    config: str | Path, devices: Sequence[int], *, modes: Sequence[str] = MODES, overrides: Sequence[str] = ()
) -> ScaleStudy:
    """Time one step of the configured model on each number of `devices`; see `resizing.resized` for how it grows.

    Raises InputError for numbers that are not positive or occur twice, and where none of them can be timed.
    """
    for count in devices:
        if count < 1 or list(devices).count(count) > 1:
            raise InputError(f"--devices {count}: numbers of devices are at least 1, each given once")
    settings = load(config, overrides)
    rows: list[ScaleRow] = []
    for mode in modes:
        timed = [_timed(settings, mode, count) for count in sorted(devices)]
        rows += _compared(timed)
    if all(row.step_ps is None for row in rows):
        raise InputError(f"--devices: none can be timed; with {rows[0].devices}: {rows[0].fault}")
    return ScaleStudy(str(config), tuple(rows), {mode: _law(rows, mode) for mode in modes})


def _timed(settings: Config, mode: str, count: int) -> ScaleRow:
    """One row, without its speedup."""
    try:
        training = settings.training.model_copy(update={"steps": 1})
        config = resized(settings, system_of(settings), count, weak=mode == "weak")
        config = config.model_copy(update={"training": training})
        system = system_of(config)
        step = timed_step(config)
    except InputError as error:
        return ScaleRow(mode, count, 0, 0, 0, "", None, None, None, None, str(error))
    size, plan = config.data.batch_size, step.plan.describe()
    where = where_of_step(step.timed, config.timing.routing)
    return ScaleRow(mode, count, system.rows, system.cols, size, plan, where.total_ps, None, None, where, "")


def _compared(rows: Sequence[ScaleRow]) -> list[ScaleRow]:
    first = next((row for row in rows if row.step_ps), None)
    found = []
    for row in rows:
        if first is None or first.step_ps is None or not row.step_ps:
            found.append(row)
            continue
        speedup = first.step_ps / row.step_ps * row.batch_size / first.batch_size
        efficiency = speedup * first.devices / row.devices
        found.append(ScaleRow(**{**vars(row), "speedup": speedup, "efficiency": efficiency}))
    return found


def _law(rows: Sequence[ScaleRow], mode: str) -> Law | None:
    points = [(row.devices, row.step_ps) for row in rows if row.mode == mode and row.step_ps]
    return fit_law([n for n, _ in points], [ps for _, ps in points], weak=mode == "weak")
