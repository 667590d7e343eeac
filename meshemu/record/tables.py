"""A run as pandas tables and xarray datasets: figures beside the places in words that they belong to.

Every table carries the units of its columns in `table.attrs["units"]`, by column name ("1" for plain numbers).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import RecordError
from meshemu.program.ir import OpKind
from meshemu.record.schema import COLUMNS, DIMS, columns_of

if TYPE_CHECKING:  # pandas and xarray are heavy, and needed only by whoever asks for tables
    import pandas as pd
    import xarray as xr

    from meshemu.record.reader import Run

__all__ = ["dataset", "devices_table", "links_table", "messages_table", "ops_table", "steps_table", "timeline_table"]


_PLACE = ("row", "col", "tile_row", "tile_col", "alive")


def steps_table(run: "Run") -> "pd.DataFrame":
    """See `Run.steps`."""
    import pandas as pd

    columns: dict[str, Any] = {}
    units: dict[str, str] = {}
    entries = columns_of("/results/steps")
    stored = run.columns([*(entry.path for entry in entries), "/run/wall_s"])
    for entry in entries:
        values = stored[entry.path]
        if entry.dtype.startswith("S"):
            values = pd.Series(run.texts(entry.path), dtype=str).to_numpy()
        if "loss_name" in entry.dims:
            prefix = entry.name.removesuffix("_by_name")
            parts = {f"{prefix}_{name}": values[:, i] for i, name in enumerate(run.loss_names)}
        elif values.ndim == 2 and values.shape[1] != 1:
            parts = {f"{entry.name}_{i}": values[:, i] for i in range(values.shape[1])}
        else:
            parts = {entry.name: values.reshape(-1)}
        columns |= parts
        units |= dict.fromkeys(parts, entry.units)
    columns["wall_s"] = stored["/run/wall_s"]
    table = pd.DataFrame(columns, index=pd.RangeIndex(run.n_steps, name="step"))
    return _with_units(table, units | {"wall_s": "s"})


def links_table(run: "Run", step: int | None, column: str | Sequence[str] | None) -> "pd.DataFrame":
    """See `Run.links`."""
    figures = [entry.name for entry in columns_of("/results/links")]
    wanted = _chosen(column, [*figures, "utilisation"])
    steps = run.steps_at(step)
    stored = run.columns([f"/results/links/{name}" for name in figures if name in wanted], steps)
    values = {path.rpartition("/")[2]: value for path, value in stored.items()}
    if "utilisation" in wanted:
        values["utilisation"] = run.utilisation(steps)
    ordered = {name: values[name] for name in wanted}
    table = _table(run, "link", run.link_places, ordered, steps, step is None)
    return _with_units(table, _units("/system/links", "/results/links") | {"utilisation": "1"})


def devices_table(run: "Run", step: int | None) -> "pd.DataFrame":
    """See `Run.devices`."""
    steps = run.steps_at(step)
    figures = [entry for entry in columns_of("/results/devices") if entry.dims == ("step", "device")]
    stored = run.columns([entry.path for entry in figures], steps)
    values = {path.rpartition("/")[2]: value for path, value in stored.items()}
    table = _table(run, "device", _device_places(run), values, steps, step is None)
    return _with_units(table, _units("/system/devices", "/results/devices"))


def ops_table(run: "Run", step: int | None) -> "pd.DataFrame":
    """See `Run.ops`."""
    import pandas as pd

    program = run.program()
    tables = {"kind": [kind.name for kind in OpKind], "label": program.labels}
    tables |= {"op_class": program.op_classes, "number_format": program.number_formats}
    columns: dict[str, Any] = {}
    for entry in (entry for entry in columns_of("/program/ops") if entry.dims == ("op",)):
        values = getattr(program, entry.name)
        named = entry.name in tables
        columns[entry.name] = pd.Categorical.from_codes(values, tables[entry.name]) if named else values
    if step is not None or run.recorded_steps:
        columns["start_ps"], columns["end_ps"] = run.op_times(step)
    table = pd.DataFrame(columns, index=pd.RangeIndex(program.n_ops, name="op"))
    return _with_units(table, _units("/program/ops", "/results/ops"))


def messages_table(run: "Run", step: int | None) -> "pd.DataFrame":
    """See `Run.messages`."""
    import pandas as pd

    program = run.program()
    columns: dict[str, Any] = {entry.name: getattr(program, entry.name) for entry in columns_of("/program/messages")}
    columns["label"] = pd.Categorical.from_codes(program.label[program.send_op], program.labels)
    columns["collective"] = program.collective[program.send_op]
    if step is not None or run.recorded_steps:
        start_ps, end_ps = run.op_times(step)
        columns |= {"sent_ps": start_ps[program.send_op], "received_ps": end_ps[program.recv_op]}
    wanted = next(iter(run.message_steps), -1) if step is None else step
    if wanted in run.message_steps:
        row = run.message_steps.index(wanted)
        stored = run.columns([entry.path for entry in columns_of("/results/messages")], slice(row, row + 1))
        columns |= {path.rpartition("/")[2]: values[0] for path, values in stored.items()}
    table = pd.DataFrame(columns, index=pd.RangeIndex(program.n_messages, name="message"))
    others = {"collective": "1", "sent_ps": "ps", "received_ps": "ps"}
    return _with_units(table, _units("/program/messages", "/results/messages") | others)


def timeline_table(run: "Run") -> "pd.DataFrame":
    """See `Run.timeline`."""
    import pandas as pd

    index = pd.Index(run.column("/results/timeline/bin_start_ps"), name="bin_start_ps")
    table = pd.DataFrame(run.column("/results/timeline/link_busy_ps"), index=index).rename_axis(columns="link")
    return _with_units(table, dict.fromkeys(table.columns, "ps"))


def dataset(run: "Run", group: str) -> "xr.Dataset":
    """See `Run.dataset`."""
    groups = sorted({column.group for column in COLUMNS})
    if group not in groups:
        raise RecordError(f"{run.path}: no group {group}; there are {', '.join(groups)}")
    try:
        import xarray as xr
    except ImportError:
        raise RecordError("xarray is not installed: pip install xarray, or use the pandas tables") from None

    variables: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    stored = run.columns(entry.path for entry in columns_of(group))
    for entry in columns_of(group):
        values = stored[entry.path]
        if entry.dtype == "str" or entry.dtype.startswith("S"):
            values = np.array(run.texts(entry.path), dtype=object).reshape(values.shape)
        variables[entry.name] = (entry.dims, values, run.attributes(entry.path))
        sizes |= dict(zip(entry.dims, values.shape, strict=True))
    scales: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items() if DIMS[dim].scale == "index"}
    if "loss_name" in sizes:
        scales["loss_name"] = np.array(run.loss_names, dtype=object)
    for dim, numbers in (("recorded_step", run.recorded_steps), ("message_step", run.message_steps)):
        if dim in sizes:
            scales[dim] = np.array(numbers, dtype=np.int64)
    named = {dim: (dim, values, {"long_name": DIMS[dim].long_name}) for dim, values in scales.items()}
    return xr.Dataset(variables, named)


def link_places(run: "Run") -> dict[str, Any]:
    """Columns that say which links they are: name in words, src, dst, class, bandwidth and latency."""
    import pandas as pd

    mesh = run.mesh()
    places: dict[str, Any] = {"name": [mesh.link_name(link) for link in range(mesh.n_links)]}
    stored = run.columns(entry.path for entry in columns_of("/system/links"))
    columns = {path.rpartition("/")[2]: values for path, values in stored.items()}
    columns["class"] = pd.Categorical.from_codes(columns["class"], mesh.class_names)
    order = ("src", "dst", "class", "bandwidth_bytes_per_s", "latency_ps")
    return places | {name: columns[name] for name in order}


def _device_places(run: "Run") -> dict[str, Any]:
    mesh = run.mesh()
    places: dict[str, Any] = {"place": [mesh.place(device) for device in range(mesh.n_devices)]}
    fixed = [entry.path for entry in columns_of("/results/devices") if entry.dims == ("device",)]
    stored = run.columns([*(f"/system/devices/{name}" for name in _PLACE), *fixed])
    places |= {path.rpartition("/")[2]: values for path, values in stored.items()}
    return places | {"alive": places["alive"].astype(bool)}


def _table(
    run: "Run", dim: str, places: dict[str, Any], values: dict[str, NDArray[Any]], steps: slice, all_steps: bool
) -> "pd.DataFrame":
    """Places beside values[step, dim], one block of rows per step."""
    import pandas as pd

    block = pd.DataFrame(places).rename_axis(dim)
    if not all_steps:
        return block.assign(**{name: value[0] for name, value in values.items()})
    numbers = range(*steps.indices(run.n_steps))
    index = pd.MultiIndex.from_product([numbers, block.index], names=["step", dim])
    table = block.take(np.tile(np.arange(len(block)), len(numbers))).set_index(index)
    return table.assign(**{name: value.ravel() for name, value in values.items()})


def _units(*groups: str) -> dict[str, str]:
    return {entry.name: entry.units for group in groups for entry in columns_of(group)}


def _with_units(table: "pd.DataFrame", units: Mapping[Any, str]) -> "pd.DataFrame":
    """The table with the units of those of its columns that have some."""
    table.attrs["units"] = {name: units[name] for name in table.columns if units.get(name)}
    return table


def _chosen(column: str | Sequence[str] | None, valid: Sequence[str]) -> list[str]:
    """The names asked for, in the order asked; all if none is."""
    if column is None:
        return list(valid)
    names = [column] if isinstance(column, str) else list(column)
    for name in names:
        if name not in valid:
            raise RecordError(f"no column {name!r} of links; there are {', '.join(valid)}")
    return names
