"""Results files: one HDF5 file per run, its layout, writer, reader and comparison."""

from meshemu.record.compare import Difference, compare
from meshemu.record.reader import Run, open_run
from meshemu.record.writer import RunWriter, StepRecord

__all__ = ["Difference", "Run", "RunWriter", "StepRecord", "compare", "open_run"]
