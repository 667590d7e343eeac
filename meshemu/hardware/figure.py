"""One number of a machine, with where it comes from and how far to trust it; and how a user's text replaces it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from meshemu.errors import InputError
from meshemu.units import (
    bandwidth_bytes_per_s,
    energy_fj_per_bit,
    flops_per_s,
    format_bandwidth,
    format_bytes,
    format_energy_per_bit,
    format_flops,
    format_power,
    format_time,
    frequency_hz,
    power_w,
    size_bytes,
    time_ps,
)

__all__ = ["GRADES", "Figure", "FigureValue", "Figures", "grid_figure"]

FigureValue = int | tuple[int, int]

GRADES = {
    "published": "stated by the maker, or in a report of the maker's talk that was read",
    "second-hand": "from notes on a publication that was not read itself",
    "recollected": "remembered from the maker's talk or data sheet, in no source that was read",
    "inferred": "follows from published figures by arithmetic",
    "assumed": "not published: a plausible value, to be swept",
    "overridden": "replaced by the user",
    "given": "part of the definition of the system",
}


@dataclass(frozen=True)
class Figure:
    """A value in base units.

    unit: B/s, ps, B, FLOP/s, Hz, W, fJ/bit, FLOP/clk, count, flag (0 or 1), or grid for a pair (rows, cols).
    """

    value: FigureValue
    unit: str
    source: str
    grade: str
    note: str = ""

    @property
    def number(self) -> int:
        """The value, where it is one number."""
        if isinstance(self.value, tuple):
            raise TypeError(f"{self.value} is a grid, not a number")
        return self.value

    @property
    def shape(self) -> tuple[int, int]:
        """The value, where it is a grid (rows, cols)."""
        if isinstance(self.value, int):
            raise TypeError(f"{self.value} is a number, not a grid")
        return self.value

    def text(self) -> str:
        """The value for people, with its unit."""
        if isinstance(self.value, tuple):
            return f"{self.value[0]} x {self.value[1]}"
        if self.unit in _FORMATS:
            return _FORMATS[self.unit](self.value)
        if self.unit == "flag":
            return "yes" if self.value else "no"
        return str(self.value) if self.unit == "count" else f"{self.value} {self.unit}"

    def with_value(self, value: FigureValue) -> "Figure":
        """This figure with another value in the same unit."""
        return replace(self, value=value)

    def overridden(self, key: str, value: object) -> "Figure":
        """This figure with the value that the user gives, text or number; InputError names `key` if it does not fit."""
        parsed = _PARSERS[self.unit](value, key)
        note = f"instead of {self.text()} ({self.source})"
        return replace(self, value=parsed, source="user", grade="overridden", note=note)


Figures = tuple[tuple[str, Figure], ...]
"""Figures with their keys, in order."""


def grid_figure(rows: object, cols: object, source: str, grade: str, note: str = "", *, key: str = "grid") -> Figure:
    """The figure of a grid of rows x cols units."""
    return Figure(_grid([rows, cols], key), "grid", source, grade, note)


def _grid(value: object, key: str) -> FigureValue:
    parts: object = value.replace("x", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise InputError(f"{key} = {value!r} is not a grid (for example [3, 40])")
    rows, cols = (_whole(part, key) for part in parts)
    return rows, cols


def _count(value: object, key: str) -> FigureValue:
    return _whole(value, key)


def _flag(value: object, key: str) -> FigureValue:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("yes", "true", True):
        return 1
    if word in ("no", "false", False):
        return 0
    raise InputError(f"{key} = {value!r} is neither true nor false")


def _whole(value: object, key: str) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise InputError(f"{key} = {value!r} is not a whole number of at least 1")
    return int(number)


def _per_clock(unit: str) -> Callable[[object, str], FigureValue]:
    def parse(value: object, key: str) -> FigureValue:
        text = value.strip().removesuffix(unit).strip() if isinstance(value, str) else value
        try:
            return _whole(text, key)
        except InputError:
            raise InputError(f"{key} = {value!r} is not a number per clock (for example '512 {unit}')") from None

    return parse


_PARSERS: dict[str, Callable[[object, str], FigureValue]] = {
    "B/s": lambda value, key: bandwidth_bytes_per_s(value, key=key),
    "ps": lambda value, key: time_ps(value, key=key),
    "B": lambda value, key: size_bytes(value, key=key),
    "FLOP/s": lambda value, key: flops_per_s(value, key=key),
    "Hz": lambda value, key: frequency_hz(value, key=key),
    "W": lambda value, key: power_w(value, key=key),
    "fJ/bit": lambda value, key: energy_fj_per_bit(value, key=key),
    "FLOP/clk": _per_clock("FLOP/clk"),
    "count": _count,
    "flag": _flag,
    "grid": _grid,
}


def _format_hz(value: int) -> str:
    return format_flops(value).replace("FLOP/s", "Hz")


_FORMATS: dict[str, Callable[[int], str]] = {
    "B/s": format_bandwidth,
    "ps": format_time,
    "B": format_bytes,
    "FLOP/s": format_flops,
    "Hz": _format_hz,
    "W": format_power,
    "fJ/bit": format_energy_per_bit,
}
