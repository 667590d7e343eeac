"""Machines as nested levels of units, each number with its source."""

from meshemu.hardware.describe import describe_system, list_systems
from meshemu.hardware.device import DeviceSpec
from meshemu.hardware.figure import Figure
from meshemu.hardware.level import Level
from meshemu.hardware.presets import preset_names
from meshemu.hardware.router import Router
from meshemu.hardware.system import System

__all__ = ["DeviceSpec", "Figure", "Level", "Router", "System", "describe_system", "list_systems", "preset_names"]
