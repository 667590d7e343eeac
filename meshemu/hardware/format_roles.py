"""Which number format values have by the role that they play, as a [formats] table or the argument `formats` says."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from meshemu.errors import InputError
from meshemu.hardware.number_formats import NumberFormat, format_named

__all__ = ["NONE", "Carried", "Formats", "RoleFormat", "formats_of"]

ROUNDINGS = ("nearest", "stochastic")
SLIDING = "sliding"


@dataclass(frozen=True)
class RoleFormat:
    """bias: of all tensors of the role, or None where each has one of its own that slides with its running maximum."""

    number_format: NumberFormat
    stochastic: bool = False
    bias: int | None = None

    @property
    def sliding(self) -> bool:
        """Whether the bias follows the running maximum."""
        return self.bias is None

    def as_table(self) -> dict[str, str | int]:
        """As a configuration gives it."""
        return {
            "format": self.number_format.name,
            "rounding": ROUNDINGS[self.stochastic],
            "bias": SLIDING if self.bias is None or self.number_format.fixed else self.bias,
        }

    def describe(self) -> str:
        """In words, for a remark."""
        rounding = "stochastic rounding" if self.stochastic else "rounded to nearest"
        if self.number_format.fixed:
            return f"{self.number_format.name}, {rounding}"
        bias = "bias of each tensor from its running maximum" if self.sliding else f"bias {self.bias}"
        return f"{self.number_format.name}, {rounding}, {bias}"


@dataclass(frozen=True)
class Carried:
    """How one collective carries terms of sums. key: of its running maximum; salt: of its random bits."""

    role: RoleFormat
    key: str
    salt: int


@dataclass(frozen=True)
class Formats:
    """The format of every role; None leaves values as they are computed.

    weights: parameters of two or more dims as operators read them; the optimizer keeps them as they are. activations,
    gradients: what operators of the forward and of the backward pass store, and the gradients of parameters once they
    are summed. communication: what messages carry. optimizer: state tensors after an update; second_moments: those of
    them that are never negative, as `optimizer` if not given.
    """

    weights: RoleFormat | None = None
    activations: RoleFormat | None = None
    gradients: RoleFormat | None = None
    communication: RoleFormat | None = None
    optimizer: RoleFormat | None = None
    second_moments: RoleFormat | None = None

    def __bool__(self) -> bool:
        """Whether any role has a format."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def as_table(self) -> dict[str, dict[str, str | int]]:
        """As a configuration gives them."""
        table = {name: role.as_table() for name, role in self.named().items()}
        if self.optimizer is not None and self.second_moments is None:
            table["second_moments"] = {"format": "fp32"}
        return table

    def named(self) -> dict[str, RoleFormat]:
        """Role -> format, for those that have one."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: role for name, role in given.items() if role is not None}


NONE = Formats()
"""Values stay as they are computed."""

ROLES = tuple(field.name for field in fields(Formats))


def formats_of(table: Mapping[str, Any] | None, section: str = "formats") -> Formats:
    """The formats that a table describes: role -> name, or table of `format`, `rounding` and `bias`.

    rounding: "nearest" (default) or "stochastic". bias: a whole number, or "sliding" (default). fp32 leaves values as
    they are.

    Raises:
        InputError: a role, name, key or bias is not valid, or an unsigned format would hold signed values.
    """
    if not isinstance(table, Mapping | None):
        raise InputError(f"{section} = {table!r}: should be a table of {', '.join(ROLES)}")
    roles = {}
    for role, given in (table or {}).items():
        if role not in ROLES:
            raise InputError(f"{section}.{role}: unknown role; valid are {', '.join(ROLES)}")
        roles[role] = _role(given, f"{section}.{role}")
        if not roles[role].number_format.signed and role != "second_moments":
            name = roles[role].number_format.name
            raise InputError(f"{section}.{role} = {name!r}: it has no sign, and only second_moments are never negative")
    if "optimizer" in roles:
        roles.setdefault("second_moments", roles["optimizer"])
    return Formats(**{role: found for role, found in roles.items() if found.number_format.name != "fp32"})


def _role(given: Any, key: str) -> RoleFormat:
    options = dict(given) if isinstance(given, Mapping) else {"format": given}
    unknown = [name for name in options if name not in ("format", "rounding", "bias")]
    if unknown:
        raise InputError(f"{key}.{unknown[0]}: unknown key; valid are format, rounding, bias")
    if "format" not in options:
        raise InputError(f"{key}.format is missing")
    number_format = format_named(options["format"], f"{key}.format" if isinstance(given, Mapping) else key)
    rounding, bias = options.get("rounding", ROUNDINGS[0]), options.get("bias", SLIDING)
    if rounding not in ROUNDINGS:
        raise InputError(f"{key}.rounding = {rounding!r} is not one of {', '.join(ROUNDINGS)}")
    if bias != SLIDING:
        number_format.checked_bias(bias, f"{key}.bias")
    fixed = number_format.biases[0] if number_format.fixed else None
    return RoleFormat(number_format, rounding == "stochastic", fixed if bias == SLIDING else bias)
