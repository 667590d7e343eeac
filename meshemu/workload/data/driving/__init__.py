"""Driving scenes: a small world, cameras that render it, and labels."""

from meshemu.workload.data.driving.scenes import DrivingScenes, driving_scenes

__all__ = ["DrivingScenes", "driving_scenes"]
