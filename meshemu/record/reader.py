"""Reads a results file: its committed steps, links, devices and ops as pandas tables or xarray datasets.

A `Run` is a value: what was committed when the file was opened. It holds no open file, so a run in progress can be
opened again at any time to see more.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.cost.memory_use import MemoryUse
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.program.ir import Program
from meshemu.record import tables
from meshemu.record.access import identify, read_file
from meshemu.record.columns import Columns, check_paths, decoded
from meshemu.record.layout import annotations, names_of_values
from meshemu.record.memory_columns import LABELS, MEMORY_PATHS, memory_from_columns
from meshemu.record.program_io import program_from_parts
from meshemu.record.schema import COLUMNS, COMMIT_INDEX, PROGRAM_TABLES, columns_of
from meshemu.record.step_record import TrainingRecord
from meshemu.record.stored import StoredDataset

if TYPE_CHECKING:  # heavy, and needed only by whoever asks for tables
    import pandas as pd
    import xarray as xr

__all__ = ["Run", "open_run"]

DIGESTS = "/results/steps/parameters_sha256"
_T = TypeVar("_T")


def open_run(path: str | os.PathLike[str]) -> "Run":
    """The run in the file at `path`, finished or not.

    Raises:
        RecordError: the file is missing, no results file, of a newer schema, or damaged.
    """

    def head(file: h5py.File) -> Run:
        attributes, of_run = identify(Path(path), file)
        return Run(
            path=Path(path),
            config=str(attributes["config"]),
            system_json=str(attributes["system_json"]),
            complete=bool(attributes["complete"]),
            n_steps=StoredDataset(file, COMMIT_INDEX).shape[0],
            n_steps_planned=int(attributes["n_steps_planned"]),
            schema_version=int(attributes["schema_version"]),
            meshemu_version=str(attributes["meshemu_version"]),
            created_utc=str(attributes["created_utc"]),
            run_attributes={key: _plain(value) for key, value in of_run.items()},
        )

    return read_file(Path(path), head)


@dataclass(frozen=True)
class Run:
    """One run. n_steps: committed steps; complete: whether it ended in order; config: TOML text. schema_version: of its
    layout.

    run_attributes: how it was computed (ranks, hosts, versions, engine counters).
    """

    path: Path
    config: str
    system_json: str = field(repr=False)
    complete: bool
    n_steps: int
    n_steps_planned: int
    schema_version: int
    meshemu_version: str
    created_utc: str
    run_attributes: dict[str, int | float | str]
    _known: dict[Callable[["Run"], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def steps(self) -> "pd.DataFrame":
        """One row per committed step: loss, accuracy, parameters_sha256, time_ps, compute_ps, ..., wall_s.

        Terms of a loss follow as loss_<name> and held_out_loss_<name>; learning_rate becomes learning_rate_0,
        learning_rate_1, ... where there are several parameter groups.
        """
        return tables.steps_table(self)

    @cached_property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss; none where it is one number."""
        return self.reading(Columns.loss_names)

    @cached_property
    def n_parameter_groups(self) -> int:
        """How many learning rates a step has; 1 where nothing is updated."""
        return int(self.column("/results/steps/learning_rate").shape[1])

    def training(self) -> list[TrainingRecord]:
        """What the maths of every committed step gave, as it was recorded."""
        values = self.columns(entry.path for entry in columns_of("/results/steps"))
        figures = {path.rpartition("/")[2]: column for path, column in values.items()}
        digests = self.texts(DIGESTS)
        rows = ({name: values[step] for name, values in figures.items()} for step in range(self.n_steps))
        return [self._training_of(row, digest) for row, digest in zip(rows, digests, strict=True)]

    def links(self, step: int | None = None, column: str | Sequence[str] | None = None) -> "pd.DataFrame":
        """What links carried: name (place in words), src, dst, class, bandwidth, latency, then the figures.

        step: one step (negative: from the end), indexed by link; None: all steps, indexed by (step, link).
        column: only these of bytes, busy_ps, wait_ps, packets, max_queue, utilisation (busy_ps / time_ps).
        """
        return tables.links_table(self, step, column)

    @cached_property
    def link_places(self) -> dict[str, Any]:
        """What a table of links says of where and of which class each link is, by column."""
        return tables.link_places(self)

    def link_utilisation(self, step: int = -1) -> NDArray[np.float64]:
        """busy_ps / time_ps of every link in a step (negative: from the end), float64[n_links]."""
        return np.asarray(self.utilisation(self.steps_at(step))[0])

    def devices(self, step: int | None = None) -> "pd.DataFrame":
        """What devices did: place in words, row, col, tile_row, tile_col, alive, memory, compute_ps, idle_ps.

        step: one step (negative: from the end), indexed by device; None: all steps, indexed by (step, device).
        """
        return tables.devices_table(self, step)

    def ops(self, step: int | None = None) -> "pd.DataFrame":
        """One row per op: kind, device, label, op_class, number_format, work, message, collective, start_ps, end_ps.

        step: the recorded step that times are taken from (None: the first). Without recorded times, and with step None,
        the table has no start_ps and end_ps.
        """
        return tables.ops_table(self, step)

    def messages(self, step: int | None = None) -> "pd.DataFrame":
        """One row per message: src, dst, size_bytes, send_op, recv_op, label, collective (-1: none).

        With recorded times (step: as for `ops`) also sent_ps, when its SEND was ready, and received_ps, when its RECV
        had ended; where messages of the step were recorded ([output] messages), depart_ps, arrival_ps and hops.
        """
        return tables.messages_table(self, step)

    def op_times(self, step: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """start_ps, end_ps: int64[n_ops] of a recorded step (None: the first).

        Raises:
            RecordError: the times of that step are not recorded.
        """
        if step in (None, *self.recorded_steps[:1]) and self.recorded_steps:
            return self._first_op_times
        return self._op_times_of(step)

    def once(self, function: Callable[["Run"], _T]) -> _T:
        """`function` of this run, computed at the first call only: what several tables are made from. Not to be changed
        by who gets it.
        """
        if function not in self._known:
            self._known[function] = function(self)
        found: _T = self._known[function]
        return found

    @cached_property
    def _first_op_times(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `op_times`; much of a report is about them. They cannot be written to."""
        times = self._op_times_of(None)
        for values in times:
            values.setflags(write=False)
        return times

    def _op_times_of(self, step: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        recorded = self.recorded_steps
        if not recorded or (step is not None and step not in recorded):
            known = f"recorded: {', '.join(map(str, recorded))}" if recorded else "none is"
            raise RecordError(f"{self.path}: op times of step {0 if step is None else step} are not recorded ({known})")
        row = 0 if step is None else recorded.index(step)
        paths = ("/results/ops/start_ps", "/results/ops/end_ps")
        start_ps, end_ps = self.columns(paths, slice(row, row + 1)).values()
        return start_ps[0], end_ps[0]

    @cached_property
    def recorded_steps(self) -> tuple[int, ...]:
        """Steps whose op times are in the file."""
        return self.reading(lambda columns: columns.numbers("recorded_step"))

    @cached_property
    def message_steps(self) -> tuple[int, ...]:
        """Steps of whose messages departure, arrival and hops are in the file."""
        return self.reading(lambda columns: columns.numbers("message_step"))

    def timeline(self) -> "pd.DataFrame":
        """link_busy_ps of every link (columns) per time bin, indexed by the start of the bin in ps."""
        return tables.timeline_table(self)

    def memory_use(self) -> MemoryUse | None:
        """What devices hold over the step whose Program is stored, by category; None where it is not known."""
        return memory_from_columns(self.columns(MEMORY_PATHS), self.texts(LABELS))

    @cached_property
    def assumptions(self) -> tuple[str, ...]:
        """Named assumptions that the figures rest on."""
        return self.texts("/results/notes/assumptions")

    def program(self) -> Program:
        """The Program of a step, equal to the one that was recorded."""
        return self._program

    def mesh(self) -> Mesh:
        """The grid of devices and links that `System.from_json(run.system_json)` flattens to."""
        return self._mesh

    def column(self, path: str) -> NDArray[Any]:
        """A dataset of the schema by its path, committed entries only.

        Raises:
            RecordError: there is no such dataset, or it holds fewer entries than were committed.
        """
        return self.columns([path])[path]

    def columns(self, paths: Iterable[str], rows: slice = slice(None)) -> dict[str, NDArray[Any]]:
        """Datasets of the schema by path, committed entries only, those in `rows` of the first axis.

        Raises:
            RecordError: there is no such dataset, or it is damaged.
        """
        check_paths(self.path, wanted := list(paths))
        return self.reading(lambda columns: {path: columns.read(path, rows) for path in wanted})

    def reading(self, function: Callable[[Columns], _T]) -> _T:
        """`function` of the columns of the file, which is opened once for all that it reads.

        Raises:
            RecordError: the file cannot be read.
        """
        return read_file(self.path, lambda file: function(Columns(self.path, file, self.schema_version, self.n_steps)))

    def dataset(self, group: str) -> "xr.Dataset":
        """A group such as "/results/links" as an xarray Dataset in memory, committed entries only (needs xarray)."""
        return tables.dataset(self, group)

    def refresh(self) -> "Run":
        """The run as its file is now: for one that is still being written, with the steps committed since."""
        return open_run(self.path)

    def texts(self, path: str) -> tuple[str, ...]:
        """A column of texts, those of all its entries in one row."""
        return decoded(self.path, path, self.column(path).reshape(-1))

    def attributes(self, path: str) -> dict[str, Any]:
        """What the values of a dataset mean: long_name, units, and names of values as flag_values and flag_meanings.

        By the schema and the run, not by the attributes that the file holds for other readers: HDF5 keeps such texts in
        a heap, whose search need not end where it is damaged.
        """
        check_paths(self.path, [path])
        (column,) = (column for column in COLUMNS if column.path == path)
        known: dict[str, Sequence[str]] = {}
        if column.flags == ("@link_class",):
            known["@link_class"] = self.mesh().class_names
        elif column.flags and column.flags[0].startswith("@"):
            known |= {"@op_class": self.program().op_classes, "@number_format": self.program().number_formats}
        return annotations(column, names_of_values(column, known))

    def _training_of(self, row: Mapping[str, Any], digest: str) -> TrainingRecord:
        """The record of one step, from the values of its columns."""

        def by_name(column: str) -> dict[str, float]:
            return dict(zip(self.loss_names, map(float, row[column]), strict=True))

        return TrainingRecord(
            loss=float(row["loss"]),
            loss_by_name=by_name("loss_by_name"),
            held_out_loss=float(row["held_out_loss"]),
            held_out_loss_by_name=by_name("held_out_loss_by_name"),
            accuracy=float(row["accuracy"]),
            learning_rate=tuple(map(float, row["learning_rate"])),
            gradient_norm=float(row["gradient_norm"]),
            parameters_sha256=digest,
        )

    @cached_property
    def _program(self) -> Program:
        groups = ("/program/ops", "/program/messages", "/program/dependencies")
        entries = [entry for group in groups for entry in columns_of(group)]
        values = self.columns([PROGRAM_TABLES, *(entry.path for entry in entries)])
        (text,) = decoded(self.path, PROGRAM_TABLES, values[PROGRAM_TABLES].reshape(1))
        return program_from_parts({entry.name: values[entry.path] for entry in entries}, text)

    @cached_property
    def _mesh(self) -> Mesh:
        mesh = flatten(System.from_json(self.system_json))
        made = {"/system/links/src": mesh.link_src, "/system/links/dst": mesh.link_dst}
        for path, stored in self.columns(made).items():
            if not np.array_equal(stored, made[path]):
                raise RecordError(f"{self.path}: its system gives other links than those in /system/links")
        return mesh

    def utilisation(self, steps: slice) -> NDArray[np.float64]:
        """busy_ps / time_ps of every link in some steps, float64[n, n_links]."""
        time_ps, busy_ps = self.columns(("/results/steps/time_ps", "/results/links/busy_ps"), steps).values()
        return np.asarray(busy_ps / np.where(time_ps > 0, time_ps, np.inf)[:, None])

    def steps_at(self, step: int | None) -> slice:
        """One committed step (negative: from the end), or all (None). Raises RecordError if there is no such step."""
        if step is None:
            return slice(0, self.n_steps)
        index = step + self.n_steps if step < 0 else step
        if not 0 <= index < self.n_steps:
            known = f"steps 0 to {self.n_steps - 1}" if self.n_steps else "no completed step"
            raise RecordError(f"{self.path}: no step {step}; it holds {known}")
        return slice(index, index + 1)


def _plain(value: Any) -> Any:
    """A NumPy scalar attribute as the Python value it stands for."""
    return value.item() if isinstance(value, np.generic) else value
