"""What a driving scene is made of: a road, and cuboids for everything solid.

Coordinates in metres (ISO 8855): the ego car stands at the origin and looks along x; y points left, z up from the
ground.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CAR",
    "FREE",
    "LANE_WIDTH_M",
    "LIGHT_STATES",
    "ROAD",
    "STRUCTURE",
    "TRUCK",
    "VEHICLE",
    "Cuboids",
    "Floats",
    "Road",
    "Scene",
    "join",
]

Floats = NDArray[np.float64]
Number = float | Floats

FREE, ROAD, VEHICLE, STRUCTURE = range(4)
"""What can fill a voxel."""

CAR, TRUCK = 1, 2
"""Classes of objects; 0 is none."""

LIGHT_STATES = ("none", "red", "yellow", "green")

LANE_WIDTH_M = 3.6


@dataclass(frozen=True)
class Road:
    """A bent road: its divider runs along y = divider_m + x slope + x^2 curvature_per_m / 2; traffic keeps right.

    Or several roads at once, where the fields are arrays that broadcast against x and y.
    """

    divider_m: Number
    slope: Number
    curvature_per_m: Number
    lanes_right: Number
    lanes_left: Number
    dash_phase_m: Number

    @property
    def left_edge_m(self) -> Number:
        """How far the left edge is from the divider."""
        return self.lanes_left * LANE_WIDTH_M

    @property
    def right_edge_m(self) -> Number:
        """How far the right edge is from the divider: negative."""
        return -self.lanes_right * LANE_WIDTH_M

    def nearest_line(self, lateral_m: Floats) -> Floats:
        """Which line is nearest: 0 the divider, +1, +2 ... those to its left, -1 ... those to its right."""
        return np.asarray(np.clip(np.rint(lateral_m / LANE_WIDTH_M), -self.lanes_right, self.lanes_left))

    def divider_y_m(self, x_m: Floats) -> Floats:
        """Where the divider is at `x_m`."""
        return self.divider_m + x_m * (self.slope + x_m * (self.curvature_per_m / 2))

    def lateral_m(self, x_m: Floats, y_m: Floats) -> Floats:
        """How far to the left of the divider a point is."""
        return y_m - self.divider_y_m(x_m)

    def heading(self, x_m: Floats) -> Floats:
        """(cos, sin) of the road's direction at `x_m`, stacked in a last dim."""
        tangent = self.slope + x_m * self.curvature_per_m
        cos = 1 / np.sqrt(1 + tangent * tangent)
        return np.stack([cos, tangent * cos], axis=-1)


@dataclass(frozen=True, eq=False)
class Cuboids:
    """n upright cuboids: centre (n, 3), half sizes along, across and up (n, 3), heading (cos, sin) (n, 2).

    colour: (n, 3) in [0, 1]. kind: (n,), what they are.
    """

    centre_m: Floats
    half_m: Floats
    heading: Floats
    colour: Floats
    kind: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of cuboids."""
        return len(self.kind)


@dataclass(frozen=True, eq=False)
class Scene:
    """One moment: vehicles are boxes of kind CAR or TRUCK, parts are what is seen, of a kind that fills voxels.

    light: index in LIGHT_STATES. brightness: of the day. sun: horizontal direction towards it.
    """

    road: Road
    vehicles: Cuboids
    parts: Cuboids
    light: int
    brightness: float
    sun: tuple[float, float]


def join(groups: Sequence[Cuboids]) -> Cuboids:
    """All cuboids of the groups, in their order."""
    return Cuboids(
        np.concatenate([g.centre_m for g in groups]),
        np.concatenate([g.half_m for g in groups]),
        np.concatenate([g.heading for g in groups]),
        np.concatenate([g.colour for g in groups]),
        np.concatenate([g.kind for g in groups]),
    )
