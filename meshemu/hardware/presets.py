"""The machines that can be asked for by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from meshemu.errors import InputError
from meshemu.hardware import cerebras, dojo, nvidia
from meshemu.hardware.figure import Figures
from meshemu.hardware.level import Level

__all__ = ["Preset", "preset", "preset_names"]


@dataclass(frozen=True)
class Preset:
    """A machine: its nest of levels (inner first), its figures, and the choices where published figures conflict.

    devices: the granularity unless the user names another. device_costs: further figures, by granularity.
    alternatives: choice -> option -> the figures that it sets; the first option of each is the default.
    """

    name: str
    summary: str
    devices: str
    levels: tuple[Level, ...]
    figures: Figures
    device_costs: Mapping[str, Figures]
    alternatives: Mapping[str, Mapping[str, Figures]]


def preset_names() -> tuple[str, ...]:
    """Names that `System.preset` takes."""
    return tuple(_PRESETS)


def preset(name: str) -> Preset:
    """The preset of this name; InputError lists the names if there is none."""
    if name not in _PRESETS:
        raise InputError(f"unknown system {name!r}; the presets are {', '.join(_PRESETS)}")
    return _PRESETS[name]


def _dojo_tiles(name: str, summary: str, figures: Figures) -> Preset:
    levels = (dojo.NODES, dojo.DIES, dojo.TILES)
    return Preset(name, summary, "die", levels, figures, dojo.DEVICE_COSTS, dojo.ALTERNATIVES)


def _wse2(name: str, summary: str, devices: str, dies: Figures) -> Preset:
    figures = (*cerebras.DIE, *dies)
    return Preset(name, summary, devices, cerebras.LEVELS, figures, cerebras.DEVICE_COSTS, cerebras.ALTERNATIVES)


def _a100(name: str, summary: str, nodes: int) -> Preset:
    figures = nvidia.gpus(nodes)
    return Preset(name, summary, "gpu", nvidia.LEVELS, figures, nvidia.DEVICE_COSTS, nvidia.ALTERNATIVES)


_TRAYS = "trays of 2 x 3 tiles side by side"
_STRIP = "trays joined along their 3-tile sides, since interface processors take the 2-tile sides"

_PRESETS = {
    known.name: known
    for known in (
        Preset(
            "dojo-die", "Tesla Dojo D1 die, nodes as devices", "node",
            (dojo.NODES, dojo.DIES), (*dojo.DIE, *dojo.SINGLE_DIE),
            dojo.DEVICE_COSTS, dojo.ALTERNATIVES,
        ),
        _dojo_tiles(
            "dojo-tile", "Tesla Dojo training tile",
            dojo.tiles(1, 1, "the preset", "given"),
        ),
        _dojo_tiles(
            "dojo-tray", "Tesla Dojo system tray",
            dojo.tiles(2, 3, "SemiAnalysis, Tesla Dojo: Unique Packaging and Chip Design, 2021", "published"),
        ),
        _dojo_tiles(
            "dojo-cabinet", "Tesla Dojo cabinet, two trays",
            dojo.tiles(3, 4, _TRAYS, "inferred", f"12 tiles are published, their grid is not: {_STRIP}"),
        ),
        _dojo_tiles(
            "dojo-exapod", "Tesla Dojo ExaPOD, ten cabinets",
            dojo.tiles(3, 40, _TRAYS, "inferred", f"120 tiles are published, their grid is not: {_STRIP}"),
        ),
        _wse2("wse2-die", "one die of a Cerebras WSE-2, blocks of 22 x 22 cores", "block", cerebras.ONE_DIE),
        _wse2("wse2-wafer", "Cerebras WSE-2, dies of 154 x 66 cores", "die", cerebras.WAFER),
        _a100("a100-8", "NVIDIA DGX A100, 8 GPUs behind a switch", 1),
        _a100("a100-24", "3 NVIDIA DGX A100, 24 GPUs, a network between", 3),
    )
}
