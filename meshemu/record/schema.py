"""The layout of a results file: one table from which the writer, the reader, `compare` and docs/schema.md derive.

A file holds four groups: /system (the machine), /program (the work of one step), /results (what came out; the same
bit for bit for any number of ranks) and /run (how it was computed; the only group that may differ).

Every dataset is one column with one `Dim` per axis. A dim becomes a dimension scale in each group that uses it, so that
every group opens by itself in xarray. Steps are committed by the index /results/steps/step, which grows last: what lies
beyond its length was never finished and is not read.

A later version of the layout only adds columns; files of earlier versions stay readable. The columns of /checksums
follow from the others.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

__all__ = [
    "CHECKSUMS",
    "COLUMNS",
    "COMMIT_INDEX",
    "COMMIT_INDEXES",
    "COMPARED_GROUPS",
    "CONVENTIONS",
    "DIMS",
    "GROUPS",
    "LOSS_NAMES",
    "NETCDF_DIMENSION_ONLY",
    "PROGRAM_TABLES",
    "ROOT_ATTRIBUTES",
    "SCHEMA_VERSION",
    "SEALED",
    "TITLE",
    "WHOLE_COLUMN",
    "Column",
    "Dim",
    "checked_paths",
    "columns_of",
]

SCHEMA_VERSION = 4
CONVENTIONS = "CF-1.11"
TITLE = "meshemu run"
COMMIT_INDEX = "/results/steps/step"
COMMIT_INDEXES = {
    "step": COMMIT_INDEX,
    "recorded_step": "/results/ops/recorded_step",
    "message_step": "/results/messages/message_step",
    "bin": "/results/timeline/bin",
}
"""Of each growing axis, the scale whose length says how many entries are committed."""

CHECKSUMS = "/checksums"
WHOLE_COLUMN = "column"
"""In /checksums, what stands for columns without a growing axis."""

LOSS_NAMES = "/results/steps/loss_name"
PROGRAM_TABLES = "/program/tables_json"
COMPARED_GROUPS = ("/system", "/program", "/results")
NETCDF_DIMENSION_ONLY = "This is a netCDF dimension but not a netCDF variable."

ROOT_ATTRIBUTES = {
    "Conventions": "metadata conventions that units and flag_values follow",
    "title": f'always "{TITLE}": how a results file is told from other HDF5 files',
    "meshemu_version": "version of meshemu that wrote the file",
    "schema_version": f"version of this layout, {SCHEMA_VERSION}",
    "created_utc": "when the file was made, ISO 8601",
    "n_steps_planned": "training steps that the run set out to record",
    "config": "resolved configuration, TOML text",
    "complete": "1 when the run ended in order, 0 while it runs or when it was cut off",
    "head_crc32": "checksum of all these but complete, and of system_json of /system",
}

SEALED = tuple(name for name in ROOT_ATTRIBUTES if name not in ("complete", "head_crc32"))
"""Attributes of the file that `head_crc32` is of, beside system_json."""

GROUPS = {
    "/system": "the emulated machine; attribute system_json holds all of it, for re-timing",
    "/system/devices": "one row per grid position, dead ones included",
    "/system/links": "one row per directed link",
    "/program": "the Program of one step, enough to re-time it",
    "/program/ops": "one row per op; an op's id is its row",
    "/program/messages": "one row per message",
    "/program/dependencies": "compressed sparse rows: op i waits for dep[dep_ptr[i]:dep_ptr[i+1]]",
    "/results/steps": "one row per training step; the length of step is the number of committed steps",
    "/results/links": "what each link carried in each step",
    "/results/devices": "what each device did in each step",
    "/results/memory": "what the device that needs most memory (the first of several) holds, and for what: at the "
    "beginning of the step and during every instruction; no points where it is not known",
    "/results/memory_peaks": "what each device holds when it holds most: together, peak_memory_bytes of the first step",
    "/results/ops": "virtual times of every op in the recorded steps",
    "/results/messages": "every message of the recorded steps, where [output] messages asked for it; /program/messages "
    "says whose and how large they are",
    "/results/timeline": "link activity over the first recorded step",
    "/results/notes": "what the figures rest on",
    "/run": "how the results were computed; attributes name ranks, hosts, versions and counters of the timing engine: "
    "events, packet_hops, windows (rounds between ranks), and by rank events, events sent to other ranks, processor "
    "time in the event loop, with its imbalance (the busiest rank over the mean); crc32 is the checksum of the others "
    "and of n_steps, the number of steps in a complete file",
    "/checksums": "CRC-32 of every other dataset, by row where it grows: of the text PATH ROW, or PATH, each with a "
    "blank after it, and then of the values as little-endian bytes (texts as UTF-8, each with a zero byte after it)",
}


@dataclass(frozen=True)
class Dim:
    """One axis. `grows`: unlimited, starts empty. `scale`: its dimension scale holds 0, 1, 2, ... ("index"), texts that
    only the run knows ("names"), or no values ("none"). `narrow`: a few entries, so that many steps go into one chunk.
    """

    name: str
    long_name: str
    grows: bool = False
    scale: Literal["index", "names", "none"] = "index"
    narrow: bool = False


@dataclass(frozen=True)
class Column:
    """One dataset. dtype is a NumPy type string, or "str" for UTF-8 text; `flags` names the values 0, 1, 2, ...

    `flags` of "@link_class", "@op_class" or "@number_format" stand for names that only the run knows. since: version of
    the layout that introduced the column.
    """

    path: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    flags: tuple[str, ...] = ()
    since: int = 1

    @property
    def group(self) -> str:
        """Path of the group that holds the dataset."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Name of the dataset within its group."""
        return self.path.rpartition("/")[2]

    @property
    def compare(self) -> bool:
        """Whether the values must not depend on the number of ranks."""
        return self.path.startswith(COMPARED_GROUPS)


_DIMS = {
    dim.name: dim
    for dim in (
        Dim("device", "device id, row * cols + col"),
        Dim("link", "link id"),
        Dim("op", "op id", scale="none"),
        Dim("op_bound", "op id, and one past the last", scale="none"),
        Dim("message", "message id", scale="none"),
        Dim("dependency", "position in the list of dependencies", scale="none"),
        Dim("step", "training step", grows=True),
        Dim("recorded_step", "training step whose op times are recorded", grows=True),
        Dim("message_step", "training step whose messages are recorded", grows=True),
        Dim("bin", "time bin", grows=True),
        Dim("assumption", "assumption number"),
        Dim("memory_point", "beginning of the step, then its instructions"),
        Dim("loss_name", "name of a term of the loss", scale="names", narrow=True),
        Dim("parameter_group", "parameter group of the optimizer", narrow=True),
    )
}


_Row = tuple[str, str, str, str] | tuple[str, str, str, str, tuple[str, ...]]


def _columns(group: str, dims: tuple[str, ...], *rows: _Row, since: int = 1) -> tuple[Column, ...]:
    """Columns of one group with the same dims, from (name, dtype, units, long_name[, flags])."""
    return tuple(replace(Column(f"{group}/{name}", dims, *rest), since=since) for name, *rest in rows)


_MEMORY: tuple[_Row, ...] = (
    ("weights_bytes", "i8", "byte", "parameters, buffers, constants and copies made of nothing else"),
    ("gradients_bytes", "i8", "byte", "gradients of parameters and their terms"),
    ("optimizer_bytes", "i8", "byte", "state of the optimizer"),
    ("activations_bytes", "i8", "byte", "everything else that operators make"),
    ("communication_bytes", "i8", "byte", "what was fetched from other devices, and buffers for terms that arrive"),
    ("batch_bytes", "i8", "byte", "samples and targets"),
)

_COLUMNS: tuple[Column, ...] = (
    *_columns(
        "/system/devices",
        ("device",),
        ("id", "i4", "1", "device id"),
        ("row", "i4", "1", "row of the device grid, 0 is north"),
        ("col", "i4", "1", "column of the device grid, 0 is west"),
        ("tile_row", "i4", "1", "row of the tile that holds the device"),
        ("tile_col", "i4", "1", "column of the tile that holds the device"),
        ("alive", "i1", "1", "whether the device works", ("dead", "alive")),
    ),
    *_columns(
        "/system/links",
        ("link",),
        ("id", "i4", "1", "link id"),
        ("src", "i4", "1", "device that the link leaves; from the number of devices on, switches"),
        ("dst", "i4", "1", "device or switch that the link enters (src for injection and ejection)"),
        ("class", "i1", "1", "class of the boundary that the link crosses", ("@link_class",)),
        ("bandwidth_bytes_per_s", "i8", "byte s-1", "bandwidth of this direction"),
        ("latency_ps", "i8", "ps", "time of a head from end to end"),
    ),
    *_columns(
        "/program/ops",
        ("op",),
        ("kind", "i1", "1", "what the op does", ("COMPUTE", "SEND", "RECV", "REDUCE", "INTERFACE")),
        ("device", "i4", "1", "device that runs the op"),
        ("label", "i4", "1", "row of the table of labels in tables_json"),
        ("op_class", "i2", "1", "class of the op, for its cost", ("@op_class",)),
        ("number_format", "i1", "1", "number format of the work", ("@number_format",)),
        ("flops", "i8", "flop", "floating-point operations"),
        ("read_bytes", "i8", "byte", "bytes read from the device's memory"),
        ("write_bytes", "i8", "byte", "bytes written to the device's memory"),
        ("message", "i8", "1", "message id, -1 if none"),
        ("collective", "i4", "1", "row of the table of collectives in tables_json, -1 if none"),
        ("chunk_lo", "i4", "1", "first chunk of the collective's buffer"),
        ("chunk_hi", "i4", "1", "one past the last chunk"),
    ),
    *_columns(
        "/program/ops",
        ("op",),
        ("shape", "i4", "1", "row of the table of shapes in tables_json, -1 if not known"),
        ("producer", "i8", "1", "op that made a block which this op alone reads, -1 if none"),
        ("producer_bytes", "i8", "byte", "size of that block"),
        since=3,
    ),
    *_columns(
        "/program/ops",
        ("op",),
        ("interface", "i4", "1", "number of the interface processor that an INTERFACE op is of, -1 if none"),
        since=4,
    ),
    *_columns(
        "/program/messages",
        ("message",),
        ("src", "i4", "1", "device that sends"),
        ("dst", "i4", "1", "device that receives"),
        ("size_bytes", "i8", "byte", "size of the message"),
        ("send_op", "i8", "1", "id of the SEND op"),
        ("recv_op", "i8", "1", "id of the RECV op"),
    ),
    Column("/program/dependencies/dep_ptr", ("op_bound",), "i8", "1", "first dependency of each op"),
    Column("/program/dependencies/dep", ("dependency",), "i8", "1", "id of the op waited for"),
    Column(PROGRAM_TABLES, (), "str", "", "labels, op classes, number formats, shapes and collectives, as JSON"),
    *_columns(
        "/results/steps",
        ("step",),
        ("loss", "f8", "1", "training loss, NaN where the step was timed only"),
        ("accuracy", "f8", "1", "accuracy on held-out data, NaN where it was not evaluated"),
        ("parameters_sha256", "S64", "", "digest of all parameters and buffers after the step, empty if timed only"),
        ("time_ps", "i8", "ps", "duration of the step in virtual time"),
        ("compute_ps", "i8", "ps", "compute time of the busiest device"),
        ("exposed_comm_ps", "i8", "ps", "time_ps - compute_ps - ingest_ps: communication that no compute hides"),
        ("ingest_ps", "i8", "ps", "time waiting for data of the next step; 0 also where ingest is not modelled"),
        ("flops", "i8", "flop", "floating-point operations of all devices"),
    ),
    *_columns(
        "/results/steps",
        ("step",),
        ("gradient_norm", "f8", "1", "2-norm of all gradients together, before clipping, NaN if timed only"),
        ("held_out_loss", "f8", "1", "loss on held-out data, NaN where it was not evaluated"),
        since=2,
    ),
    *_columns(
        "/results/steps",
        ("step", "parameter_group"),
        ("learning_rate", "f8", "1", "learning rate of each parameter group in the step, NaN where nothing is updated"),
        since=2,
    ),
    *_columns(
        "/results/steps",
        ("step", "loss_name"),
        ("loss_by_name", "f8", "1", "terms of the training loss, none where it is one number, NaN if timed only"),
        ("held_out_loss_by_name", "f8", "1", "terms of the loss on held-out data, NaN where it was not evaluated"),
        since=2,
    ),
    *_columns(
        "/results/links",
        ("step", "link"),
        ("bytes", "i8", "byte", "bytes carried"),
        ("busy_ps", "i8", "ps", "time in which the link carried a packet"),
        ("wait_ps", "i8", "ps", "how long heads of packets waited for the link, summed"),
        ("packets", "i8", "1", "packets carried"),
        ("max_queue", "i8", "1", "most packets waiting at one time"),
    ),
    *_columns(
        "/results/devices",
        ("step", "device"),
        ("compute_ps", "i8", "ps", "time in which the compute unit was busy"),
        ("idle_ps", "i8", "ps", "time in which the compute unit was idle"),
    ),
    Column("/results/devices/peak_memory_bytes", ("device",), "i8", "byte", "most memory in use, -1 if not known"),
    *_columns("/results/memory", ("memory_point",), ("label", "str", "", "instruction"), *_MEMORY, since=3),
    *_columns("/results/memory_peaks", ("device",), *_MEMORY, since=3),
    *_columns(
        "/results/ops",
        ("recorded_step", "op"),
        ("start_ps", "i8", "ps", "start of the op since the start of the step"),
        ("end_ps", "i8", "ps", "end of the op since the start of the step"),
    ),
    *_columns(
        "/results/messages",
        ("message_step", "message"),
        ("depart_ps", "i8", "ps", "when its head left, since the start of the step"),
        ("arrival_ps", "i8", "ps", "when its tail arrived, since the start of the step"),
        ("hops", "i4", "1", "links on its route"),
        since=3,
    ),
    Column("/results/timeline/bin_start_ps", ("bin",), "i8", "ps", "start of the bin since the start of the step"),
    Column("/results/timeline/link_busy_ps", ("bin", "link"), "i8", "ps", "busy time of the link within the bin"),
    Column("/results/notes/assumptions", ("assumption",), "str", "", "assumptions that the figures rest on"),
    Column("/run/wall_s", ("step",), "f8", "s", "wall time of the step on the machine that emulated it"),
)


@cache
def checked_paths(dim: str) -> tuple[str, ...]:
    """Datasets with checksums by row of the growing axis `dim`, or with one checksum each (WHOLE_COLUMN)."""
    if dim == WHOLE_COLUMN:
        whole = (column.path for column in _COLUMNS if not (column.dims and _DIMS[column.dims[0]].grows))
        pairs = ((column.group, _DIMS[name]) for column in _COLUMNS for name in column.dims)
        return (*whole, *dict.fromkeys(f"{group}/{dim.name}" for group, dim in pairs if dim.scale == "names"))
    return (*(column.path for column in _COLUMNS if column.dims[:1] == (dim,)), COMMIT_INDEXES[dim])


DIMS = _DIMS | {
    dim.name: dim
    for dim in (
        *(Dim(f"checked_{name}", "path of a dataset", scale="names", narrow=True) for name in COMMIT_INDEXES),
        Dim(f"checked_{WHOLE_COLUMN}", "path of a dataset", scale="names", narrow=True),
        Dim("version", "either may hold: before and after a rewrite", narrow=True),
    )
}

COLUMNS: tuple[Column, ...] = (
    *_COLUMNS,
    *(
        Column(f"{CHECKSUMS}/{dim}_crc32", (dim, f"checked_{dim}"), "u4", "1", f"checksums by {dim}", since=3)
        for dim in COMMIT_INDEXES
    ),
    Column(
        f"{CHECKSUMS}/{WHOLE_COLUMN}_crc32", (f"checked_{WHOLE_COLUMN}", "version"), "u4", "1", "checksums", since=3
    ),
)


@cache
def columns_of(group: str) -> tuple[Column, ...]:
    """Columns directly within `group`."""
    return tuple(column for column in COLUMNS if column.group == group)
