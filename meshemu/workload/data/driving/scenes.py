"""Driving scenes as a data set: images of several cameras and their labels, made when they are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive, check_sizes
from meshemu.workload.data.dataset import Dataset
from meshemu.workload.data.driving.cameras import Camera, surround
from meshemu.workload.data.driving.drawing import draw_scene
from meshemu.workload.data.driving.labels import Axis, lane_map, object_maps, occupancy
from meshemu.workload.data.driving.renderer import render
from meshemu.workload.data.driving.world import Scene

__all__ = ["TARGETS", "DrivingScenes", "driving_scenes"]

TARGETS = ("objects", "boxes", "lanes", "light", "occupancy")

MEAN, DEVIATION = 0.5, 0.25
"""Of the colours, about: images are standardised by them."""

PIXELS_AT_ONCE = 2**15
"""Small images are rendered together, as many as stay in the processor's cache; this changes no bit of them."""

HELD_OUT = 2**63
"""Number of the first scene that is held out; those to train on count from 0."""


@dataclass(frozen=True, eq=False)
class DrivingScenes:
    """Scenes first, first + 1, ... of a seed. Each sample, and each part of an image, has the same bits however it is
    asked for; nothing is kept.

    x, y, z: the space that is labelled: cells of objects in x and y, voxels in all three, lanes in twice as many cells
    as objects. targets: the names to make, of TARGETS.
    """

    seed: int
    first: int
    count: int
    cameras: tuple[Camera, ...]
    cells: tuple[Axis, Axis]
    lane_cells: tuple[Axis, Axis]
    voxels: tuple[Axis, Axis, Axis]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """Whole images and all labels of the samples `indices`."""
        scenes = self.scenes(indices)
        return self._images(scenes, None, None, None), self._labels(scenes)

    def scenes(self, indices: Iterable[int]) -> list[Scene]:
        """The worlds of the samples `indices`."""
        return [draw_scene(self.seed, self.first + int(index)) for index in indices]

    def images(
        self,
        indices: Iterable[int],
        cameras: Sequence[int] | None = None,
        rows: range | None = None,
        cols: range | None = None,
    ) -> Tensor:
        """float32 (samples, cameras, 3, rows, cols), about standard: only the cameras, rows and columns asked for."""
        return self._images(self.scenes(indices), cameras, rows, cols)

    def labels(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """The targets by name, dim 0 counting samples.

        objects int64 (n, X, Y), boxes float32 (n, 8, X, Y), lanes int64 (n, 2 X, 2 Y), light int64 (n), occupancy int64
        (n, X, Y, Z).
        """
        return self._labels(self.scenes(indices))

    def _images(
        self, scenes: list[Scene], cameras: Sequence[int] | None, rows: range | None, cols: range | None
    ) -> Tensor:
        chosen = self.cameras if cameras is None else [self.cameras[i] for i in cameras]
        rows = range(self.cameras[0].height_px) if rows is None else rows
        cols = range(self.cameras[0].width_px) if cols is None else cols
        images = np.empty((len(scenes), len(chosen), 3, len(rows), len(cols)), np.float32)
        together = max(1, PIXELS_AT_ONCE // max(1, len(rows) * len(cols)))
        for start in range(0, len(scenes), together):
            for n, camera in enumerate(chosen):
                part = slice(start, start + together)
                images[part, n] = render(scenes[part], camera, rows, cols)
        return torch.from_numpy((images - np.float32(MEAN)) / np.float32(DEVIATION))

    def _labels(self, scenes: list[Scene]) -> dict[str, Tensor]:
        made = [self._labels_of(scene) for scene in scenes]
        return {name: torch.from_numpy(np.stack([labels[name] for labels in made])) for name in self.targets}

    def _labels_of(self, scene: Scene) -> dict[str, NDArray[Any]]:
        labels: dict[str, NDArray[Any]] = {}
        if "objects" in self.targets or "boxes" in self.targets:
            labels["objects"], labels["boxes"] = object_maps(scene.vehicles, *self.cells)
        if "lanes" in self.targets:
            labels["lanes"] = lane_map(scene.road, *self.lane_cells)
        if "light" in self.targets:
            labels["light"] = np.asarray(scene.light, np.int64)
        if "occupancy" in self.targets:
            labels["occupancy"] = occupancy(scene, *self.voxels)
        return labels


def driving_scenes(
    image_size: Sequence[int] = (32, 64),
    cameras: int = 4,
    targets: Sequence[str] = TARGETS,
    bev_cells: Sequence[int] = (16, 16),
    voxels: Sequence[int] = (16, 16, 4),
    x_range_m: Sequence[float] = (-24.0, 40.0),
    y_range_m: Sequence[float] = (-16.0, 16.0),
    z_range_m: Sequence[float] = (0.0, 6.0),
    n_samples: int = 10_000,
    n_test: int = 256,
    seed: int = 0,
) -> Dataset:
    """Rendered images of a road, vehicles, houses, trees and a traffic light, and what is true of them as targets.

    Inputs are images (cameras, 3, height, width), the camera that looks forwards first, the others evenly spaced to its
    left. Targets are a dict of objects, boxes, lanes, light and occupancy (see docs/models.md).

    Args:
        image_size: [height, width] of each image.
        cameras: images per sample.
        targets: which to make.
        bev_cells: [X, Y] cells of objects and boxes; lanes have twice as many along each.
        voxels: [X, Y, Z] of occupancy.
        x_range_m: [low, high] of the space that is labelled, forwards.
        y_range_m: the same to the left.
        z_range_m: the same upwards from the ground.
        n_samples: scenes to train on.
        n_test: scenes held out.
        seed: of all scenes.

    Raises:
        InputError: an argument out of range.
    """
    what = "data driving_scenes"
    height, width = check_sizes(what, "image_size", image_size, "height width")
    check_sizes(what, "bev_cells", bev_cells, "X Y")
    check_sizes(what, "voxels", voxels, "X Y Z")
    check_positive(what, cameras=cameras, n_samples=n_samples, n_test=n_test)
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets:
        problem = f"has an unknown name '{unknown[0]}'" if unknown else "is empty"
        raise InputError(f"{what}: targets {problem}; valid: {', '.join(TARGETS)}")
    ranges = {"x_range_m": x_range_m, "y_range_m": y_range_m, "z_range_m": z_range_m}
    for name, bounds in ranges.items():
        if len(bounds) != 2 or not -np.inf < bounds[0] < bounds[1] < np.inf:
            raise InputError(f"{what}: {name} = {list(bounds)} must be two numbers, the lower first")

    def axes(cells: Sequence[int]) -> Any:
        return tuple(
            Axis(float(low), float(high), n) for (low, high), n in zip(ranges.values(), cells, strict=False)
        )

    def scenes(first: int, count: int) -> DrivingScenes:
        return DrivingScenes(
            seed, first, count, tuple(surround(cameras, height, width)), axes(bev_cells),
            axes([2 * n for n in bev_cells]), axes(voxels), tuple(dict.fromkeys(targets)),
        )  # fmt: skip

    description = f"rendered driving scenes, {cameras} cameras of {height}x{width}, {', '.join(targets)}"
    return Dataset(scenes(0, n_samples), scenes(HELD_OUT, n_test), n_classes=None, description=description)
