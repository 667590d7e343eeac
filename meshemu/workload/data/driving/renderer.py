"""What a camera sees of a scene: sky, ground with lane markings, and shaded cuboids by ray casting.

Every number of a pixel comes from operations that IEEE 754 rounds correctly, one at a time, so a part of an image has
the same bits as in the whole.
"""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.data.driving.cameras import Camera
from meshemu.workload.data.driving.world import LANE_WIDTH_M, Cuboids, Floats, Road, Scene, join

__all__ = ["NOTHING", "first_hits", "render"]

NOTHING = -1
"""Index of a hit where a ray meets no cuboid."""

NEAR_M = 0.1
HAZE_M = 150.0
MARKING_HALF_M = 0.12
SHOULDER_M = 0.4
DASH_M = 4.0

CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
EDGES = np.array([(a, a + step) for step in (1, 2, 4) for a in range(8) if not a & step])
"""Of a cuboid: the signs of its corners, and the pairs of corners that its edges join."""

ZENITH, HORIZON = np.array((0.35, 0.55, 0.85)), np.array((0.80, 0.86, 0.92))
GRASS, ASPHALT = np.array((0.30, 0.42, 0.20)), np.array((0.30, 0.30, 0.32))
WHITE, YELLOW = np.array((0.95, 0.95, 0.95)), np.array((0.95, 0.75, 0.15))


def render(scenes: Sequence[Scene], camera: Camera, rows: range, cols: range) -> NDArray[np.float32]:
    """Pixels (rows, cols) of the camera's image of each scene, (scenes, 3, rows, cols), colours from 0 to 1."""
    image = np.empty((3, len(scenes), len(rows), len(cols)))
    down = camera.rows(rows)
    n_sky = int((camera.directions(np.zeros(1), down)[2] >= 0).sum())  # no roll: the horizon is a row
    image[:, :, :n_sky] = _sky(down[:n_sky] - _horizon(camera))[:, None, :, None]
    image[:, :, n_sky:] = _ground(_roads(scenes), camera, camera.columns(cols), down[n_sky:])
    index, face = first_hits([scene.parts for scene in scenes], camera, rows, cols)
    seen = index != NOTHING
    image[:, seen] = np.concatenate([_shades(scene) for scene in scenes])[index[seen], face[seen]].T
    brightness = np.array([scene.brightness for scene in scenes])
    exposed = np.clip(image * brightness[:, None, None], 0, 1)
    return np.asarray(np.moveaxis(exposed, 1, 0), np.float32)


def first_hits(
    worlds: Sequence[Cuboids], camera: Camera, rows: range, cols: range
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each world and pixel (worlds, rows, cols) the first cuboid that its ray meets, and the face that it meets.

    Cuboids count through all worlds; NOTHING where there is none. Faces: 0 rear, 1 front, 2 right, 3 left, 4 bottom,
    5 top.
    """
    cuboids = join(worlds)
    world = np.repeat(np.arange(len(worlds)), [len(group) for group in worlds])
    which, row, col = _candidates(cuboids, camera, rows, cols)
    depth, face = _enter(cuboids, camera, which, camera.rows(rows)[row], camera.columns(cols)[col])
    hit = np.flatnonzero(np.isfinite(depth))
    order = hit[np.argsort(-depth[hit], kind="stable")]  # far to near: the last one written stays
    index = np.full((len(worlds), len(rows), len(cols)), NOTHING)
    faces = np.zeros_like(index)
    pixel = world[which[order]], row[order], col[order]
    index[pixel], faces[pixel] = which[order], face[order]
    return index, faces


def _candidates(
    cuboids: Cuboids, camera: Camera, rows: range, cols: range
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(cuboid, row, column) of every pixel in the bounding box of every cuboid's image, counted from rows and cols."""
    along, across, up = np.moveaxis(CORNERS * cuboids.half_m[:, None, :], 2, 0)
    cos, sin = cuboids.heading[:, :1], cuboids.heading[:, 1:]
    corners = cuboids.centre_m[:, None, :] + np.stack([along * cos - across * sin, along * sin + across * cos, up], -1)
    outline = _clip(corners, camera)
    depth, col, row = camera.project(outline)
    seen = depth >= NEAR_M
    visible = seen.any(axis=1)

    def bounds(position: Floats, pixels: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        low = np.floor(np.where(seen, position, np.inf).min(axis=1)) - 1
        high = np.ceil(np.where(seen, position, -np.inf).max(axis=1)) + 1
        clipped = (np.clip(edge, pixels.start, pixels.stop).astype(np.int64) - pixels.start for edge in (low, high))
        first, last = clipped
        return first, last

    (top, bottom), (left, right) = bounds(row, rows), bounds(col, cols)
    width = right - left
    count = np.where(visible, (bottom - top) * width, 0)
    which = np.repeat(np.arange(len(cuboids)), count)
    place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    width_of = width[which]
    return which, top[which] + place // width_of, left[which] + place % width_of


def _clip(corners: Floats, camera: Camera) -> Floats:
    """Corners (n, 8, 3) of cuboids, and where their edges cross the plane just before the camera: (n, 8 + 12, 3).

    An edge that does not cross it gives its first corner again.
    """
    first, second = corners[:, EDGES[:, 0]], corners[:, EDGES[:, 1]]
    depth, _, _ = camera.project(corners)
    depth_first, depth_second = depth[:, EDGES[:, 0]], depth[:, EDGES[:, 1]]
    crosses = (depth_first < NEAR_M) != (depth_second < NEAR_M)
    share = (1.0001 * NEAR_M - depth_first) / np.where(crosses, depth_second - depth_first, 1.0)
    share = np.where(crosses, np.clip(share, 0, 1), 0.0)[..., None]
    return np.concatenate([corners, first + (second - first) * share], axis=1)


def _enter(
    cuboids: Cuboids, camera: Camera, which: NDArray[np.int64], down: Floats, right: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """(depth, face) at which each ray enters cuboid `which`; infinite depth where it passes by.

    The slab method: a ray is inside a cuboid where it is between all three pairs of parallel faces.
    """
    x, y, z = camera.directions(right, down)
    cos, sin = cuboids.heading[which, 0], cuboids.heading[which, 1]
    from_x, from_y, from_z = (camera.position_m[i] - cuboids.centre_m[which, i] for i in range(3))
    origin = (from_x * cos + from_y * sin, from_y * cos - from_x * sin, from_z)
    direction = (x * cos + y * sin, y * cos - x * sin, z)
    enter, leave = np.full(len(which), -np.inf), np.full(len(which), np.inf)
    face = np.zeros(len(which), np.int64)
    for axis in range(3):
        half = cuboids.half_m[which, axis]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = (-half - origin[axis]) / direction[axis], (half - origin[axis]) / direction[axis]
        near, far = np.minimum(low, high), np.maximum(low, high)
        face = np.where(near > enter, 2 * axis + (direction[axis] < 0), face)
        enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return np.where((enter <= leave) & (enter > NEAR_M), enter, np.inf), face


def _shades(scene: Scene) -> Floats:
    """Colour (n, 6, 3) of every face of every part: the sun from one side, the sky from above."""
    cos, sin = scene.parts.heading[:, 0], scene.parts.heading[:, 1]
    sun_x, sun_y = scene.sun
    along, across = cos * sun_x + sin * sun_y, cos * sun_y - sin * sun_x
    nothing, full = np.zeros(len(cos)), np.ones(len(cos))
    towards = np.stack([-along, along, -across, across, nothing - 0.4, full], axis=1)
    light = 0.6 + 0.4 * np.clip(towards, -1, 1)
    return np.clip(scene.parts.colour[:, None, :] * light[:, :, None], 0, 1)


def _roads(scenes: Sequence[Scene]) -> Road:
    """The roads of all scenes as one, whose fields broadcast against (scenes, rows, cols)."""
    fields = np.array([astuple(scene.road) for scene in scenes]).T[:, :, None, None]
    return Road(*fields)


def _horizon(camera: Camera) -> float:
    """Tangent downwards of the row that looks at the horizon."""
    return -camera.forward[2] / camera.down[2]


def _sky(above: Floats) -> Floats:
    """Colours (3, n) at tangents `above` <= 0 under the horizon: paler towards it."""
    return _mix(HORIZON[:, None], ZENITH[:, None], np.clip(-above / 0.7, 0, 1))


def _mix(colour: Floats, other: Floats, share: Floats) -> Floats:
    """`share` of the other colour, in place of that of the first; colours in dim 0."""
    return np.asarray(colour + (other - colour) * share)


def _ground(road: Road, camera: Camera, right: Floats, down: Floats) -> Floats:
    """Colours (3, scenes, rows, cols) of rays that fall to the ground, each averaged over the width of its pixel."""
    x, y, z = camera.directions(right[None, :], down[:, None])
    depth_m = camera.position_m[2] / -z
    x_m, y_m = camera.position_m[0] + depth_m * x, camera.position_m[1] + depth_m * y
    lateral = road.lateral_m(x_m, y_m)
    pixel_m = depth_m / camera.focal_px
    inside_m = np.minimum(road.left_edge_m - lateral, lateral - road.right_edge_m)
    on_road = np.clip((inside_m + SHOULDER_M) / pixel_m + 0.5, 0, 1)
    line = road.nearest_line(lateral)
    away = np.abs(lateral - line * LANE_WIDTH_M)
    covered = np.minimum(away + pixel_m / 2, MARKING_HALF_M) - np.maximum(away - pixel_m / 2, -MARKING_HALF_M)
    marking = np.clip(covered / pixel_m, 0, 1)
    is_dashed = (line != 0) & (line != -road.lanes_right) & (line != road.lanes_left)
    gap = np.floor((x_m + road.dash_phase_m) / DASH_M) % 2 == 1
    marking = np.where(is_dashed & gap, 0.0, marking)
    grass, asphalt, white, yellow, horizon = (c[:, None, None, None] for c in (GRASS, ASPHALT, WHITE, YELLOW, HORIZON))
    surface = _mix(grass, asphalt, on_road)
    painted = _mix(surface, np.where(line == 0, yellow, white), marking)
    return _mix(painted, horizon, depth_m / (depth_m + HAZE_M))
