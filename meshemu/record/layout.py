"""Creates the groups, dimension scales and empty datasets of the schema in an open HDF5 file."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.schema import (
    CHECKSUMS,
    COMMIT_INDEXES,
    DIMS,
    GROUPS,
    NETCDF_DIMENSION_ONLY,
    WHOLE_COLUMN,
    Column,
    checked_paths,
    columns_of,
)

__all__ = ["TEXT_ENCODING", "annotations", "create_groups", "names_of_values"]

# Between 4k and 128k elements a chunk compresses equally well; one chunk per step and column keeps appends cheap.
_MAX_CHUNK = 131_072
_MAX_STEPS_PER_CHUNK = 1024
_NO_VALUE = -1
TEXT_ENCODING = "utf-8"  # of fixed strings, as the attribute _Encoding that xarray decodes by


def create_groups(
    file: h5py.File,
    sizes: Mapping[str, int],
    flags: Mapping[str, Sequence[str]],
    text: Mapping[str, str | Sequence[str]],
) -> None:
    """Create everything in the schema, so that no later write adds an object to the file.

    `sizes` gives the length of every dim that does not grow, and for "step" the number of steps planned (how scalars
    per step are chunked). `flags` gives the names behind "@..." in the schema. `text` gives the content of the "str"
    columns and of the scales that hold names, by path: fixed strings need their length now.
    """
    checked = {f"{CHECKSUMS}/checked_{dim}": checked_paths(dim) for dim in (*COMMIT_INDEXES, WHOLE_COLUMN)}
    sizes = dict(sizes) | {path.rpartition("/")[2]: len(names) for path, names in checked.items()} | {"version": 2}
    text = dict(text) | checked
    for group_path in GROUPS:
        group = file.require_group(group_path)
        group.attrs["long_name"] = GROUPS[group_path]
        scales: dict[str, h5py.Dataset] = {}
        for column in columns_of(group_path):
            for dim in column.dims:
                if dim not in scales:
                    scales[dim] = _create_scale(group, dim, sizes, text)
        for column in columns_of(group_path):
            dataset = _create_column(group, column, sizes, text)
            _annotate(dataset, column, flags)
            for axis, dim in enumerate(column.dims):
                dataset.dims[axis].attach_scale(scales[dim])


def _create_scale(
    group: h5py.Group, name: str, sizes: Mapping[str, int], text: Mapping[str, str | Sequence[str]]
) -> h5py.Dataset:
    """The dimension scale `name` of a group; on long axes it is a netCDF dimension without values."""
    dim = DIMS[name]
    if dim.grows:
        scale = group.create_dataset(name, (0,), "i8", maxshape=(None,), chunks=(_steps_per_chunk(sizes),))
    elif dim.scale == "index":
        scale = group.create_dataset(name, data=np.arange(sizes[name], dtype="i4"))
    elif dim.scale == "names":
        scale = group.create_dataset(name, data=_fixed_strings(text[f"{group.name}/{name}"]))
    else:
        scale = group.create_dataset(name, (sizes[name],), ">f4")
    has_values = dim.grows or dim.scale != "none"
    scale.make_scale(name if has_values else f"{NETCDF_DIMENSION_ONLY} {sizes[name]:10d}")
    scale.attrs["long_name"] = dim.long_name
    if dim.scale == "names":
        scale.attrs["_Encoding"] = TEXT_ENCODING
    else:
        scale.attrs["units"] = "1"
    return scale


def _create_column(
    group: h5py.Group, column: Column, sizes: Mapping[str, int], text: Mapping[str, str | Sequence[str]]
) -> h5py.Dataset:
    """The dataset of `column`, empty unless it is text."""
    if column.dtype == "str":
        content = text[column.path]
        data = _fixed_strings([content] if isinstance(content, str) else content)
        return group.create_dataset(column.name, data=data[0] if isinstance(content, str) else data, dtype=data.dtype)
    shape = tuple(0 if DIMS[dim].grows else sizes[dim] for dim in column.dims)
    # An axis of length 0 must be unlimited too, since no chunk may be longer than a fixed axis.
    maxshape = tuple(None if n == 0 else n for n in shape)
    fill = _NO_VALUE if column.name == "peak_memory_bytes" else None
    if DIMS[column.dims[0]].grows and all(DIMS[dim].narrow for dim in column.dims[1:]):
        # Neither filtered nor moved: a committed scalar is never rewritten elsewhere in the file.
        chunks = (_steps_per_chunk(sizes), *(max(n, 1) for n in shape[1:]))
        return group.create_dataset(column.name, shape, column.dtype, maxshape=maxshape, chunks=chunks)
    rows = (1,) if len(shape) == 2 else ()
    chunks = (*rows, min(max(shape[-1], 1), _MAX_CHUNK))
    return group.create_dataset(
        column.name,
        shape,
        column.dtype,
        maxshape=maxshape,
        chunks=chunks,
        shuffle=True,
        compression="gzip",
        compression_opts=1,
        fillvalue=fill,
    )


def _fixed_strings(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """UTF-8 strings as wide as the longest of them."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max([1, *map(len, encoded)])))


def _annotate(dataset: h5py.Dataset, column: Column, flags: Mapping[str, Sequence[str]]) -> None:
    """Attributes that say what the values mean."""
    for name, value in annotations(column, names_of_values(column, flags)).items():
        dataset.attrs[name] = value


def names_of_values(column: Column, flags: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """What the values 0, 1, 2, ... of a column are called; `flags`: the names that only the run knows, by "@..."."""
    return flags[column.flags[0]] if column.flags and column.flags[0].startswith("@") else column.flags


def annotations(column: Column, names: Sequence[str]) -> dict[str, Any]:
    """Attributes of a column by name, its values being called `names`."""
    found: dict[str, Any] = {"long_name": column.long_name}
    if column.units:
        found["units"] = column.units
    if names:
        found["flag_values"] = np.arange(len(names), dtype=column.dtype)
        # CF separates the meanings by blanks, so none may stay inside a name.
        found["flag_meanings"] = " ".join("_".join(name.split()) or "none" for name in names)
    return found


def _steps_per_chunk(sizes: Mapping[str, int]) -> int:
    return min(max(sizes["step"], 1), _MAX_STEPS_PER_CHUNK)
