"""What is true of a scene, on grids around the ego car: objects, lanes and voxels.

Grids count cells forwards along x, to the left along y and upwards along z.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.data.driving.world import LANE_WIDTH_M, ROAD, STRUCTURE, VEHICLE, Cuboids, Floats, Road, Scene

__all__ = ["BOX_NUMBERS", "LANE_CLASSES", "Axis", "lane_map", "object_maps", "occupancy"]

BOX_NUMBERS = ("offset_x", "offset_y", "z_m", "log_length", "log_width", "log_height", "sin_heading", "cos_heading")
"""Offsets are from the middle of the cell to the centre of the object, in cells; sizes are logarithms of metres."""

LANE_CLASSES = ("off road", "road", "marking")


@dataclass(frozen=True)
class Axis:
    """`cells` equal cells from `low_m` to `high_m`."""

    low_m: float
    high_m: float
    cells: int

    @property
    def cell_m(self) -> float:
        """Size of a cell."""
        return (self.high_m - self.low_m) / self.cells

    @property
    def centres_m(self) -> Floats:
        """Middles of the cells."""
        return np.asarray(self.low_m + (np.arange(self.cells) + 0.5) * self.cell_m, np.float64)

    def place(self, position_m: Floats) -> Floats:
        """Position in cells: cell i covers [i, i + 1)."""
        return (position_m - self.low_m) / self.cell_m


def object_maps(vehicles: Cuboids, x: Axis, y: Axis) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Class (X, Y) of the object whose centre is in each cell, 0 for none, and its box (BOX_NUMBERS, X, Y).

    Of several objects in one cell the nearest to the ego car counts.
    """
    classes = np.zeros((x.cells, y.cells), np.int64)
    boxes = np.zeros((len(BOX_NUMBERS), x.cells, y.cells), np.float32)
    place_x, place_y = x.place(vehicles.centre_m[:, 0]), y.place(vehicles.centre_m[:, 1])
    inside = (place_x >= 0) & (place_x < x.cells) & (place_y >= 0) & (place_y < y.cells)
    distance = vehicles.centre_m[:, 0] ** 2 + vehicles.centre_m[:, 1] ** 2
    far_to_near = np.argsort(-distance, kind="stable")
    chosen = far_to_near[inside[far_to_near]]
    i, j = np.floor(place_x[chosen]).astype(np.int64), np.floor(place_y[chosen]).astype(np.int64)
    numbers = [
        place_x[chosen] - i - 0.5,
        place_y[chosen] - j - 0.5,
        vehicles.centre_m[chosen, 2],
        *np.log(2 * vehicles.half_m[chosen]).T,
        vehicles.heading[chosen, 1],
        vehicles.heading[chosen, 0],
    ]
    classes[i, j] = vehicles.kind[chosen]
    boxes[:, i, j] = np.stack(numbers)
    return classes, boxes


def lane_map(road: Road, x: Axis, y: Axis) -> NDArray[np.int64]:
    """Index (X, Y) in LANE_CLASSES of each cell's middle; a marking is as wide as a cell, and dashes are joined."""
    lateral = road.lateral_m(x.centres_m[:, None], y.centres_m[None, :])
    marking = np.abs(lateral - road.nearest_line(lateral) * LANE_WIDTH_M) <= y.cell_m / 2
    return np.where(marking, 2, _on_road(road, lateral).astype(np.int64))


def occupancy(scene: Scene, x: Axis, y: Axis, z: Axis) -> NDArray[np.int64]:
    """What fills each voxel (X, Y, Z): FREE, ROAD in the layer of the ground, VEHICLE or STRUCTURE.

    A voxel is filled by a cuboid that its middle is in; cuboids count as at least one voxel thick, so none is lost.
    """
    voxels = np.zeros((x.cells, y.cells, z.cells), np.int64)
    grid_x, grid_y = x.centres_m[:, None], y.centres_m[None, :]
    ground = np.floor(z.place(np.zeros(1)))[0]
    if 0 <= ground < z.cells:
        voxels[:, :, int(ground)] = np.where(_on_road(scene.road, scene.road.lateral_m(grid_x, grid_y)), ROAD, 0)
    parts = scene.parts
    half = np.maximum(parts.half_m, np.array([max(x.cell_m, y.cell_m)] * 2 + [z.cell_m]) / 2)
    cos, sin = parts.heading.T[:, :, None, None]
    from_x, from_y = grid_x - parts.centre_m[:, 0, None, None], grid_y - parts.centre_m[:, 1, None, None]
    along, across = np.abs(from_x * cos + from_y * sin), np.abs(from_y * cos - from_x * sin)
    footprint = (along <= half[:, 0, None, None]) & (across <= half[:, 1, None, None])
    layers = np.abs(z.centres_m - parts.centre_m[:, 2:]) <= half[:, 2:]
    for kind in (VEHICLE, STRUCTURE):
        there = np.flatnonzero((parts.kind == kind) & footprint.any(axis=(1, 2)))
        voxels[(footprint[there, :, :, None] & layers[there, None, None, :]).any(axis=0)] = kind
    return voxels


def _on_road(road: Road, lateral_m: Floats) -> NDArray[np.bool_]:
    return np.asarray((lateral_m <= road.left_edge_m) & (lateral_m >= road.right_edge_m))
