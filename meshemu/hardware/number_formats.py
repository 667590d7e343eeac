"""Floating-point number formats as data: how many bits, which bias, and what becomes of numbers that do not fit.

Sources: IEEE 754-2019 for fp16 and fp32; "A Guide to Tesla's Configurable Floating Point Formats & Arithmetic" for
CFloat8 and CFloat16 (its SHP and UHP). docs/number-formats.md says what of it is published and what is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, ldexp
from types import MappingProxyType

from meshemu.errors import InputError

__all__ = ["FORMATS", "NumberFormat", "format_named"]


@dataclass(frozen=True)
class NumberFormat:
    """A code is sign (if `signed`), exponent field E and mantissa field m; p = mantissa_bits.

    E > 0 stands for (1 + m / 2**p) * 2**(E - bias), E = 0 for m / 2**p * 2**(1 - bias): gradual underflow, or zero if
    the format has no denormals. specials: the largest E is kept for infinities and NaN, as in IEEE 754; otherwise every
    code is a number, and what is too large (infinities and NaN included) becomes the largest one. biases: least and
    greatest bias that can be chosen.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    biases: tuple[int, int]
    signed: bool = True
    denormals: bool = True
    specials: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def size_bytes(self) -> int:
        """Bytes of a code."""
        return self.bits // 8

    @property
    def fixed(self) -> bool:
        """Whether there is but one bias."""
        return self.biases[0] == self.biases[1]

    @property
    def top_field(self) -> int:
        """The largest exponent field that stands for numbers."""
        return (1 << self.exponent_bits) - 1 - int(self.specials)

    def largest(self, bias: int) -> float:
        """The largest number."""
        return ldexp(2.0 - 2.0**-self.mantissa_bits, self.top_field - bias)

    def smallest_normal(self, bias: int) -> float:
        """The smallest number with a full mantissa."""
        return ldexp(1.0, 1 - bias)

    def fitting_bias(self, maximum: float) -> int:
        """The greatest bias at which `maximum` does not exceed the largest number; the least if it does at all.

        A greater bias is more precise near zero, so this one fits best. maximum: finite, not negative; 0 asks nothing.
        """
        least, greatest = self.biases
        if maximum == 0 or self.fixed:
            return greatest
        fraction, exponent = frexp(maximum)  # fraction in [1/2, 1)
        beyond = fraction > 1.0 - 2.0 ** -(self.mantissa_bits + 1)
        return min(max(self.top_field + 1 - exponent - int(beyond), least), greatest)

    def checked_bias(self, bias: int, key: str) -> int:
        """`bias`, if the format can have it. Raises InputError that names `key` otherwise."""
        least, greatest = self.biases
        if isinstance(bias, bool) or not isinstance(bias, int) or not least <= bias <= greatest:
            valid = f"a bias is a whole number from {least} to {greatest}"
            if self.fixed:
                valid = f"its bias is always {least}"
            raise InputError(f"{key} = {bias!r}: of {self.name}, {valid}")
        return bias


_CONFIGURABLE = (0, 63)

FORMATS: Mapping[str, NumberFormat] = MappingProxyType({
    entry.name: entry
    for entry in (
        NumberFormat("fp32", 8, 23, (127, 127), specials=True),
        NumberFormat("bf16", 8, 7, (127, 127), specials=True),
        NumberFormat("fp16", 5, 10, (15, 15), specials=True),
        NumberFormat("cfloat8_1_4_3", 4, 3, _CONFIGURABLE),
        NumberFormat("cfloat8_1_5_2", 5, 2, _CONFIGURABLE),
        NumberFormat("cfloat16_shp", 5, 10, _CONFIGURABLE),
        NumberFormat("cfloat16_uhp", 6, 10, (31, 31), signed=False, denormals=False),
    )
})  # fmt: skip
"""Name -> format."""


def format_named(name: object, key: str) -> NumberFormat:
    """The format of this name. Raises InputError that names `key` and lists the names otherwise."""
    if not isinstance(name, str) or name not in FORMATS:
        raise InputError(f"{key} = {name!r} is no number format; there are {', '.join(FORMATS)}")
    return FORMATS[name]
