"""The router of a device in back-pressure mode, as a value: flits, buffers, virtual channels, pipeline, credits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from meshemu.errors import InputError
from meshemu.units import format_bytes, format_time, frequency_hz, size_bytes, time_ps

__all__ = ["MOST_VIRTUAL_CHANNELS", "LocalPorts", "Router", "Switching"]

Switching = Literal["wormhole", "virtual_cut_through"]
LocalPorts = Literal["one", "per_link"]

MOST_VIRTUAL_CHANNELS = 32  # of a link, all message classes together: they are the bits of one word
PS_PER_S = 10**12


@dataclass(frozen=True, kw_only=True, init=False)
class Router:
    """An input-queued virtual-channel router, the same at every device; what it does is described in `network.credit`.

    flit_bytes: unit of flow control ("64 B"). virtual_channels: of each link, for each of `message_classes` classes.
    buffer_flits: room behind each virtual channel; None: on each link what lets one virtual channel fill it, that is
    the round trip of a credit (with "virtual_cut_through" and a packet).
    pipeline_cycles: from the arrival of a flit until the router has put it on a free link, the cycle on the link
    included. clock: of the cycles ("2 GHz"), stored in hertz; None: one flit per cycle on the fastest link.
    credit_latency: from when a flit leaves a buffer until its credit can be used ("2 ns"), stored in ps; None: the
    latency of the link and one cycle. switching: whether a packet moves on when there is room for a flit ("wormhole")
    or for all of it. local_ports: how a device injects and ejects where the hardware states no bandwidth for it: one
    flit per cycle each way ("one"), or as much for every link that it has ("per_link").

    Raises InputError for a value that is none or out of range.
    """

    flit_bytes: int
    buffer_flits: int | None
    virtual_channels: int
    message_classes: int
    pipeline_cycles: int
    clock: int | None
    credit_latency: int | None
    switching: Switching
    local_ports: LocalPorts

    def __init__(
        self,
        *,
        flit_bytes: object = 64,
        buffer_flits: int | None = None,
        virtual_channels: int = 4,
        message_classes: int = 1,
        pipeline_cycles: int = 1,
        clock: object = None,
        credit_latency: object = None,
        switching: Switching = "wormhole",
        local_ports: LocalPorts = "one",
    ) -> None:
        channels = _count("virtual_channels", virtual_channels)
        classes = _count("message_classes", message_classes)
        if channels * classes > MOST_VIRTUAL_CHANNELS:
            raise InputError(
                f"virtual_channels x message_classes = {channels} x {classes} = {channels * classes}: "
                f"a link has at most {MOST_VIRTUAL_CHANNELS}"
            )
        values = {
            "flit_bytes": size_bytes(flit_bytes, key="flit_bytes"),
            "buffer_flits": None if buffer_flits is None else _count("buffer_flits", buffer_flits),
            "virtual_channels": channels,
            "message_classes": classes,
            "pipeline_cycles": _count("pipeline_cycles", pipeline_cycles),
            "clock": None if clock is None else _clock_hz(clock),
            "credit_latency": None if credit_latency is None else _positive_ps("credit_latency", credit_latency),
            "switching": _one_of("switching", switching, get_args(Switching)),
            "local_ports": _one_of("local_ports", local_ports, get_args(LocalPorts)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def cycle_ps(self) -> int | None:
        """A cycle of the clock, rounded to whole picoseconds; None without a clock."""
        return None if self.clock is None else round(PS_PER_S / self.clock)

    def as_table(self) -> dict[str, Any]:
        """What was chosen, by keyword argument, in base units: `Router(**router.as_table())` is this router again."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def describe(self) -> str:
        """The router in a few words: "flits of 64 B, 4 virtual channels with buffers that fill their link, ..."."""
        flits = self.buffer_flits
        room = "buffers that fill their link" if flits is None else f"buffers of {_plural(flits, 'flit')}"
        classes = f" in each of {self.message_classes} message classes" if self.message_classes > 1 else ""
        words = [
            f"flits of {format_bytes(self.flit_bytes)}",
            f"{_plural(self.virtual_channels, 'virtual channel')}{classes} with {room}",
            self.switching.replace("_", " "),
            f"{_plural(self.pipeline_cycles, 'cycle')} a router",
        ]
        if self.clock is not None:
            words.append(f"cycles of {format_time(self.cycle_ps or 0)}")
        if self.credit_latency is not None:
            words.append(f"credits after {format_time(self.credit_latency)}")
        if self.local_ports == "per_link":
            words.append("local ports per link")
        return ", ".join(words)

    def packet_flits(self, packet_bytes: int) -> int:
        """Flits of the longest packet. Raises InputError if a packet cannot hold a flit, or a buffer not a packet."""
        flits = packet_bytes // self.flit_bytes
        if flits < 1:
            raise InputError(f"packet_bytes = {packet_bytes} < flit_bytes = {self.flit_bytes}: a packet holds a flit")
        if self.switching == "virtual_cut_through" and self.buffer_flits is not None and self.buffer_flits < flits:
            raise InputError(
                f"buffer_flits = {self.buffer_flits} < {flits} = packet_bytes / flit_bytes = {packet_bytes} / "
                f"{self.flit_bytes}: with virtual_cut_through a buffer holds a packet"
            )
        return flits


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key} = {value!r} is not a whole number of at least 1")
    return value


def _positive_ps(key: str, value: object) -> int:
    time = time_ps(value, key=key)
    if time < 1:
        raise InputError(f"{key} = {value!r} must be more than zero (for example '1 ns')")
    return time


def _clock_hz(value: object) -> int:
    clock = frequency_hz(value, key="clock")
    if clock > PS_PER_S:
        raise InputError(f"clock = {value!r}: a cycle is shorter than the 1 ps that meshemu counts in")
    return clock


def _one_of(key: str, value: object, valid: tuple[str, ...]) -> object:
    if value not in valid:
        raise InputError(f"{key} = {value!r} is not one of {', '.join(valid)}")
    return value
