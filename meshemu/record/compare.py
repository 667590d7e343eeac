"""Compares two results files bit for bit, and says in words where they first differ.

Everything but /run is compared, committed steps only: that is what must not depend on the number of ranks. Equal bits
are equal, so NaN equals the same NaN, and -0.0 differs from 0.0.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import OpKind
from meshemu.record.access import read_file
from meshemu.record.attributes import get_attributes
from meshemu.record.reader import Run, open_run
from meshemu.record.schema import COLUMNS, COMPARED_GROUPS, DIMS, LOSS_NAMES, Column

__all__ = ["Difference", "compare"]

# Attributes by which HDF5 ties scales to axes, which hold addresses within the file, and those that follow from the
# schema, the system and the Program, which are compared themselves.
_BOOKKEEPING = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}
_FOLLOWING = {"long_name", "units", "flag_values", "flag_meanings", "_Encoding"}
_LONGEST_TEXT = 60


@dataclass(frozen=True)
class Difference:
    """The first difference of two files: where (dataset or attribute path, index), in words, and both values."""

    path: str
    index: tuple[int, ...]
    message: str
    value_a: Any
    value_b: Any

    def __str__(self) -> str:
        """One line in words."""
        return self.message


def compare(path_a: str | os.PathLike[str], path_b: str | os.PathLike[str]) -> Difference | None:
    """The first difference outside /run, or None if there is none.

    Order: the system, the Program, the number of committed steps, then the datasets of /results by step.

    Raises:
        RecordError: one of the files cannot be read.
    """
    run_a, run_b = open_run(path_a), open_run(path_b)
    return next(_differences(run_a, run_b), None)


def _differences(a: Run, b: Run) -> Iterator[Difference]:
    if a.n_steps != b.n_steps:
        results = [column for column in COLUMNS if not column.path.startswith("/results")]
    else:
        results = list(COLUMNS)
    for group in COMPARED_GROUPS:
        yield from _attribute_differences(a, b, group)
        if group == "/results" and a.n_steps != b.n_steps:
            text = f"/results/steps/step: {a.n_steps} and {b.n_steps} completed steps"
            yield Difference("/results/steps/step", (), text, a.n_steps, b.n_steps)
        for column in results:
            if column.path.startswith(f"{group}/"):
                yield from _column_differences(a, b, column)
        if group == "/results":
            yield from _recorded_differences(a, b)
            yield from _loss_name_differences(a, b)


def _column_differences(a: Run, b: Run, column: Column) -> Iterator[Difference]:
    """The first difference in one column, if any."""
    values_a, values_b = a.column(column.path), b.column(column.path)
    if values_a.shape != values_b.shape:
        text = f"{column.path} has shape {values_a.shape} and {values_b.shape}"
        yield Difference(column.path, (), text, values_a.shape, values_b.shape)
        return
    if values_a.dtype.kind == values_b.dtype.kind == "S":  # fixed strings are as wide as their file's longest
        unequal = values_a != values_b
    elif values_a.dtype != values_b.dtype:
        text = f"{column.path} has type {values_a.dtype} and {values_b.dtype}"
        yield Difference(column.path, (), text, str(values_a.dtype), str(values_b.dtype))
        return
    else:
        unequal = _bits(values_a) != _bits(values_b)
    where = np.argwhere(unequal)
    if len(where):
        index = tuple(int(i) for i in where[0])
        first_a, first_b = values_a[index], values_b[index]
        place = ", ".join(_place(a, dim, i) for dim, i in zip(column.dims, index, strict=True))
        text = f"{column.path} differs{' first at ' + place if place else ''}: {_words(first_a, first_b)}"
        yield Difference(column.path, index, text, first_a, first_b)


def _recorded_differences(a: Run, b: Run) -> Iterator[Difference]:
    if a.recorded_steps != b.recorded_steps:
        text = f"/results/ops/recorded_step differs: {list(a.recorded_steps)} and {list(b.recorded_steps)}"
        yield Difference("/results/ops/recorded_step", (), text, a.recorded_steps, b.recorded_steps)


def _loss_name_differences(a: Run, b: Run) -> Iterator[Difference]:
    if a.loss_names != b.loss_names:
        text = f"{LOSS_NAMES} differs: {list(a.loss_names)} and {list(b.loss_names)}"
        yield Difference(LOSS_NAMES, (), text, a.loss_names, b.loss_names)


def _attribute_differences(a: Run, b: Run, group: str) -> Iterator[Difference]:
    """Differences in the set of objects below `group` and in their attributes."""
    of_a, of_b = (read_file(run.path, lambda file: _attributes(file, group)) for run in (a, b))
    for path in sorted(of_a.keys() | of_b.keys()):
        if path not in of_a or path not in of_b:
            holder = a.path if path in of_a else b.path
            yield Difference(path, (), f"{path} is only in {holder}", path in of_a, path in of_b)
        elif of_a[path] != of_b[path]:
            text = f"{path} differs: {_words(of_a[path], of_b[path])}"
            yield Difference(path, (), text, of_a[path], of_b[path])


def _attributes(file: h5py.File, group: str) -> dict[str, Any]:
    """Value of every attribute below a group by "object@name"; an object itself stands under its own path."""
    found: dict[str, Any] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        found[path] = None
        for name in item.attrs.keys() - _BOOKKEEPING - _FOLLOWING:
            value = get_attributes(item, [name])[name]
            found[f"{path}@{name}"] = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    visit(group, file[group])
    file[group].visititems(lambda name, item: visit(f"{group}/{name}", item))
    return found


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Floats as the integers that have the same bits."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


def _place(run: Run, dim: str, index: int) -> str:
    """An index in words, e.g. "link 17 (tile 0, die (2,3) -> east)"."""
    if dim == "link":
        return f"link {index} ({run.mesh().link_name(index)})"
    if dim == "device":
        return f"device {index} ({run.mesh().place(index)})"
    if dim == "recorded_step":
        return f"step {run.recorded_steps[index]}"
    if dim == "loss_name":
        return f"loss {run.loss_names[index]!r}"
    if dim == "op" and index < run.program().n_ops:
        program = run.program()
        kind, label = OpKind(program.kind[index]).name, program.labels[program.label[index]]
        return f"op {index} ({kind} {label}, {run.mesh().place(int(program.device[index]))})"
    return f"{DIMS[dim].name.replace('_', ' ')} {index}"


def _words(a: Any, b: Any) -> str:
    """Both values; of long texts, the surroundings of their first difference."""
    text_a, text_b = _text(a), _text(b)
    if max(len(text_a), len(text_b)) > _LONGEST_TEXT:
        shorter = min(len(text_a), len(text_b))
        at = next((i for i in range(shorter) if text_a[i] != text_b[i]), shorter)
        low, high = max(at - _LONGEST_TEXT // 2, 0), at + _LONGEST_TEXT // 2
        return f"at character {at}: {text_a[low:high]!r} and {text_b[low:high]!r}"
    if text_a == text_b and isinstance(a, np.floating):  # floats that print alike: show their bits
        return f"{text_a} and {text_b} (bits {a.tobytes()[::-1].hex()} and {b.tobytes()[::-1].hex()})"
    return f"{text_a} and {text_b}"


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return repr(value.item()) if isinstance(value, np.generic) else str(value)
