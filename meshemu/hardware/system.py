"""A machine: nested levels of units, a figure for every number, and the granularity that makes its units devices.

    node -- noc -- node ...      in a die,    18 x 20
    die  -- die_edge -- die      in a tile,    5 x 5
    tile -- tile_edge -- tile    in the machine

The levels at and outside the granularity become the grid of devices; those inside it are added up into a DeviceSpec.
Nothing here knows a particular machine: presets.py does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from meshemu.errors import InputError
from meshemu.hardware.aggregate import device_spec, spec_figures
from meshemu.hardware.device import DeviceSpec
from meshemu.hardware.faults import (
    LinkEnds,
    Position,
    SlowLink,
    check_faults,
    parse_dead,
    parse_dead_links,
    parse_slow_links,
)
from meshemu.hardware.figure import Figure, Figures, grid_figure
from meshemu.hardware.level import Level
from meshemu.hardware.presets import preset
from meshemu.hardware.topology import WRAP_LINK, Z_PLANE_FIGURES, check_wrap, parse_wrap, parse_z_plane
from meshemu.units import bandwidth_bytes_per_s, time_ps

__all__ = ["System"]


@dataclass(frozen=True, kw_only=True)
class System:
    """One machine at one device granularity. Build it by `preset`, `grid` or `from_json`.

    levels: inner first; devices: the unit of one of them. dead: (row, col) of dead devices, None for the preset's own
    choice; dead_links: pairs of neighbouring devices between which both directed links are dead; slow_links: directed
    links (from, to, factor) whose bandwidth is divided by a factor. wrap: one of topology.WRAPS, which lines of devices
    are rings; z_plane: the edges of the mesh whose interface processors an Ethernet switch joins.
    InputError is raised where the figures do not fit together.
    """

    name: str
    devices: str
    device_name: str
    levels: tuple[Level, ...]
    entries: Figures
    dead: tuple[Position, ...] | None = None
    dead_links: tuple[LinkEnds, ...] = ()
    slow_links: tuple[SlowLink, ...] = ()
    wrap: str = "none"
    z_plane: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        units = [level.unit for level in self.levels]
        if self.devices not in units:
            valid = ", ".join(units)
            raise InputError(f"devices = {self.devices!r} is not a unit of {self.name}; its units are {valid}")
        for inner, outer in zip(self.levels[: self._index], self.levels[1:], strict=False):
            rows, cols = self.figure(inner.grid).shape
            if self._live_units(inner, outer) > rows * cols:
                raise InputError(
                    f"{outer.unit}.{inner.grid} = {self._live_units(inner, outer)} > {inner.grid} = {rows} x {cols}"
                )
        self._check_switches()
        self._check_topology()
        check_faults(self.rows, self.cols, self.dead_devices(), self.dead_links, self.slow_links, self.wrap)

    @classmethod
    def preset(cls, name: str, devices: str | None = None, figures: Mapping[str, str] | None = None) -> System:
        """A machine by name, with `devices` as granularity and a choice among conflicting published figures.

        Example: System.preset("dojo-tile", devices="node", figures={"noc_width": "narrow"}). InputError lists the valid
        names, units, choices or options.
        """
        known = preset(name)
        chosen = dict(known.figures)
        for choice, option in (figures or {}).items():
            options = known.alternatives.get(choice)
            if options is None:
                raise InputError(f"unknown choice of figures {choice!r}; {name} has {', '.join(known.alternatives)}")
            if option not in options:
                raise InputError(f"figures.{choice} = {option!r} is not one of {', '.join(options)}")
            chosen.update(options[option])
        granularity = known.devices if devices is None else devices
        return cls(
            name=name,
            devices=granularity,
            device_name=f"{name} {granularity}",
            levels=known.levels,
            entries=(*chosen.items(), *known.device_costs.get(granularity, ())),
        )

    @classmethod
    def grid(
        cls, *, rows: int, cols: int, bandwidth: object, latency: object, device: DeviceSpec | None = None
    ) -> System:
        """A plain mesh: links of one class "link", injection without limit, and no compute cost unless `device`."""
        source, grade = "System.grid", "given"
        entries: list[tuple[str, Figure]] = [
            ("grid", grid_figure(rows, cols, source, grade, key="rows, cols")),
            ("link.bandwidth", Figure(bandwidth_bytes_per_s(bandwidth), "B/s", source, grade)),
            ("link.latency", Figure(time_ps(latency, key="latency"), "ps", source, grade)),
            ("mesh.multicast", Figure(0, "flag", source, grade)),
            ("mesh.reduction", Figure(0, "flag", source, grade)),
            ("mesh.combine", Figure(0, "ps", source, grade)),
        ]
        if device is not None:
            entries += spec_figures(device, "device", source, grade)
        return cls(
            name="grid",
            devices="device",
            device_name="" if device is None else device.name,
            levels=(Level("device", "grid", "link"),),
            entries=tuple(entries),
        )

    def override(self, values: Mapping[str, object]) -> System:
        """This machine with some figures replaced, by key: {"tile_edge.bandwidth": "9 TB/s", "tiles": [3, 40]}.

        Beside the keys of `figures()`, in coordinates of devices: dead = [[row, col], ...], dead_links = [[[row, col],
        [row, col]], ...] and slow_links = [[[row, col], [row, col], factor], ...]; wrap = "rows", "columns", "both" or
        "none", with figures of its own as wrap_edge.bandwidth and .latency; z_plane = true, false or a list of edges.
        InputError names the key that is unknown, with the valid ones, or that does not fit.
        """
        entries = dict(self.entries)
        dead, dead_links, slow_links = self.dead, self.dead_links, self.slow_links
        wrap = parse_wrap(values.get("wrap", self.wrap))
        z_plane = parse_z_plane(values["z_plane"]) if "z_plane" in values else self.z_plane
        if wrap == "none":
            entries = {key: figure for key, figure in entries.items() if not key.startswith(WRAP_LINK)}
        of_wrap = {f"{WRAP_LINK}.{name}": figure for name, figure in self._outermost_figures() if wrap != "none"}
        counted = self._counted_by_dead()
        for key, value in values.items():
            if key == "dead":
                dead = parse_dead(value)
            elif key == "dead_links":
                dead_links = parse_dead_links(value)
            elif key == "slow_links":
                slow_links = parse_slow_links(value)
            elif key in counted:
                raise InputError(f"{key} follows from the dead {self.devices}s here: give dead = [[row, col], ...]")
            elif key in entries or key in of_wrap:
                entries[key] = {**of_wrap, **entries}[key].overridden(key, value)
            elif key.startswith(f"{WRAP_LINK}.") and wrap == "none":
                raise InputError(f"{key}: there are no wrap-around links; set wrap = rows, columns or both")
            elif key not in ("wrap", "z_plane"):
                keys = dict.fromkeys([*entries, *of_wrap, "dead", "dead_links", "slow_links", "wrap", "z_plane"])
                raise InputError(f"unknown figure {key!r} of {self.name}; it has {', '.join(keys)}")
        return replace(
            self,
            entries=tuple(entries.items()),
            dead=dead,
            dead_links=dead_links,
            slow_links=slow_links,
            wrap=wrap,
            z_plane=z_plane,
        )

    def figure(self, key: str) -> Figure:
        """The figure of this key; KeyError if there is none.

        Wrap-around links have the figures of the outermost class of links where they were given none of their own.
        """
        figures = dict(self.entries)
        if key not in figures and key.startswith(f"{WRAP_LINK}."):
            key = key.replace(WRAP_LINK, self.levels[-1].link)
        return figures[key]

    def optional(self, key: str) -> int:
        """The number of a figure that a system may lack; 0 if it does."""
        try:
            return self.figure(key).number
        except KeyError:
            return 0

    def figures(self) -> list[tuple[str, Figure]]:
        """All figures with their keys, in order."""
        return list(self.entries)

    @property
    def outer_levels(self) -> tuple[Level, ...]:
        """The levels that make the grid of devices, that of the devices first."""
        return self.levels[self._index :]

    @property
    def switched(self) -> bool:
        """Whether devices are joined by switches instead of links to their neighbours."""
        return self.outer_levels[0].switched

    @property
    def power_w(self) -> tuple[str, int, int] | None:
        """(key, watts of one unit, number of units) of the largest units with a figure `<unit>.power`, or None."""
        figures = dict(self.entries)
        for level in reversed(self.levels):
            key = f"{level.unit}.power"
            if key in figures:
                return key, figures[key].number, self.count(level.grid) or 0
        return None

    @property
    def rows(self) -> int:
        """Rows of the grid of devices."""
        return prod(self.figure(level.grid).shape[0] for level in self.outer_levels)

    @property
    def cols(self) -> int:
        """Columns of the grid of devices."""
        return prod(self.figure(level.grid).shape[1] for level in self.outer_levels)

    @property
    def n_devices(self) -> int:
        """Positions of the grid of devices, dead ones included."""
        return self.rows * self.cols

    @property
    def n_alive(self) -> int:
        """Devices that work."""
        return self.n_devices - len(self.dead_devices())

    def count(self, grid: str) -> int | None:
        """Positions in the whole machine on the grids of this name ("dies"); None if it has no such level."""
        grids = [level.grid for level in self.levels]
        if grid not in grids:
            return None
        return prod(prod(self.figure(name).shape) for name in grids[grids.index(grid) :])

    @property
    def nodes_per_device(self) -> int:
        """Live units of the innermost level in one device."""
        pairs = zip(self.levels[: self._index], self.levels[1:], strict=False)
        return prod(self._live_units(inner, outer) for inner, outer in pairs)

    @property
    def device(self) -> DeviceSpec | None:
        """What one device can do, all live units inside it added up; None for a mesh without compute figures."""
        return device_spec(dict(self.entries), self.levels[0].unit, self.nodes_per_device, self.device_name)

    @property
    def injection_bandwidth_bytes_per_s(self) -> int | None:
        """What one device can inject, and eject, per second; None where that is not limited.

        Only the innermost unit has such a limit: what the many network interfaces of a larger device offer together
        is more than its edges carry (354 x 128 GB/s = 45 TB/s against 8 TB/s out of a die).
        """
        key = f"{self.levels[0].unit}.injection_bandwidth"
        figures = dict(self.entries)
        return figures[key].number if self._index == 0 and key in figures else None

    @property
    def injection_latency_ps(self) -> int:
        """From a device to the mesh, and back, where its injection bandwidth is limited; 0 without such a figure."""
        return self.optional(f"{self.levels[0].unit}.injection_latency")

    def dead_devices(self) -> tuple[Position, ...]:
        """(row, col) of the dead devices, sorted."""
        if self.dead is not None:
            return self.dead
        level = self.outer_levels[0]
        if not level.dead:
            return ()
        rows, cols = self.figure(level.grid).shape
        if (rows, cols) != level.dead_grid:
            which = f"which {level.unit}s are dead? Give dead = [[row, col], ...]"
            raise InputError(f"{level.grid} = {rows} x {cols}: {which}")
        return tuple(sorted(
            (base_row + row, base_col + col)
            for base_row in range(0, self.rows, rows)
            for base_col in range(0, self.cols, cols)
            for row, col in level.dead
        ))

    def to_json(self) -> str:
        """This machine as JSON text that `from_json` reads back exactly."""
        content = asdict(self)
        content["entries"] = [[key, asdict(figure)] for key, figure in self.entries]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> System:
        """The machine that `to_json` wrote; InputError for any other text."""
        try:
            content = _tupled(json.loads(text))
            entries = tuple((key, Figure(**figure)) for key, figure in content.pop("entries"))
            levels = tuple(Level(**level) for level in content.pop("levels"))
            return cls(entries=entries, levels=levels, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is not a stored system: {error!r}") from None

    @property
    def _index(self) -> int:
        return [level.unit for level in self.levels].index(self.devices)

    def _check_switches(self) -> None:
        kinds = {level.unit: level.switched for level in self.outer_levels}
        if len(set(kinds.values())) > 1:
            words = ", ".join(f"{unit}s by {'a switch' if switched else 'links'}" for unit, switched in kinds.items())
            raise InputError(f"{self.name} with {self.devices}s as devices: switch all levels or none, not {words}")
        if self.switched and self.slow_links:
            raise InputError(f"slow_links: the {self.devices}s of {self.name} are joined by switches")
        if self.switched and self.dead_links:
            raise InputError(f"dead_links: the {self.devices}s of {self.name} are joined by switches: give dead")

    def _check_topology(self) -> None:
        if self.switched and (self.wrap != "none" or self.z_plane):
            key = "z_plane" if self.wrap == "none" else "wrap"
            raise InputError(f"{key}: the {self.devices}s of {self.name} are joined by switches, there are no edges")
        check_wrap(self.wrap, self.rows, self.cols)
        missing = [key for key in Z_PLANE_FIGURES if key not in dict(self.entries)]
        if self.z_plane and missing:
            raise InputError(f"z_plane: {self.name} has no figure {missing[0]}, so that Ethernet joins no edges of it")
        if self.z_plane and self._index == 0:
            larger = self.levels[1].unit
            raise InputError(
                f"z_plane: an interface processor is at the edge of a whole {larger}, which is many devices where "
                f"{self.devices}s are the devices; set system.devices = {larger!r}"
            )

    def _outermost_figures(self) -> list[tuple[str, Figure]]:
        """Figures of the outermost class of links, by what they are of it ("bandwidth")."""
        link = f"{self.levels[-1].link}."
        return [(key.removeprefix(link), figure) for key, figure in self.entries if key.startswith(link)]

    def _live_units(self, inner: Level, outer: Level) -> int:
        """Live units of the inner level in one of the outer."""
        figures = dict(self.entries)
        key = f"{outer.unit}.{inner.grid}"
        return figures[key].number if key in figures else prod(figures[inner.grid].shape)

    def _counted_by_dead(self) -> set[str]:
        """Keys of live-unit counts that the positions of dead devices decide."""
        return {f"{outer.unit}.{self.outer_levels[0].grid}" for outer in self.outer_levels[1:2]}


def _tupled(value: Any) -> Any:
    """JSON has lists where the values here have tuples."""
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
