"""Results files: one HDF5 file per run, its layout, writer, reader and comparison."""

from meshemu.record.compare import Difference, compare
from meshemu.record.head import Head
from meshemu.record.reader import Run, open_run
from meshemu.record.step_record import MessageRecord, StepRecord, TrainingRecord
from meshemu.record.writer import RunWriter

__all__ = [
    "Difference",
    "Head",
    "MessageRecord",
    "Run",
    "RunWriter",
    "StepRecord",
    "TrainingRecord",
    "compare",
    "open_run",
]
