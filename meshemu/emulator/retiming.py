"""`meshemu retime`: time a stored run again on changed hardware, without torch and without the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshemu.comm import Comm
from meshemu.emulator.changes import Setting, changed_setting
from meshemu.emulator.recording import CAPTURED, REMARKS, Layout, Recorder
from meshemu.emulator.timed_step import TimedStep, time_step
from meshemu.record.reader import Run, open_run
from meshemu.record.step_record import TrainingRecord
from meshemu.runtime.mpi import as_comm

__all__ = ["retime", "retime_in", "time_stored"]


def retime(
    path: str | Path, overrides: Sequence[str], output: str | Path, *, overwrite: bool = False, comm: Any = None
) -> TimedStep:
    """Time the Program stored in `path` on its system with `overrides` applied, and write the result to `output`.

    overrides: "system.KEY=VALUE" and "network.KEY=VALUE" as in a configuration, or "timing.packet_bytes=...",
    "timing.routing=...", "timing.timeline_bins=...". Losses are carried over from the stored run; of steps that have
    Programs of their own, that is the first one, whose Program is stored. Raises InputError for an unknown key or a
    system of another shape.
    """
    stored = open_run(path)
    return retime_in(stored, changed_setting(stored, overrides), output, overwrite=overwrite, comm=comm)


def retime_in(
    stored: Run, setting: Setting, output: str | Path, *, overwrite: bool = False, comm: Any = None
) -> TimedStep:
    """Time the Program of a stored run in a setting, and write the result to `output`, as `retime` does."""
    ranks = as_comm(comm)
    timed = time_stored(stored, setting, ranks)
    records = _records(stored)
    layout = Layout(
        config_text=setting.config_text,
        n_steps=len(records),
        remarks=[text for text in stored.assumptions if text.startswith(REMARKS)],
        loss_names=stored.loss_names,
        n_parameter_groups=stored.n_parameter_groups,
        order=setting.options.routing,
    )
    recorder = Recorder.open(output, timed, ranks, layout, overwrite=overwrite)
    try:
        for step, record in enumerate(records):
            recorder.step(step, record, wall_s=0.0)
    except BaseException:
        recorder.abandon()
        raise
    recorder.finish({})
    return timed


def time_stored(stored: Run, setting: Setting, comm: Comm) -> TimedStep:
    """Time the Program of a stored run in a setting."""
    memory = stored.column("/results/devices/peak_memory_bytes")
    return time_step(stored.program(), setting.system, memory, setting.options, comm, stored.memory_use())


def _records(stored: Run) -> list[TrainingRecord]:
    """What the maths gave, which does not depend on the machine's speed, of the steps whose Program is stored."""
    records = list(stored.training())
    if any(text.startswith(CAPTURED) for text in stored.assumptions):
        records = records[:1]
    return records or [TrainingRecord()]
