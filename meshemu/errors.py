"""The exceptions that meshemu raises, and the exit code that the command line gives each.

    MeshemuError
    ├── InputError          exit 2   the user's configuration, file or argument is wrong
    │   ├── PlanError                a plan does not fit the mesh, the batch or the model
    │   ├── CaptureError             a module cannot be captured as one graph
    │   │   └── DataDependentError   since its path depends on values
    │   ├── UnsupportedOpError       an operator has no sharding rule
    │   └── RecordError              a results file cannot be read or written
    ├── CheckError         exit 1   a comparison or a verification found a difference
    ├── ScheduleError      exit 3   a schedule or Program violates an invariant (a defect of ours)
    └── StoppedError       exit 75  a run was told to stop, and has: it can go on

Messages are one line and name the key, op, device or equation with its values.
"""

__all__ = [
    "CaptureError",
    "CheckError",
    "DataDependentError",
    "InputError",
    "MeshemuError",
    "PlanError",
    "RecordError",
    "ScheduleError",
    "StoppedError",
    "UnsupportedOpError",
]


class MeshemuError(Exception):
    """Base of all errors that meshemu raises on purpose."""

    exit_code = 3


class InputError(MeshemuError):
    """What the user gave cannot be used."""

    exit_code = 2


class PlanError(InputError):
    """A plan does not fit the mesh, the batch or the model."""


class CaptureError(InputError):
    """A module cannot be captured as one graph."""


class DataDependentError(CaptureError):
    """A module cannot be captured by shapes alone: its control flow or its shapes depend on values."""


class UnsupportedOpError(InputError):
    """An operator has no sharding rule for the layouts that reach it."""


class RecordError(InputError):
    """A results file cannot be read or written."""


class CheckError(MeshemuError):
    """A comparison or a verification found a difference."""

    exit_code = 1


class ScheduleError(MeshemuError):
    """A schedule or Program violates an invariant."""


class StoppedError(MeshemuError):
    """A run has ended between two steps since a signal asked for it; `--resume` goes on. The code is EX_TEMPFAIL."""

    exit_code = 75
