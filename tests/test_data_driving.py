"""Driving scenes: the same bits however they are asked for, images that obey geometry, labels that match them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.errors import InputError
from meshemu.workload.data import load_dataset
from meshemu.workload.data.driving import DrivingScenes, renderer
from meshemu.workload.data.driving.cameras import Camera, surround
from meshemu.workload.data.driving.drawing import draw_scene
from meshemu.workload.data.driving.labels import lane_map, object_maps, occupancy
from meshemu.workload.data.driving.renderer import NOTHING, first_hits, render
from meshemu.workload.data.driving.world import (
    LANE_WIDTH_M,
    LIGHT_STATES,
    ROAD,
    STRUCTURE,
    VEHICLE,
    Cuboids,
    Scene,
)

HEIGHT, WIDTH, CAMERAS = 20, 36, 3


def scenes(**args: Any) -> DrivingScenes:
    data = load_dataset("driving_scenes", {"image_size": [HEIGHT, WIDTH], "cameras": CAMERAS, "n_samples": 50, **args})
    assert isinstance(data.train, DrivingScenes)
    return data.train


def only(cuboids: Cuboids, rows: Any) -> Cuboids:
    return Cuboids(*(column[rows] for column in vars(cuboids).values()))


def contains(cuboids: Cuboids, points: np.ndarray) -> np.ndarray:
    """Whether each point (..., 3) lies in each cuboid (n): (..., n)."""
    offset = points[..., None, :] - cuboids.centre_m
    cos, sin = cuboids.heading.T
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    inside = np.stack([np.abs(along), np.abs(across), np.abs(offset[..., 2])], axis=-1) <= cuboids.half_m
    return inside.all(axis=-1)


@given(
    indices=st.lists(st.integers(0, 49), min_size=1, max_size=4),
    seed=st.integers(-3, 2**40),
    camera=st.integers(0, CAMERAS - 1),
    rows=st.tuples(st.integers(0, HEIGHT), st.integers(0, HEIGHT)).map(sorted),
    cols=st.tuples(st.integers(0, WIDTH), st.integers(0, WIDTH)).map(sorted),
)
@settings(max_examples=25, derandomize=True, deadline=None)
def test_a_part_has_the_bits_of_the_whole(
    indices: list[int], seed: int, camera: int, rows: list[int], cols: list[int]
) -> None:
    """Any samples, one camera, any rectangle of its image: as in the images of all 50 samples taken at once."""
    data = scenes(seed=seed)
    whole = data.images(indices)
    part = data.images(indices, [camera], range(*rows), range(*cols))
    assert torch.equal(part[:, 0], whole[:, camera, :, slice(*rows), slice(*cols)])
    alone = [data.take(np.array([i])) for i in indices]
    images, labels = data.take(np.array(indices))
    assert torch.equal(images, whole) and torch.equal(images, torch.cat([image for image, _ in alone]))
    for name, tensor in labels.items():
        assert torch.equal(tensor, torch.cat([label[name] for _, label in alone])), name


def test_small_images_rendered_together_are_as_if_alone() -> None:
    """More samples than are rendered at once."""
    data = scenes()
    together = data.images(range(50))
    assert torch.equal(together[::7], torch.cat([data.images([i]) for i in range(0, 50, 7)]))


def test_scenes_differ_by_number_and_seed_and_from_those_held_out() -> None:
    data = load_dataset("driving_scenes", {"image_size": [8, 16], "cameras": 1, "n_samples": 6, "n_test": 6})
    other = load_dataset("driving_scenes", {"image_size": [8, 16], "cameras": 1, "n_samples": 6, "seed": 1})
    images = [part.take(np.arange(6))[0] for part in (data.train, data.test, other.train)]
    assert len({tuple(image.flatten().tolist()) for group in images for image in group}) == 18
    larger = load_dataset("driving_scenes", {"image_size": [8, 16], "cameras": 1, "n_samples": 90})
    assert torch.equal(larger.test.take(np.arange(6))[0], images[1]), "the held-out scenes do not depend on n_samples"


def test_shapes_and_types() -> None:
    inputs, targets = scenes(bev_cells=[6, 5], voxels=[4, 3, 2]).take(np.array([4, 4, 1]))
    assert inputs.shape == (3, CAMERAS, 3, HEIGHT, WIDTH) and inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 1 and 0.3 < float(inputs.std()) < 2, "about standard"
    shapes = {name: (tuple(t.shape[1:]), t.dtype) for name, t in targets.items()}
    assert shapes == {
        "objects": ((6, 5), torch.int64), "boxes": ((8, 6, 5), torch.float32), "lanes": ((12, 10), torch.int64),
        "light": ((), torch.int64), "occupancy": ((4, 3, 2), torch.int64),
    }  # fmt: skip
    assert list(scenes(targets=["light", "boxes"]).labels([0])) == ["light", "boxes"], "only what is asked for"


@pytest.mark.parametrize("count, size", [(1, (1, 1)), (1, (7, 30)), (2, (30, 7)), (6, (16, 16))])
def test_any_rig_renders(count: int, size: tuple[int, int]) -> None:
    images = scenes(cameras=count, image_size=size).images([3, 8])
    assert images.shape == (2, count, 3, *size) and bool(torch.isfinite(images).all())


def test_the_first_camera_looks_forwards_and_the_second_to_the_left() -> None:
    front, left, _, right = surround(4, 40, 60)
    ahead, to_the_left = np.array([20.0, 1.0, 1.6]), np.array([0.0, 20.0, 5.0])
    depth, col, row = front.project(ahead)
    assert depth > 15 and 0 < col < 30 and 10 < row < 25, "a little to the left is in the left half of the image"
    depth, col, row = left.project(to_the_left)
    assert depth > 15 and row < 20, "up is towards row 0"
    assert right.project(to_the_left)[0] < 0, "behind it"


@given(camera=st.integers(0, 4), row=st.integers(0, 11), col=st.integers(0, 19), depth=st.floats(0.5, 50))
@settings(max_examples=30, derandomize=True)
def test_the_ray_of_a_pixel_goes_through_its_middle(camera: int, row: int, col: int, depth: float) -> None:
    rig = surround(5, 12, 20)[camera]
    direction = rig.directions(rig.columns(range(col, col + 1)), rig.rows(range(row, row + 1)))
    point = np.asarray(rig.position_m) + depth * np.concatenate(direction)
    assert np.allclose(rig.project(point), (depth, col + 0.5, row + 0.5))


def test_no_pixel_of_a_cuboid_is_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rays are tried only in the bounding boxes of the images: as if every ray were tried with every cuboid, walls that
    begin before a camera and end behind it included.
    """
    rows, cols = range(2, 14), range(1, 22)
    centres = np.array([(0.0, 4.0, 1.0), (2.0, -4.0, 1.0), (6.0, 1.0, 3.0)])
    halves, headings = np.array([(25.0, 0.5, 1.0), (0.6, 20.0, 2.0), (7.0, 9.0, 0.2)]), np.tile((0.8, 0.6), (3, 1))
    walls = Cuboids(centres, halves, headings, np.ones((3, 3)), np.full(3, STRUCTURE))
    worlds = [walls, *(draw_scene(1, number).parts for number in range(8))]
    boxed = [first_hits(worlds, camera, rows, cols) for camera in surround(4, 16, 24)]

    def everywhere(cuboids: Cuboids, *_: Any) -> tuple[np.ndarray, ...]:
        which, row, col = np.meshgrid(np.arange(len(cuboids)), np.arange(12), np.arange(21), indexing="ij")
        return which.ravel(), row.ravel(), col.ravel()

    monkeypatch.setattr(renderer, "_candidates", everywhere)
    for camera, (index, face) in zip(surround(4, 16, 24), boxed, strict=True):
        expected_index, expected_face = first_hits(worlds, camera, rows, cols)
        assert np.array_equal(index, expected_index) and np.array_equal(face, expected_face)


def test_rays_hit_what_they_come_to_first() -> None:
    """Against marching along each ray in steps of 5 cm, wherever the march sees one cuboid for three steps in a row."""
    steps = np.arange(0.12, 40, 0.05)[:, None]
    checked = 0
    for number in range(5):
        parts = draw_scene(5, number).parts
        camera = surround(4, 9, 15)[number % 4]
        index, face = first_hits([parts], camera, range(9), range(15))
        right, down = np.meshgrid(camera.columns(range(15)), camera.rows(range(9)))
        direction = np.stack(camera.directions(right, down), axis=-1)
        for row, col in np.ndindex(9, 15):
            points = np.asarray(camera.position_m) + steps * direction[row, col]
            inside = contains(parts, points)
            entered = np.flatnonzero(inside.any(axis=1))
            hit = index[0, row, col]
            if not len(entered):
                # The march stops at 40 m, and may step over a corner.
                grown = replace(parts, half_m=parts.half_m + 0.1)
                is_far = np.linalg.norm(parts.centre_m[hit]) > 30
                assert hit == NOTHING or is_far or contains(grown, points)[:, hit].any()
            elif inside[entered[0] : entered[0] + 3].all(axis=0).sum() == 1:
                assert inside[entered[0], hit]
                _check_face(parts, hit, face[0, row, col], points[entered[0]])
                checked += 1
    assert checked > 100


def _check_face(parts: Cuboids, hit: int, face: int, point: np.ndarray) -> None:
    """The point, just inside the cuboid, is nearest to its face `face` or to one that it has just come past."""
    offset, (cos, sin) = point - parts.centre_m[hit], parts.heading[hit]
    local = np.array([offset[0] * cos + offset[1] * sin, offset[1] * cos - offset[0] * sin, offset[2]])
    axis, sign = face // 2, (-1, 1)[face % 2]
    assert 0 <= parts.half_m[hit, axis] - sign * local[axis] < 0.08


def alone_in_view(scene: Scene, vehicle: int, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels that one vehicle covers if nothing else is there, and its corners' projections."""
    both = only(scene.parts, [2 * vehicle, 2 * vehicle + 1])
    whole, nothing = replace(scene, parts=both), replace(scene, parts=only(both, []))
    shown, empty = (render([s], camera, range(60), range(100))[0] for s in (whole, nothing))
    rows, cols = np.nonzero((shown != empty).any(axis=0))
    return rows, cols, both.centre_m


def test_boxes_are_where_the_vehicles_are_seen() -> None:
    """A box decoded from the labels, projected into the images, bounds the pixels that its vehicle alone changes."""
    data = scenes(bev_cells=[24, 16])
    x, y = data.cells
    cameras = surround(4, 60, 100)
    seen = 0
    for scene in data.scenes(range(6)):
        classes, boxes = object_maps(scene.vehicles, x, y)
        for i, j in zip(*np.nonzero(classes), strict=True):
            dx, dy, z, length, width, height, sin, cos = boxes[:, i, j].astype(np.float64)
            centre = np.array([x.low_m + (i + 0.5 + dx) * x.cell_m, y.low_m + (j + 0.5 + dy) * y.cell_m, z])
            vehicle = int(np.linalg.norm(scene.vehicles.centre_m - centre, axis=1).argmin())
            assert classes[i, j] == scene.vehicles.kind[vehicle]
            assert np.allclose(centre, scene.vehicles.centre_m[vehicle], atol=1e-4)
            signs = np.array([(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)])
            along, across, up = (signs * np.exp([length, width, height])).T
            corners = centre + np.stack([along * cos - across * sin, along * sin + across * cos, up], axis=1)
            for camera in cameras:
                depth, col, row = camera.project(corners)
                if depth.min() < 0.5:
                    continue
                rows, cols, _ = alone_in_view(scene, vehicle, camera)
                if not len(rows):
                    assert col.max() - col.min() < 3 or col.max() < 1 or col.min() > 99, "too small or out of view"
                    continue
                assert row.min() - 1 <= rows.min() and rows.max() <= row.max()
                assert col.min() - 1 <= cols.min() and cols.max() <= col.max()
                edges = np.clip([col.min(), col.max()], 0, 100)
                assert cols.max() - cols.min() + 1 >= 0.8 * (edges[1] - edges[0]) - 2, "and fills them"
                seen += 1
    assert seen > 15


def test_every_vehicle_in_the_space_is_labelled_once() -> None:
    data = scenes(bev_cells=[64, 64])
    x, y = data.cells
    for scene in data.scenes(range(20)):
        place = np.stack([x.place(scene.vehicles.centre_m[:, 0]), y.place(scene.vehicles.centre_m[:, 1])])
        inside = ((place >= 0) & (place < 64)).all(axis=0)
        assert (object_maps(scene.vehicles, x, y)[0] > 0).sum() == inside.sum()


def test_the_nearest_of_two_in_a_cell_counts() -> None:
    scene = next(s for s in scenes().scenes(range(50)) if len(s.vehicles) > 2)
    data = scenes(bev_cells=[1, 1], x_range_m=[-100, 100], y_range_m=[-100, 100])
    _, boxes = object_maps(scene.vehicles, *data.cells)
    nearest = np.linalg.norm(scene.vehicles.centre_m[:, :2], axis=1).argmin()
    assert np.allclose(boxes[:2, 0, 0] * 200, scene.vehicles.centre_m[nearest, :2], atol=1e-3)


def road_lines(scene: Scene) -> int:
    return int(scene.road.lanes_left + scene.road.lanes_right) + 1


def test_lanes_are_where_they_are_painted() -> None:
    """Middles of cells, projected into an image without vehicles: grass, asphalt or paint as labelled."""
    data = scenes(bev_cells=[20, 80], x_range_m=[5.0, 9.0], y_range_m=[-8.0, 8.0])
    x, y = data.lane_cells
    camera = surround(1, 360, 600)[0]
    points = np.stack([*np.meshgrid(x.centres_m, y.centres_m, indexing="ij"), np.zeros((40, 160))], axis=-1)
    depth, col, row = camera.project(points)
    visible = (depth > 0) & (col >= 0) & (col < 600) & (row >= 0) & (row < 360)
    counts = np.zeros(3)
    for scene in data.scenes(range(5)):
        lanes = lane_map(scene.road, x, y)
        image = render([replace(scene, parts=only(scene.parts, []), brightness=1.0)], camera, range(360), range(600))[0]
        red, green, blue = image[:, row[visible].astype(int), col[visible].astype(int)]
        label = lanes[visible]
        around = np.lib.stride_tricks.sliding_window_view(lanes, (15, 15))  # 70 cm to each side: beyond the shoulder
        surrounded = np.zeros_like(visible)
        surrounded[7:-7, 7:-7] = around.min(axis=(2, 3)) == around.max(axis=(2, 3))
        surrounded = surrounded[visible]
        grass, asphalt = (label == 0) & surrounded, (label == 1) & surrounded
        assert (green[grass] > red[grass] + 0.05).all() and (green[grass] > blue[grass] + 0.05).all()
        assert (np.abs(green[asphalt] - red[asphalt]) < 0.05).all() and (green[asphalt] < 0.45).all()
        divider = (label == 2) & (np.abs(scene.road.lateral_m(points[..., 0], points[..., 1])[visible]) < 0.05)
        assert (red[divider] > blue[divider] + 0.2).all(), "yellow"
        assert ((lanes == 2).sum(axis=1) <= road_lines(scene)).all(), "a marking is one cell wide"
        counts += [grass.sum(), asphalt.sum(), divider.sum()]
    assert (counts > 100).all()


def test_voxels_are_filled_by_what_is_in_them() -> None:
    data = scenes(voxels=[32, 24, 6], z_range_m=[-1.0, 5.0])
    x, y, z = data.voxels
    grid = np.stack(np.meshgrid(x.centres_m, y.centres_m, z.centres_m, indexing="ij"), axis=-1)
    for scene in data.scenes(range(4)):
        voxels = occupancy(scene, x, y, z)
        parts = scene.parts
        for kind in (VEHICLE, STRUCTURE):
            group = only(parts, parts.kind == kind)
            inside = contains(group, grid).any(axis=-1)
            assert (voxels[inside] >= kind).all()
            grown = replace(group, half_m=np.maximum(group.half_m, [1.0, 1.0, 0.5]))
            assert contains(grown, grid[voxels == kind]).any(axis=-1).all()
        lateral = np.abs(scene.road.lateral_m(grid[..., 0], grid[..., 1]))
        assert set(np.unique(np.nonzero(voxels == ROAD)[2])) <= {1}, "only in the layer of the ground"
        assert (lateral[voxels == ROAD] <= 2 * LANE_WIDTH_M).all()
        assert (voxels[..., 1][lateral[..., 1] < LANE_WIDTH_M - 0.1] != 0).all()


def test_nothing_solid_is_lost_between_coarse_voxels() -> None:
    data = scenes(voxels=[8, 8, 2], z_range_m=[0.0, 6.0])
    x, y, z = data.voxels
    for scene in data.scenes(range(10)):
        voxels = occupancy(scene, x, y, z)
        for n in range(len(scene.parts)):
            places = [axis.place(scene.parts.centre_m[n, d]) for d, axis in enumerate((x, y, z))]
            if all(0 <= place < axis.cells for place, axis in zip(places, (x, y, z), strict=True)):
                near = [slice(max(0, int(p) - 1), int(p) + 2) for p in places]
                assert (voxels[tuple(near)] >= scene.parts.kind[n]).any()


def test_vehicles_stand_clear_of_each_other_and_of_the_ego_car() -> None:
    for number in range(60):
        vehicles = draw_scene(9, number).vehicles
        signs = np.array([(a, b, 0) for a in np.linspace(-1, 1, 9) for b in np.linspace(-1, 1, 5)])
        along, across, _ = np.moveaxis(signs * vehicles.half_m[:, None], 2, 0)
        cos, sin = vehicles.heading[:, :1], vehicles.heading[:, 1:]
        outline = vehicles.centre_m[:, None] + np.stack([along * cos - across * sin, along * sin + across * cos], 2) @ (
            np.eye(2, 3)
        )
        inside = contains(vehicles, outline).any(axis=1)
        assert not (inside & ~np.eye(len(vehicles), dtype=bool)).any()
        assert not ((np.abs(outline[..., 0]) < 2.4) & (np.abs(outline[..., 1]) < 0.9)).any()


def test_a_light_shines_in_the_colour_of_its_state() -> None:
    """The lamp is the part added last; it looks at the ego car."""
    camera = surround(1, 200, 300)[0]
    states = set()
    for scene in scenes().scenes(range(30)):
        states.add(scene.light)
        if scene.light == 0:
            continue
        lamp = replace(scene, parts=only(scene.parts, [-1]), brightness=1.0)
        index, face = first_hits([lamp.parts], camera, range(200), range(300))
        red, green, blue = render([lamp], camera, range(200), range(300))[0][:, (index[0] == 0) & (face[0] == 0)]
        assert len(red), "in view"
        expected = {1: red > 2 * green, 2: (red > blue + 0.2) & (green > blue + 0.2), 3: green > 2 * red}
        assert expected[scene.light].all()
    assert states == set(range(len(LIGHT_STATES)))


@pytest.mark.parametrize("args, message", [
    ({"cameras": 0}, "cameras = 0 must be a whole number >= 1"),
    ({"image_size": [32]}, r"image_size = \[32\] must be \[height, width\]"),
    ({"image_size": 32}, r"image_size = 32 must be \[height, width\]"),
    ({"voxels": [4, 4, 0]}, r"voxels\[2\] = 0 must be a whole number >= 1"),
    ({"targets": ["boxes", "depth"]}, "unknown name 'depth'; valid: objects, boxes, lanes, light, occupancy"),
    ({"targets": []}, "targets is empty"),
    ({"x_range_m": [4.0, -4.0]}, r"x_range_m = \[4.0, -4.0\] must be two numbers, the lower first"),
    ({"n_boxes": 3}, "has no argument 'n_boxes'; valid: image_size, cameras"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("driving_scenes", args)
    assert "\n" not in str(caught.value)
