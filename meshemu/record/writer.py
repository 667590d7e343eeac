"""Writes one run to one HDF5 file, step by step, so that it can be watched and survives a kill at any moment.

Everything is created before the first step. A step's columns are written and flushed, then its number is appended to
/results/steps/step and flushed: a reader that trusts that index sees whole steps only. Rank 0 alone writes.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.errors import RecordError
from meshemu.mesh.mesh import Mesh
from meshemu.program.ir import Program
from meshemu.record.layout import create_groups, put_row
from meshemu.record.program_io import program_arrays, program_tables
from meshemu.record.schema import (
    COMMIT_INDEX,
    CONVENTIONS,
    LOSS_NAMES,
    PROGRAM_TABLES,
    SCHEMA_VERSION,
    TITLE,
    columns_of,
)
from meshemu.record.step_record import StepRecord, TrainingRecord
from meshemu.version import __version__

if TYPE_CHECKING:  # the network package compiles kernels when imported; only its result types are needed here
    from meshemu.network.results import OpTimes, Timeline

__all__ = ["RunWriter"]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class RunWriter:
    """An open results file. Also a context manager: leaving it closes the file, complete only after `finish`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        system_json: str,
        mesh: Mesh,
        program: Program,
        config_text: str,
        n_steps: int,
        timeline_bins: int,
        overwrite: bool = False,
        assumptions: Sequence[str] = (),
        loss_names: Sequence[str] = (),
        n_parameter_groups: int = 1,
    ) -> None:
        """Create the file with everything that is known before the first step.

        system_json: `System.to_json()` of the system that `mesh` was made from. config_text: resolved configuration as
        TOML. n_steps: steps that will be recorded. timeline_bins: greatest number of bins that `write_timeline` gets.
        assumptions: named assumptions that the figures rest on. loss_names: of the loss's terms, if it has several.
        n_parameter_groups: how many learning rates a step has.

        Raises:
            RecordError: the path exists (without `overwrite`), is no results file, is in use, or cannot be written.
        """
        self.path = Path(path)
        self._n_devices, self._n_links, self._n_ops = mesh.n_devices, mesh.n_links, program.n_ops
        self._timeline_bins = timeline_bins
        self._loss_names, self._n_parameter_groups = tuple(loss_names), n_parameter_groups
        with _writing(self.path):
            _make_way(self.path, overwrite)
            self._file = h5py.File(self.path, "w", locking="best-effort")
            try:
                self._write_head(system_json, config_text, n_steps)
                self._write_layout(mesh, program, n_steps, assumptions)
                self._write_system(mesh)
                self._write_columns("/program/ops", program_arrays(program))
                self._write_columns("/program/messages", program_arrays(program))
                self._write_columns("/program/dependencies", program_arrays(program))
                self._file.flush()
            except BaseException:
                _abandon(self._file)
                raise

    def append_step(self, record: StepRecord) -> None:
        """Write the next step and commit it.

        Raises:
            RecordError: an array has the wrong length, a loss has a name that the file was not made for, or the file
                cannot be written.
        """
        self._check_length("links", len(record.links.bytes), self._n_links)
        self._check_length("device_compute_ps", len(record.device_compute_ps), self._n_devices)
        self._check_length("device_idle_ps", len(record.device_idle_ps), self._n_devices)
        figures = {**vars(record), **self._training_values(record.training)}
        with _writing(self.path):
            step = self._file[COMMIT_INDEX].shape[0]
            values: dict[str, object] = {
                **{column.path: figures[column.name] for column in columns_of("/results/steps")},
                **{column.path: getattr(record.links, column.name) for column in columns_of("/results/links")},
                "/results/devices/compute_ps": record.device_compute_ps,
                "/results/devices/idle_ps": record.device_idle_ps,
                "/run/wall_s": record.wall_s,
                **{f"{group}/step": step for group in ("/results/links", "/results/devices", "/run")},
            }
            for path, value in values.items():
                put_row(self._file[path], step, value)
            # Two flushes, since within one the order of writes is HDF5's: data first, then the index that commits it.
            self._file.flush()
            put_row(self._file[COMMIT_INDEX], step, step)
            self._file.flush()

    def write_ops(self, ops: "OpTimes", step: int = 0) -> None:
        """Record start and end of every op in `step`."""
        self._check_length("ops", len(ops.start_ps), self._n_ops)
        with _writing(self.path):
            index = self._file["/results/ops/recorded_step"]
            row = index.shape[0]
            put_row(self._file["/results/ops/start_ps"], row, ops.start_ps)
            put_row(self._file["/results/ops/end_ps"], row, ops.end_ps)
            self._file.flush()
            put_row(index, row, step)
            self._file.flush()

    def write_timeline(self, timeline: "Timeline") -> None:
        """Record link activity over the first recorded step (once)."""
        n_bins = len(timeline.link_busy_ps)
        if n_bins > self._timeline_bins:
            raise RecordError(f"{self.path}: a timeline of {n_bins} bins in a file made for {self._timeline_bins}")
        with _writing(self.path):
            group = self._file["/results/timeline"]
            for name, values in (
                ("bin_start_ps", np.arange(n_bins, dtype=np.int64) * timeline.bin_ps),
                ("link_busy_ps", timeline.link_busy_ps),
                ("bin", np.arange(n_bins)),
            ):
                group[name].resize(n_bins, axis=0)
                group[name][...] = values
            self._file.flush()

    def write_peak_memory(self, peak_memory_bytes: NDArray[np.int64]) -> None:
        """Record the most memory that each device needs, int64[n_devices]."""
        self._check_length("peak_memory_bytes", len(peak_memory_bytes), self._n_devices)
        with _writing(self.path):
            self._file["/results/devices/peak_memory_bytes"][...] = peak_memory_bytes
            self._file.flush()

    def finish(self, run: Mapping[str, int | float | str]) -> None:
        """Note how the run was computed (ranks, hosts, versions, engine counters), mark it complete and close."""
        with _writing(self.path):
            for key, value in run.items():
                self._file["/run"].attrs[key] = value
            self._file.flush()
            self._file.attrs["complete"] = np.int8(1)
            self._file.close()

    def close(self) -> None:
        """Close the file as it is. Without `finish` before, it stays marked incomplete."""
        with _writing(self.path):
            if self._file:
                self._file.close()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; an error on the way out must not hide the one that ended the block."""
        if kind is None:
            self.close()
        else:
            _abandon(self._file)

    def _write_head(self, system_json: str, config_text: str, n_steps: int) -> None:
        attributes = self._file.attrs
        attributes["Conventions"] = CONVENTIONS
        attributes["title"] = TITLE
        attributes["meshemu_version"] = __version__
        attributes["schema_version"] = np.int32(SCHEMA_VERSION)
        attributes["created_utc"] = datetime.now(UTC).isoformat(timespec="seconds")
        attributes["n_steps_planned"] = np.int64(n_steps)
        attributes["config"] = config_text
        attributes["complete"] = np.int8(0)
        self._file.require_group("/system").attrs["system_json"] = system_json

    def _write_layout(self, mesh: Mesh, program: Program, n_steps: int, assumptions: Sequence[str]) -> None:
        sizes = {
            "device": mesh.n_devices,
            "link": mesh.n_links,
            "op": program.n_ops,
            "op_bound": len(program.dep_ptr),
            "message": program.n_messages,
            "dependency": len(program.dep),
            "step": n_steps,
            "assumption": len(assumptions),
            "loss_name": len(self._loss_names),
            "parameter_group": self._n_parameter_groups,
        }
        flags = {
            "@link_class": mesh.class_names,
            "@op_class": program.op_classes,
            "@number_format": program.number_formats,
        }
        text: dict[str, str | Sequence[str]] = {
            PROGRAM_TABLES: program_tables(program),
            "/results/notes/assumptions": assumptions,
            LOSS_NAMES: self._loss_names,
        }
        create_groups(self._file, sizes, flags, text)

    def _write_system(self, mesh: Mesh) -> None:
        devices: dict[str, NDArray[Any]] = {
            "id": np.arange(mesh.n_devices),
            "row": mesh.row,
            "col": mesh.col,
            "tile_row": mesh.tile_row,
            "tile_col": mesh.tile_col,
            "alive": mesh.alive,
        }
        links: dict[str, NDArray[Any]] = {
            "id": np.arange(mesh.n_links),
            "src": mesh.link_src,
            "dst": mesh.link_dst,
            "class": mesh.link_class,
            "bandwidth_bytes_per_s": mesh.bandwidth_bytes_per_s,
            "latency_ps": mesh.latency_ps,
        }
        self._write_columns("/system/devices", devices)
        self._write_columns("/system/links", links)

    def _write_columns(self, group: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        for column in columns_of(group):
            self._file[column.path][...] = arrays[column.name]

    def _training_values(self, record: TrainingRecord) -> dict[str, Any]:
        """What the maths gave, with one row of numbers where the file has several columns."""
        rates = record.learning_rate or (float("nan"),) * self._n_parameter_groups
        self._check_length("learning_rate", len(rates), self._n_parameter_groups)
        return vars(record) | {
            "learning_rate": rates,
            "loss_by_name": self._in_order(record.loss_by_name),
            "held_out_loss_by_name": self._in_order(record.held_out_loss_by_name),
        }

    def _in_order(self, losses: Mapping[str, float]) -> list[float]:
        for name in losses:
            if name not in self._loss_names:
                known = ", ".join(self._loss_names) or "none"
                raise RecordError(f"{self.path}: there is no column for the loss {name!r}; there are {known}")
        return [losses.get(name, float("nan")) for name in self._loss_names]

    def _check_length(self, what: str, length: int, expected: int) -> None:
        if length != expected:
            raise RecordError(f"{self.path}: {what} has {length} entries where the file holds {expected}")


def _make_way(path: Path, overwrite: bool) -> None:
    """Refuse a path that must not be replaced; with `overwrite`, remove the results file that is there."""
    if not path.parent.is_dir():
        raise RecordError(f"cannot write {path}: directory {path.parent} does not exist")
    if path.is_dir():
        raise RecordError(f"cannot write {path}: it is a directory")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise RecordError(f"cannot write {path}: it exists already (use --overwrite or another path)")
    with path.open("rb") as file:
        head = file.read(len(_HDF5_SIGNATURE))
        # A run that was killed at once leaves an empty file, or one whose head is still unwritten.
        if head.strip(b"\0") and head != _HDF5_SIGNATURE:
            raise RecordError(f"cannot overwrite {path}: it is not a results file")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordError(f"cannot overwrite {path}: another process is using it") from None
        except OSError:
            pass  # a file system without locks
        path.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system or HDF5 raises into one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else _one_line(error)
        raise RecordError(f"cannot write {path}: {reason}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _abandon(file: h5py.File) -> None:
    """Close after a failure; what HDF5 says about the same failure again is of no use."""
    with suppress(OSError, RuntimeError, ValueError):
        file.close()

