"""Reads a results file: its committed steps, links, devices and ops as pandas tables or xarray datasets.

A `Run` is a value: what was committed when the file was opened. It holds no open file, so a run in progress can be
opened again at any time to see more.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.program.ir import OpKind, Program
from meshemu.record.access import check_identity, read_file
from meshemu.record.program_io import program_from_parts
from meshemu.record.schema import COLUMNS, COMMIT_INDEX, LOSS_NAMES, PROGRAM_TABLES, Column, columns_of
from meshemu.record.step_record import TrainingRecord

if TYPE_CHECKING:  # heavy, and needed only by whoever asks for tables
    import pandas as pd
    import xarray as xr

__all__ = ["Run", "open_run"]

DIGESTS = "/results/steps/parameters_sha256"
_COLUMN_BY_PATH = {column.path: column for column in COLUMNS}
_LENGTH_INDEX = {"step": COMMIT_INDEX, "recorded_step": "/results/ops/recorded_step", "bin": "/results/timeline/bin"}


def open_run(path: str | os.PathLike[str]) -> "Run":
    """The run in the file at `path`, finished or not.

    Raises:
        RecordError: the file is missing, no results file, of a newer schema, or damaged.
    """

    def head(file: h5py.File) -> Run:
        check_identity(Path(path), file)
        attributes = file.attrs
        return Run(
            path=Path(path),
            config=str(attributes["config"]),
            system_json=str(file["/system"].attrs["system_json"]),
            complete=bool(attributes["complete"]),
            n_steps=file[COMMIT_INDEX].shape[0],
            n_steps_planned=int(attributes["n_steps_planned"]),
            schema_version=int(attributes["schema_version"]),
            meshemu_version=str(attributes["meshemu_version"]),
            created_utc=str(attributes["created_utc"]),
            run_attributes={key: _plain(value) for key, value in file["/run"].attrs.items() if key != "long_name"},
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

    @cached_property
    def steps(self) -> "pd.DataFrame":
        """One row per committed step: loss, accuracy, parameters_sha256, time_ps, compute_ps, ..., wall_s.

        Terms of a loss follow as loss_<name> and held_out_loss_<name>; learning_rate becomes learning_rate_0,
        learning_rate_1, ... where there are several parameter groups.
        """
        import pandas as pd

        columns: dict[str, Any] = {}
        for entry in columns_of("/results/steps"):
            values = self.column(entry.path)
            if "loss_name" in entry.dims:
                prefix = entry.name.removesuffix("_by_name")
                columns |= {f"{prefix}_{name}": values[:, i] for i, name in enumerate(self.loss_names)}
            elif values.ndim == 2 and values.shape[1] != 1:
                columns |= {f"{entry.name}_{i}": values[:, i] for i in range(values.shape[1])}
            else:
                columns[entry.name] = values.reshape(-1)
        columns["parameters_sha256"] = pd.Series(self._texts(DIGESTS), dtype=str).to_numpy()
        columns["wall_s"] = self.column("/run/wall_s")
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_steps, name="step"))

    @cached_property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss; none where it is one number."""
        names = read_file(self.path, lambda file: file[LOSS_NAMES][:] if LOSS_NAMES in file else [])
        return tuple(name.decode() for name in names)

    @cached_property
    def n_parameter_groups(self) -> int:
        """How many learning rates a step has; 1 where nothing is updated."""
        return int(self.column("/results/steps/learning_rate").shape[1])

    def training(self) -> list[TrainingRecord]:
        """What the maths of every committed step gave, as it was recorded."""
        figures = {entry.name: self.column(entry.path) for entry in columns_of("/results/steps")}
        digests = self._texts(DIGESTS)
        rows = ({name: values[step] for name, values in figures.items()} for step in range(self.n_steps))
        return [self._training_of(row, digest) for row, digest in zip(rows, digests, strict=True)]

    def links(self, step: int | None = None, column: str | Sequence[str] | None = None) -> "pd.DataFrame":
        """What links carried: name (place in words), src, dst, class, bandwidth, latency, then the figures.

        step: one step (negative: from the end), indexed by link; None: all steps, indexed by (step, link).
        column: only these of bytes, busy_ps, wait_ps, packets, max_queue, utilisation (busy_ps / time_ps).
        """
        figures = [entry.name for entry in columns_of("/results/links")]
        wanted = _chosen(column, [*figures, "utilisation"])
        steps = self._steps_of(step)
        values = {name: self._rows(f"/results/links/{name}", steps) for name in figures if name in wanted}
        if "utilisation" in wanted:
            values["utilisation"] = self._utilisation(steps)
        return self._table("link", self._link_places, {name: values[name] for name in wanted}, steps, step is None)

    def link_utilisation(self, step: int = -1) -> NDArray[np.float64]:
        """busy_ps / time_ps of every link in a step (negative: from the end), float64[n_links]."""
        return np.asarray(self._utilisation(self._steps_of(step))[0])

    def devices(self, step: int | None = None) -> "pd.DataFrame":
        """What devices did: place in words, row, col, tile_row, tile_col, alive, memory, compute_ps, idle_ps.

        step: one step (negative: from the end), indexed by device; None: all steps, indexed by (step, device).
        """
        steps = self._steps_of(step)
        names = ("compute_ps", "idle_ps")
        values = {name: self._rows(f"/results/devices/{name}", steps) for name in names}
        return self._table("device", self._device_places, values, steps, step is None)

    def ops(self, step: int | None = None) -> "pd.DataFrame":
        """One row per op: kind, device, label, op_class, number_format, work, message, collective, start_ps, end_ps.

        step: the recorded step that times are taken from (None: the first). Without recorded times, and with step None,
        the table has no start_ps and end_ps.
        """
        import pandas as pd

        program = self.program()
        tables = {"kind": [kind.name for kind in OpKind], "label": program.labels}
        tables |= {"op_class": program.op_classes, "number_format": program.number_formats}
        columns: dict[str, Any] = {}
        for entry in columns_of("/program/ops"):
            values = getattr(program, entry.name)
            named = entry.name in tables
            columns[entry.name] = pd.Categorical.from_codes(values, tables[entry.name]) if named else values
        if step is not None or self.recorded_steps:
            columns["start_ps"], columns["end_ps"] = self.op_times(step)
        return pd.DataFrame(columns, index=pd.RangeIndex(program.n_ops, name="op"))

    def op_times(self, step: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """start_ps, end_ps: int64[n_ops] of a recorded step (None: the first).

        Raises:
            RecordError: the times of that step are not recorded.
        """
        recorded = self.recorded_steps
        if not recorded or (step is not None and step not in recorded):
            known = f"recorded: {', '.join(map(str, recorded))}" if recorded else "none is"
            raise RecordError(f"{self.path}: op times of step {0 if step is None else step} are not recorded ({known})")
        row = 0 if step is None else recorded.index(step)
        start_ps, end_ps = (self._rows(f"/results/ops/{name}", slice(row, row + 1)) for name in ("start_ps", "end_ps"))
        return start_ps[0], end_ps[0]

    @cached_property
    def recorded_steps(self) -> tuple[int, ...]:
        """Steps whose op times are in the file."""
        return tuple(int(step) for step in read_file(self.path, lambda file: file[_LENGTH_INDEX["recorded_step"]][:]))

    def timeline(self) -> "pd.DataFrame":
        """link_busy_ps of every link (columns) per time bin, indexed by the start of the bin in ps."""
        import pandas as pd

        index = pd.Index(self.column("/results/timeline/bin_start_ps"), name="bin_start_ps")
        table = pd.DataFrame(self.column("/results/timeline/link_busy_ps"), index=index)
        return table.rename_axis(columns="link")

    @cached_property
    def assumptions(self) -> tuple[str, ...]:
        """Named assumptions that the figures rest on."""
        return self._texts("/results/notes/assumptions")

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
        if path not in _COLUMN_BY_PATH:
            raise RecordError(f"{self.path}: no dataset {path}; there are {', '.join(sorted(_COLUMN_BY_PATH))}")
        return self._rows(path, slice(None))

    def dataset(self, group: str) -> "xr.Dataset":
        """A group such as "/results/links" as an xarray Dataset in memory, committed steps only (needs h5netcdf)."""
        import xarray as xr

        def load(_: h5py.File) -> xr.Dataset:
            options = {"locking": False}
            with xr.open_dataset(self.path, group=group, engine="h5netcdf", driver_kwds=options) as lazy:
                return lazy.isel(step=slice(self.n_steps)).load() if "step" in lazy.dims else lazy.load()

        groups = sorted({column.group for column in COLUMNS})
        if group not in groups:
            raise RecordError(f"{self.path}: no group {group}; there are {', '.join(groups)}")
        return read_file(self.path, load)

    def _texts(self, path: str) -> tuple[str, ...]:
        """A column of texts."""
        try:
            return tuple(text.decode() for text in self.column(path))
        except UnicodeDecodeError:
            raise RecordError(f"cannot read {self.path}: it is damaged ({path} holds no text)") from None

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
        arrays = {entry.name: self.column(entry.path) for group in groups for entry in columns_of(group)}
        text = read_file(self.path, lambda file: file[PROGRAM_TABLES][()].decode())
        return program_from_parts(arrays, text)

    @cached_property
    def _mesh(self) -> Mesh:
        mesh = flatten(System.from_json(self.system_json))
        for name, made in (("src", mesh.link_src), ("dst", mesh.link_dst)):
            if not np.array_equal(self.column(f"/system/links/{name}"), made):
                raise RecordError(f"{self.path}: its system gives other links than those in /system/links")
        return mesh

    @cached_property
    def _link_places(self) -> dict[str, Any]:
        import pandas as pd

        mesh = self.mesh()
        places: dict[str, Any] = {"name": [mesh.link_name(link) for link in range(mesh.n_links)]}
        places |= {name: self.column(f"/system/links/{name}") for name in ("src", "dst")}
        places["class"] = pd.Categorical.from_codes(self.column("/system/links/class"), mesh.class_names)
        measures = ("bandwidth_bytes_per_s", "latency_ps")
        return places | {name: self.column(f"/system/links/{name}") for name in measures}

    @cached_property
    def _device_places(self) -> dict[str, Any]:
        mesh = self.mesh()
        places: dict[str, Any] = {"place": [mesh.place(device) for device in range(mesh.n_devices)]}
        places |= {name: self.column(f"/system/devices/{name}") for name in ("row", "col", "tile_row", "tile_col")}
        places["alive"] = self.column("/system/devices/alive").astype(bool)
        return places | {"peak_memory_bytes": self.column("/results/devices/peak_memory_bytes")}

    def _table(
        self, dim: str, places: dict[str, Any], values: dict[str, NDArray[Any]], steps: slice, all_steps: bool
    ) -> "pd.DataFrame":
        """Places beside values[step, dim], one block of rows per step."""
        import pandas as pd

        block = pd.DataFrame(places).rename_axis(dim)
        if not all_steps:
            return block.assign(**{name: value[0] for name, value in values.items()})
        numbers = range(*steps.indices(self.n_steps))
        index = pd.MultiIndex.from_product([numbers, block.index], names=["step", dim])
        table = block.take(np.tile(np.arange(len(block)), len(numbers))).set_index(index)
        return table.assign(**{name: value.ravel() for name, value in values.items()})

    def _utilisation(self, steps: slice) -> NDArray[np.float64]:
        time_ps = self._rows("/results/steps/time_ps", steps).astype(np.float64)
        busy_ps = self._rows("/results/links/busy_ps", steps)
        return np.asarray(busy_ps / np.where(time_ps > 0, time_ps, np.inf)[:, None])

    def _steps_of(self, step: int | None) -> slice:
        if step is None:
            return slice(0, self.n_steps)
        index = step + self.n_steps if step < 0 else step
        if not 0 <= index < self.n_steps:
            known = f"steps 0 to {self.n_steps - 1}" if self.n_steps else "no completed step"
            raise RecordError(f"{self.path}: no step {step}; it holds {known}")
        return slice(index, index + 1)

    def _rows(self, path: str, rows: slice) -> NDArray[Any]:
        """Committed entries of a column, those in `rows` of its first axis."""
        entry = _COLUMN_BY_PATH[path]

        def load(file: h5py.File) -> NDArray[Any]:
            if entry.since > self.schema_version:
                return self._not_recorded(entry, rows)
            if not entry.dims:
                return np.asarray(file[path][()])
            committed = self._committed(file, entry)
            if file[path].shape[0] < committed:
                raise RecordError(f"{self.path}: {path} holds {file[path].shape[0]} entries, {committed} are committed")
            start, stop, _ = rows.indices(committed)
            return np.asarray(file[path][start:stop])

        return read_file(self.path, load)

    def _not_recorded(self, entry: Column, rows: slice) -> NDArray[Any]:
        """What a file of an earlier layout tells of a later column: NaN of each step, and no losses by name."""
        shape = len(range(*rows.indices(self.n_steps))), *(0 if dim == "loss_name" else 1 for dim in entry.dims[1:])
        return np.full(shape, np.nan, entry.dtype)

    def _committed(self, file: h5py.File, entry: Column) -> int:
        dim = entry.dims[0]
        if dim == "step":
            return self.n_steps
        return int(file[_LENGTH_INDEX.get(dim, entry.path)].shape[0])


def _plain(value: Any) -> Any:
    """A NumPy scalar attribute as the Python value it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def _chosen(column: str | Sequence[str] | None, valid: Sequence[str]) -> list[str]:
    """The names asked for, in the order asked; all if none is."""
    if column is None:
        return list(valid)
    names = [column] if isinstance(column, str) else list(column)
    for name in names:
        if name not in valid:
            raise RecordError(f"no column {name!r} of links; there are {', '.join(valid)}")
    return names
