"""The arithmetic rate of a device in a number format, also one that the device does not list."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from meshemu.errors import InputError
from meshemu.hardware.device import DeviceSpec

__all__ = ["bits_of", "flops_per_s", "is_supported"]


_FAMILIES: Mapping[str, str] = MappingProxyType({"cfloat8_1_4_3": "cfp8", "cfloat8_1_5_2": "cfp8"})
"""Number format -> the name under which devices list the rate of all formats of its kind."""


def bits_of(number_format: str) -> int:
    """Bits per element: the first number in the name ("bf16", "cfp8", "int64", "float8_e4m3fn"), 8 for "bool".

    Raises:
        InputError: the name holds no number.
    """
    if number_format == "bool":
        return 8
    match = re.search(r"\d+", number_format)
    if match is None:
        raise InputError(f"number format '{number_format}': its name holds no number of bits")
    return int(match.group())


def flops_per_s(device: DeviceSpec, number_format: str, *, matrix: bool) -> int:
    """Peak rate of the matrix or the vector unit in a number format.

    A format that the unit does not list runs as the narrowest listed one that is at least as wide, the slowest if
    there are several. Matrix ops in a format wider than the matrix unit's run on the vector unit. A format wider than
    all (fp64 on Dojo) runs at the slowest rate of the vector unit: an assumption that the report names.

    Raises:
        InputError: the device lists no rate at all.
    """
    units = [device.matrix_flops_per_s, device.vector_flops_per_s] if matrix else [device.vector_flops_per_s]
    for rates in units:
        rate = _rate(rates, number_format)
        if rate is not None:
            return rate
    listed = [*device.vector_flops_per_s.values()] or [*device.matrix_flops_per_s.values()]
    if not listed:
        raise InputError(f"device {device.name} lists no arithmetic rate for any number format")
    return min(listed)


def is_supported(device: DeviceSpec, number_format: str) -> bool:
    """Whether the device lists the format by its name, on either unit."""
    names = {number_format, _FAMILIES.get(number_format, number_format)}
    return not names.isdisjoint({*device.matrix_flops_per_s, *device.vector_flops_per_s})


def _rate(rates: Mapping[str, int], number_format: str) -> int | None:
    """Rate of the format or of its stand-in, None if all listed are narrower."""
    for name in (number_format, _FAMILIES.get(number_format, number_format)):
        if name in rates:
            return rates[name]
    bits = bits_of(number_format)
    wide = [(bits_of(name), rate) for name, rate in rates.items() if bits_of(name) >= bits]
    return min(wide)[1] if wide else None
