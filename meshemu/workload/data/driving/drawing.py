"""Draw scenes at random: a road, vehicles in its lanes, houses and trees beside it, a traffic light."""

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.data.driving.world import (
    CAR,
    LANE_WIDTH_M,
    STRUCTURE,
    TRUCK,
    VEHICLE,
    Cuboids,
    Floats,
    Road,
    Scene,
    join,
)

__all__ = ["draw_scene"]

VEHICLE_SLOT_M = 14.0  # longer than the longest truck and its shift, so that vehicles of a lane never touch
VEHICLE_SHARE = 0.35  # of the slots of a lane
TRUCK_SHARE = 0.2  # of the vehicles
STRUCTURE_SLOT_M = 13.0
STRUCTURE_SHARE = 0.6
LIGHT_SHARE = 0.8  # of the scenes

PALETTE = np.array([
    (0.75, 0.10, 0.10), (0.10, 0.20, 0.65), (0.92, 0.92, 0.92), (0.12, 0.12, 0.14),
    (0.55, 0.58, 0.62), (0.90, 0.70, 0.10), (0.10, 0.45, 0.35), (0.80, 0.40, 0.10),
])  # fmt: skip
GLASS, CARGO, BRICK, LEAVES, BARK, POLE = np.array([
    (0.14, 0.18, 0.24), (0.82, 0.80, 0.76), (0.62, 0.46, 0.36), (0.14, 0.36, 0.14), (0.34, 0.25, 0.16),
    (0.16, 0.16, 0.17),
])  # fmt: skip
LAMPS = np.array([(1.0, 0.12, 0.08), (1.0, 0.78, 0.05), (0.10, 0.95, 0.35)])

VEHICLE_PARTS = np.array([
    [[-0.50, 0.50, 1.00, 0.12, 0.60], [-0.36, 0.22, 0.86, 0.60, 1.00]],  # car: body, cabin
    [[-0.50, 0.22, 1.00, 0.15, 1.00], [0.25, 0.50, 0.94, 0.08, 0.72]],  # truck: cargo, cab
])  # fmt: skip
"""Per class and part, in shares of the vehicle's box: rear, front, width, bottom, top."""


def draw_scene(seed: int, number: int) -> Scene:
    """Scene `number` >= 0 of `seed`: it depends on these two alone."""
    draw = _Uniforms(seed, number)
    share = draw.between(0.0, 1.0, 10)
    lanes_right, lanes_left = 1 + int(2 * share[0]), 1 + int(2 * share[1])
    ego_lane = int(lanes_right * share[2])
    road = Road(
        divider_m=(ego_lane + 0.5) * LANE_WIDTH_M + 0.8 * float(share[3] - 0.5),
        slope=0.12 * float(share[4] - 0.5),
        curvature_per_m=0.016 * float(share[5] - 0.5),
        lanes_right=lanes_right,
        lanes_left=lanes_left,
        dash_phase_m=8.0 * float(share[6]),
    )
    vehicles = _vehicles(road, lanes_right, lanes_left, ego_lane, draw)
    light, lamp_parts = _traffic_light(road, draw)
    parts = join([_vehicle_parts(vehicles), _structures(road, draw), lamp_parts])
    brightness, sun = 0.7 + 0.4 * float(share[7]), (1.4 * float(share[8] - 0.5), 1.4 * float(share[9] - 0.5))
    return Scene(road, vehicles, parts, light, brightness, sun)


class _Uniforms:
    """Uniform numbers from the raw words of a counter-based generator, whose stream numpy guarantees."""

    def __init__(self, seed: int, number: int) -> None:
        self._generator = np.random.Philox(key=np.array([seed % 2**64, number % 2**64], dtype=np.uint64))

    def between(self, low: float, high: float, *shape: int) -> Floats:
        """An array of `shape` in [low, high); 53 bits each."""
        count = int(np.prod(shape))
        words = self._generator.random_raw(count) >> np.uint64(11)
        return (low + (high - low) * (words.astype(np.float64) * 2.0**-53)).reshape(shape)


def _vehicles(road: Road, lanes_right: int, lanes_left: int, ego_lane: int, draw: _Uniforms) -> Cuboids:
    """Cars and trucks in the slots of all lanes, but for the ego car's own; oncoming ones look at it."""
    lanes = np.arange(-lanes_right, lanes_left)
    slots = np.arange(-3, 5)
    lane, slot = (grid.ravel() for grid in np.meshgrid(lanes, slots, indexing="ij"))
    n = len(lane)
    free = ~((lane == -1 - ego_lane) & (slot == 0))
    share = draw.between(0.0, 1.0, 8, n)
    taken = free & (share[0] < VEHICLE_SHARE)
    is_truck = share[1] < TRUCK_SHARE
    x = slot * VEHICLE_SLOT_M + 4.0 * (share[2] - 0.5)
    lateral = (lane + 0.5) * LANE_WIDTH_M + 0.6 * (share[3] - 0.5)
    smallest = np.where(is_truck[:, None], (7.0, 2.3, 2.8), (4.0, 1.75, 1.4))
    largest = np.where(is_truck[:, None], (10.0, 2.5, 3.5), (5.0, 2.0, 1.8))
    size = smallest + (largest - smallest) * share[4:7].T
    heading = road.heading(x) * np.where(lane < 0, 1.0, -1.0)[:, None]
    centre = np.stack([x, road.divider_y_m(x) + lateral, size[:, 2] / 2], axis=1)
    colour = PALETTE[(len(PALETTE) * share[7]).astype(np.int64)]
    kind = np.where(is_truck, TRUCK, CAR)
    return Cuboids(centre[taken], size[taken] / 2, heading[taken], colour[taken], kind[taken])


def _vehicle_parts(vehicles: Cuboids) -> Cuboids:
    """Two cuboids for each vehicle, within its box: a car's body and cabin, a truck's cargo and cab."""
    rear, front, width, bottom, top = np.moveaxis(VEHICLE_PARTS[vehicles.kind - 1], 2, 0)  # (n, 2) each
    length_m, width_m, height_m = 2 * vehicles.half_m[:, :1], 2 * vehicles.half_m[:, 1:2], 2 * vehicles.half_m[:, 2:]
    along = (rear + front) / 2 * length_m
    heading = np.repeat(vehicles.heading[:, None, :], 2, axis=1)
    x = vehicles.centre_m[:, :1] + along * heading[..., 0]
    y = vehicles.centre_m[:, 1:2] + along * heading[..., 1]
    centre = np.stack([x, y, (bottom + top) / 2 * height_m], axis=-1)
    half = np.stack([(front - rear) / 2 * length_m, width / 2 * width_m, (top - bottom) / 2 * height_m], axis=-1)
    is_truck = (vehicles.kind == TRUCK)[:, None]
    colour = np.stack(
        [np.where(is_truck, CARGO, vehicles.colour), np.where(is_truck, vehicles.colour, GLASS)], axis=1
    )
    n = 2 * len(vehicles)
    return Cuboids(
        centre.reshape(n, 3), half.reshape(n, 3), heading.reshape(n, 2), colour.reshape(n, 3), np.full(n, VEHICLE)
    )


def _structures(road: Road, draw: _Uniforms) -> Cuboids:
    """Houses and trees along both edges of the road."""
    side, slot = (grid.ravel() for grid in np.meshgrid([-1, 1], np.arange(-4, 6), indexing="ij"))
    n = len(side)
    share = draw.between(0.0, 1.0, 6, n)
    taken, is_house = share[0] < STRUCTURE_SHARE, share[1] < 0.5
    x = slot * STRUCTURE_SLOT_M + 4.0 * (share[2] - 0.5)
    size = share[3:].T
    lateral = np.where(side < 0, road.right_edge_m, road.left_edge_m) + side * (5.5 + 3.0 * size[:, 0])
    centre = np.stack([x, road.divider_y_m(x) + lateral, np.zeros(n)], axis=1)
    heading = road.heading(x)
    tint = 0.75 + 0.5 * size[:, 1:2]

    def stack(rows: NDArray[np.bool_], half: Floats, bottom: float, colour: Floats) -> Cuboids:
        raised = centre + np.stack([0 * x, 0 * x, bottom + half[:, 2]], axis=1)
        shade = np.clip(tint * colour, 0, 1)
        return Cuboids(raised[rows], half[rows], heading[rows], shade[rows], np.full(int(rows.sum()), STRUCTURE))

    house = np.stack([2.5 + 2.5 * size[:, 1], 2.5 + size[:, 2], 2.0 + 2.5 * size[:, 0]], axis=1)
    trunk = np.broadcast_to((0.25, 0.25, 1.0), (n, 3))
    crown = np.repeat(1.2 + 0.8 * size[:, 2:], 3, axis=1)
    return join([
        stack(taken & is_house, house, 0.0, BRICK),
        stack(taken & ~is_house, trunk, 0.0, BARK),
        stack(taken & ~is_house, crown, 2.0, LEAVES),
    ])


def _traffic_light(road: Road, draw: _Uniforms) -> tuple[int, Cuboids]:
    """(state, parts) of a light at the right edge ahead, or state 0 and nothing."""
    share = draw.between(0.0, 1.0, 3)
    state = 1 + int(3 * share[0])
    x = 9.0 + 11.0 * share[1:2]
    if share[2] >= LIGHT_SHARE:
        return 0, Cuboids(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, np.int64))
    y = float(road.divider_y_m(x)[0]) + road.right_edge_m - 1.0
    lamp_z = 4.6 - 0.8 * (state - 1)
    centre = np.array([(x[0], y, 1.3), (x[0], y, 3.8), (x[0] - 0.45, y, lamp_z)])
    half = np.array([(0.12, 0.12, 1.3), (0.4, 0.5, 1.3), (0.06, 0.36, 0.36)])
    colour = np.stack([POLE, POLE, LAMPS[state - 1]])
    return state, Cuboids(centre, half, np.tile((1.0, 0.0), (3, 1)), colour, np.full(3, STRUCTURE))
