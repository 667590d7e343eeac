"""Results files: one HDF5 file per run, its layout, writer, reader and comparison."""

from meshemu.record.compare import Difference, compare
from meshemu.record.reader import Run, open_run
from meshemu.record.step_record import StepRecord, TrainingRecord
from meshemu.record.writer import RunWriter

__all__ = ["Difference", "Run", "RunWriter", "StepRecord", "TrainingRecord", "compare", "open_run"]
