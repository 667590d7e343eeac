"""Text with units to integers in base units, once, at load; and integers back to readable text.

Base units: byte/s, picosecond, byte, FLOP/s, hertz, watt, femtojoule per bit. Bytes are B (rates and sizes in bits are
refused, so that a factor of eight can never slip in); prefixes are decimal (k, M, G, T, P, E) or, for bytes, binary
(Ki, Mi, Gi, Ti).
Parsing is exact for up to 15 significant digits: the decimal that was written is scaled as a fraction.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from numbers import Integral, Real

from quantiphy import QuantiPhyError, Quantity

from meshemu.errors import InputError

__all__ = [
    "bandwidth_bytes_per_s",
    "energy_fj_per_bit",
    "flops_per_s",
    "format_bandwidth",
    "format_bytes",
    "format_energy",
    "format_energy_per_bit",
    "format_flops",
    "format_power",
    "format_time",
    "frequency_hz",
    "power_w",
    "size_bytes",
    "time_ps",
]

_LARGEST = 2**62
_PREFIXES = {-5: "f", -4: "p", -3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?(?![\d.])", re.IGNORECASE)


@dataclass(frozen=True)
class _Dimension:
    """A kind of quantity: how it is called, an example, the units that it may carry and their size in base units."""

    name: str
    example: str
    units: tuple[str, ...]
    scale: int = 1
    zero: bool = False


_BANDWIDTH = _Dimension("a bandwidth", "50 GB/s", ("B/s",))
_TIME = _Dimension("a time", "500 ns", ("s",), scale=10**12, zero=True)
_SIZE = _Dimension("a size", "1 MiB", ("B",))
_FLOPS = _Dimension("a compute rate", "362 TFLOP/s", ("FLOP/s", "FLOPS"))
_FREQUENCY = _Dimension("a frequency", "2 GHz", ("Hz",))
_POWER = _Dimension("a power", "15 kW", ("W",))
_ENERGY_PER_BIT = _Dimension("an energy per bit", "1 pJ/bit", ("J/bit",), scale=10**15, zero=True)


def bandwidth_bytes_per_s(value: object, *, key: str = "bandwidth") -> int:
    """Bytes per second of "50 GB/s" or of a plain number of B/s; InputError names `key` if it is not a bandwidth."""
    return _parse(value, _BANDWIDTH, key)


def time_ps(value: object, *, key: str = "time") -> int:
    """Picoseconds of "500 ns" or of a plain number of ps, zero included; InputError names `key` if it is not a time."""
    return _parse(value, _TIME, key)


def size_bytes(value: object, *, key: str = "size") -> int:
    """Bytes of "1 MiB", "64 kB" or of a plain number of bytes; InputError names `key` if it is not a size."""
    return _parse(value, _SIZE, key)


def flops_per_s(value: object, *, key: str = "compute rate") -> int:
    """FLOP/s of "362 TFLOP/s" or of a plain number of FLOP/s; InputError names `key` if it is not a compute rate."""
    return _parse(value, _FLOPS, key)


def frequency_hz(value: object, *, key: str = "frequency") -> int:
    """Hertz of "2 GHz" or of a plain number of Hz; InputError names `key` if it is not a frequency."""
    return _parse(value, _FREQUENCY, key)


def power_w(value: object, *, key: str = "power") -> int:
    """Watts of "15 kW" or of a plain number of W; InputError names `key` if it is not a power."""
    return _parse(value, _POWER, key)


def energy_fj_per_bit(value: object, *, key: str = "energy") -> int:
    """Femtojoules per bit of "1 pJ/bit" or of a plain number of fJ/bit, zero included; InputError names `key` if it is
    not an energy per bit.
    """
    return _parse(value, _ENERGY_PER_BIT, key)


def format_time(value_ps: int) -> str:
    """Virtual time for people: 24_471_520 -> "24.47 us"."""
    return _render(Decimal(int(value_ps)).scaleb(-12), "s")


def format_bytes(value_bytes: int) -> str:
    """A size for people, decimal prefixes: 1_048_576 -> "1.049 MB"."""
    return _render(Decimal(int(value_bytes)), "B")


def format_bandwidth(value_bytes_per_s: int) -> str:
    """A bandwidth for people: 900_000_000_000 -> "900 GB/s"."""
    return _render(Decimal(int(value_bytes_per_s)), "B/s")


def format_flops(value_flops_per_s: int) -> str:
    """A compute rate for people: 362_496_000_000_000 -> "362.5 TFLOP/s"."""
    return _render(Decimal(int(value_flops_per_s)), "FLOP/s")


def format_power(value_w: int) -> str:
    """A power for people: 15_000 -> "15 kW"."""
    return _render(Decimal(int(value_w)), "W")


def format_energy(value_j: float) -> str:
    """An energy for people: 0.00125 -> "1.25 mJ"."""
    return _render(Decimal(repr(float(value_j))), "J")


def format_energy_per_bit(value_fj: int) -> str:
    """An energy per bit for people: 1_500 -> "1.5 pJ/bit"."""
    return _render(Decimal(int(value_fj)).scaleb(-15), "J/bit")


def _render(value: Decimal, unit: str) -> str:
    """Four significant digits with the decimal prefix that leaves one to three of them before the point."""
    rounded = Decimal(f"{value:.3e}")
    if rounded == 0:
        return f"0 {unit}"
    thousands = max(-5, min(6, rounded.adjusted() // 3))
    digits = format(rounded.scaleb(-3 * thousands), "f")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {_PREFIXES[thousands]}{unit}"


def _parse(value: object, dimension: _Dimension, key: str) -> int:
    wrong = f"{key} = {value!r} is not {dimension.name} (for example {dimension.example!r})"
    exact = _from_text(value, dimension) if isinstance(value, str) else _from_number(value)
    if exact is None or exact < 0:
        raise InputError(wrong)
    if exact == 0 and not dimension.zero:
        raise InputError(f"{key} = {value!r} must be more than zero (for example {dimension.example!r})")
    rounded = round(exact)
    if rounded == 0 and exact > 0:
        raise InputError(f"{key} = {value!r} is too small: it rounds to zero in the unit that meshemu counts in")
    if rounded > _LARGEST:
        raise InputError(f"{key} = {value!r} is too large (for example {dimension.example!r})")
    return rounded


def _from_number(value: object) -> Fraction | None:
    """A plain number is in the base unit already."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return Fraction(int(value)) if isinstance(value, Integral) else Fraction(repr(float(value)))
    except (OverflowError, ValueError):  # infinite, not a number
        return None


def _from_text(text: str, dimension: _Dimension) -> Fraction | None:
    number = _NUMBER.match(text.strip())
    if number is None:
        return None
    try:
        digits = format(Decimal(number.group()), "f") if abs(Decimal(number.group()).adjusted()) < 100 else ""
    except InvalidOperation:
        return None
    unit = text.strip()[number.end() :].strip()
    if not digits or not unit:
        return Fraction(digits) if digits else None
    try:  # QuantiPhy gives a number with an exponent no prefix, so it is handed the digits written out
        quantity = Quantity(f"{digits} {unit}", binary=True)
    except QuantiPhyError:
        return None
    if quantity.units not in dimension.units:
        return None
    return Fraction(repr(float(quantity))) * dimension.scale
