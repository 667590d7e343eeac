"""Compares two results files bit for bit, and says in words where they first differ.

Everything but /run is compared, committed steps only: that is what must not depend on the number of ranks. Equal bits
are equal, so NaN equals the same NaN, and -0.0 differs from 0.0.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import OpKind
from meshemu.record.access import in_one_line
from meshemu.record.attributes import get_attributes
from meshemu.record.columns import Columns
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
    return run_a.reading(
        lambda of_a: run_b.reading(lambda of_b: next(_differences(_Side(run_a, of_a), _Side(run_b, of_b)), None))
    )


class _Side(NamedTuple):
    """One of the two: the run, and its open file."""

    run: Run
    columns: Columns


def _differences(a: _Side, b: _Side) -> Iterator[Difference]:
    steps_a, steps_b = a.run.n_steps, b.run.n_steps
    for group in COMPARED_GROUPS:
        yield from _attribute_differences(a, b, group)
        if group == "/results" and steps_a != steps_b:
            text = f"/results/steps/step: {steps_a} and {steps_b} completed steps"
            yield Difference("/results/steps/step", (), text, steps_a, steps_b)
        for column in COLUMNS:
            if column.path.startswith(f"{group}/"):
                yield from _column_differences(a, b, column)
    yield from _difference_of("/results/ops/recorded_step", *(s.columns.numbers("recorded_step") for s in (a, b)))
    yield from _difference_of(LOSS_NAMES, *(side.columns.loss_names() for side in (a, b)))


def _column_differences(a: _Side, b: _Side, column: Column) -> Iterator[Difference]:
    """The first difference in one column, if any."""
    values_a, values_b = a.columns.read(column.path), b.columns.read(column.path)
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
    if unequal.any():
        index = tuple(int(i) for i in np.argwhere(unequal)[0])
        first_a, first_b = values_a[index], values_b[index]
        place = ", ".join(_place(a.run, dim, i) for dim, i in zip(column.dims, index, strict=True))
        text = f"{column.path} differs{' first at ' + place if place else ''}: {_words(first_a, first_b)}"
        yield Difference(column.path, index, text, first_a, first_b)


def _difference_of(path: str, of_a: tuple[Any, ...], of_b: tuple[Any, ...]) -> Iterator[Difference]:
    """A difference of two lists as a whole."""
    if of_a != of_b:
        yield Difference(path, (), f"{path} differs: {list(of_a)} and {list(of_b)}", of_a, of_b)


def _attribute_differences(a: _Side, b: _Side, group: str) -> Iterator[Difference]:
    """Differences in the set of objects below `group` and in their attributes."""
    of_a, of_b = (_attributes(side.columns, group) for side in (a, b))
    for path in sorted(of_a.keys() | of_b.keys()):
        if path not in of_a or path not in of_b:
            holder = a.run.path if path in of_a else b.run.path
            yield Difference(path, (), f"{path} is only in {holder}", path in of_a, path in of_b)
        elif of_a[path] != of_b[path]:
            text = f"{path} differs: {_words(of_a[path], of_b[path])}"
            yield Difference(path, (), text, of_a[path], of_b[path])


def _attributes(columns: Columns, group: str) -> dict[str, Any]:
    """Value of every attribute below a group by "object@name"; an object itself stands under its own path.

    Of texts without a fixed length, which nothing here but a long system_json is, only that they are there: reading one
    from a damaged heap may never end.
    """
    found: dict[str, Any] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        found[path] = None
        for name in item.attrs.keys() - _BOOKKEEPING - _FOLLOWING:
            in_heap = item.attrs.get_id(name).dtype.kind == "O" and name != "system_json"
            value = None if in_heap else get_attributes(item, [name])[name]
            found[f"{path}@{name}"] = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    with in_one_line(columns.path):
        top = columns.file[group]
        visit(group, top)
        top.visititems(lambda name, item: visit(f"{group}/{name}", item))
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
