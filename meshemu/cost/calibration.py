"""Measured times of ops, from a table that `meshemu calibrate` or the user makes.

A CSV file with the columns of `COLUMNS`, one row for each op and shape: its op class and number format, its shape as in
a Program ("1x128x64x256x8192x16384", several products joined by "+", or the elements of a vector op), flops, bytes read
and written, and the time that it took. An op of a Program that agrees with a row in all of them takes that time; the
time of another whose op class is in the table is the model's times the median ratio of measured to model in that class.
"""

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path

from meshemu.errors import InputError
from meshemu.program.ir import Shape

__all__ = ["COLUMNS", "Calibration", "Measured", "read_calibration", "shape_text", "write_calibration"]


@dataclass(frozen=True)
class Measured:
    """One op on one block, and the time that it took."""

    op_class: str
    number_format: str
    shape: Shape
    flops: int
    read_bytes: int
    write_bytes: int
    time_ps: int

    @property
    def key(self) -> tuple[object, ...]:
        """What an op must agree with to take this time."""
        return self.op_class, self.number_format, self.shape, self.flops, self.read_bytes, self.write_bytes


@dataclass(frozen=True)
class Calibration:
    """A table and where it comes from."""

    origin: str
    rows: tuple[Measured, ...]

    def __str__(self) -> str:
        return self.origin


COLUMNS = tuple(field.name for field in fields(Measured))


def read_calibration(path: str | Path) -> Calibration:
    """The table in a file. Raises InputError that names the file, the row and the column at fault."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text in UTF-8"
        raise InputError(f"calibration {path}: cannot be read: {reason}") from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"calibration {path}: lacks the columns {', '.join(missing)}; it has {', '.join(COLUMNS)}")
    rows = tuple(_measured(row, f"calibration {path}: row {number}") for number, row in enumerate(reader, start=1))
    if not rows:
        raise InputError(f"calibration {path}: holds no rows")
    first: dict[tuple[object, ...], int] = {}
    for number, row in enumerate(rows, start=1):
        if first.setdefault(row.key, number) != number:
            raise InputError(f"calibration {path}: row {number} measures the same as row {first[row.key]}")
    return Calibration(str(path), rows)


def write_calibration(path: str | Path, rows: tuple[Measured, ...]) -> None:
    """Write the table as a file that `read_calibration` reads. Raises InputError if that cannot be."""
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in rows:
                values = {field: getattr(row, field) for field in COLUMNS} | {"shape": shape_text(row.shape)}
                writer.writerow(values.values())
    except OSError as error:
        raise InputError(f"calibration {path}: cannot be written: {error.strerror}") from None


def shape_text(shape: Shape) -> str:
    """A shape as text: "4096" or "1x128x64x256x8192x16384+..."."""
    return "+".join("x".join(map(str, part)) for part in shape)


def _measured(row: dict[str, str | None], where: str) -> Measured:
    whole = ("flops", "read_bytes", "write_bytes", "time_ps")
    numbers = {name: _whole(row[name], f"{where}: {name}") for name in whole}
    if not row["op_class"]:
        raise InputError(f"{where}: op_class is empty")
    return Measured(row["op_class"], row["number_format"] or "", _shape(row["shape"] or "", where), **numbers)


def _shape(text: str, where: str) -> Shape:
    if not text:
        return ()
    parts = tuple(tuple(_whole(word, f"{where}: shape") for word in part.split("x")) for part in text.split("+"))
    if {len(part) for part in parts} not in ({6}, {1}) or (len(parts[0]) == 1 and len(parts) > 1):
        raise InputError(f"{where}: shape = {text!r} is neither a number of elements nor products of six numbers")
    return parts


def _whole(text: str | None, what: str) -> int:
    if text is None or not text.strip().isdecimal():
        raise InputError(f"{what} = {text!r} is not a whole number of at least 0")
    return int(text)
