"""Pinhole cameras around the ego car: which way each pixel looks, and where a point falls in the image."""

import math
from dataclasses import dataclass

import numpy as np

from meshemu.workload.data.driving.world import Floats

__all__ = ["Camera", "surround"]

HEIGHT_M = 1.6
PITCH_DOWN = math.radians(3)
OVERLAP = 1.25  # of neighbouring fields of view
WIDEST = math.radians(110)


@dataclass(frozen=True)
class Camera:
    """A camera without roll. forward, right, down: unit vectors of its axes; right is horizontal.

    focal_px: focal length in pixels; the principal point is the middle of the image.
    """

    position_m: tuple[float, float, float]
    forward: tuple[float, float, float]
    right: tuple[float, float, float]
    down: tuple[float, float, float]
    focal_px: float
    height_px: int
    width_px: int

    def columns(self, cols: range) -> Floats:
        """Tangents to the right of the middles of pixel columns."""
        return np.asarray((np.arange(cols.start, cols.stop) + 0.5 - self.width_px / 2) / self.focal_px, np.float64)

    def rows(self, rows: range) -> Floats:
        """Tangents downwards of the middles of pixel rows."""
        return np.asarray((np.arange(rows.start, rows.stop) + 0.5 - self.height_px / 2) / self.focal_px, np.float64)

    def directions(self, columns: Floats, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """x, y and z of the ray through tangents (columns, rows), broadcast; along the camera's axis it is 1 long."""
        x, y, z = (
            f + columns * r + rows * d for f, r, d in zip(self.forward, self.right, self.down, strict=True)
        )
        return x, y, z

    def project(self, points_m: Floats) -> tuple[Floats, Floats, Floats]:
        """(depth in m, column, row) of points (..., 3); pixel (0, 0) covers [0, 1) x [0, 1).

        Columns and rows mean something only where the depth is positive.
        """
        offset = [points_m[..., i] - self.position_m[i] for i in range(3)]
        depth, right, down = (
            offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]
            for axis in (self.forward, self.right, self.down)
        )
        scale = self.focal_px / np.where(depth > 0, depth, 1.0)
        return depth, right * scale + self.width_px / 2, down * scale + self.height_px / 2


def surround(count: int, height_px: int, width_px: int) -> list[Camera]:
    """`count` cameras on the roof of the ego car, evenly spaced to the left of the first, which looks forwards."""
    field = min(WIDEST, OVERLAP * 2 * math.pi / count)
    focal_px = width_px / 2 / math.tan(field / 2)
    cameras = []
    for i in range(count):
        yaw = 2 * math.pi * i / count
        cos, sin = math.cos(yaw), math.sin(yaw)
        level, fall = math.cos(PITCH_DOWN), math.sin(PITCH_DOWN)
        cameras.append(
            Camera(
                position_m=(1.2 * cos, 0.6 * sin, HEIGHT_M),
                forward=(cos * level, sin * level, -fall),
                right=(sin, -cos, 0.0),
                down=(-cos * fall, -sin * fall, -level),
                focal_px=focal_px,
                height_px=height_px,
                width_px=width_px,
            )
        )
    return cameras
