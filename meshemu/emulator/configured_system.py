"""The system that a configuration describes."""

from meshemu.config import Config
from meshemu.hardware import System

__all__ = ["system_of"]


def system_of(settings: Config) -> System:
    """The hardware that the [system] section describes."""
    section = settings.system
    if section.grid is not None:
        grid = section.grid
        system = System.grid(rows=grid.rows, cols=grid.cols, bandwidth=grid.bandwidth, latency=grid.latency)
    else:
        system = System.preset(section.preset or "dojo-tile", devices=section.devices, figures=section.figures)
    return system.override(section.overrides) if section.overrides else system
