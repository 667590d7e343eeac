"""A plan: named axes over the device grid, and where each position of the grid lies on the mesh.

data     the batch is cut over all positions; parameters are replicated
spatial  the height of images is cut over mesh rows (axis "h"), their width over mesh columns (axis "w")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import PlanError
from meshemu.mesh import Mesh

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """kind; axes and their sizes; devices: id of each position (row-major over the axes); grid: (rows, cols) of the
    rectangle of devices that the positions fill, row by row, except for the `absent` ones.
    """

    kind: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    devices: tuple[int, ...]
    grid: tuple[int, int]
    absent: tuple[int, ...] = ()

    @property
    def n_positions(self) -> int:
        """Number of devices that take part."""
        return len(self.devices)

    @cached_property
    def coords(self) -> dict[str, NDArray[np.int64]]:
        """Axis -> coordinate of every position."""
        unravelled = np.unravel_index(np.arange(self.n_positions), self.sizes)
        return {axis: np.asarray(c) for axis, c in zip(self.axes, unravelled, strict=True)}

    def size(self, axis: str) -> int:
        """Number of coordinates of an axis."""
        return self.sizes[self.axes.index(axis)]

    def position(self, coords: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        """Position of each set of coordinates (all axes given)."""
        return np.ravel_multi_index([coords[axis] for axis in self.axes], self.sizes)

    def groups(self, axes: Sequence[str]) -> tuple[NDArray[np.int64], tuple[int, int], tuple[int, ...]]:
        """Positions that reduce together over `axes`: (n_groups, members), with the group's grid and absent places."""
        if set(axes) == set(self.axes):
            return np.arange(self.n_positions)[None, :], self.grid, self.absent
        cube = np.arange(self.n_positions).reshape(self.sizes)
        moved = [self.axes.index(axis) for axis in axes]
        kept = [i for i in range(len(self.axes)) if i not in moved]
        members = int(np.prod([self.sizes[i] for i in moved]))
        table = cube.transpose(*kept, *moved).reshape(-1, members)
        return table, ((members, 1) if tuple(axes) == ("h",) else (1, members)), ()

    def describe(self) -> str:
        """The plan in words, e.g. "spatial 5 x 5 (h over mesh rows, w over mesh columns)"."""
        if self.kind == "spatial":
            return f"spatial {self.sizes[0]} x {self.sizes[1]} (h over mesh rows, w over mesh columns)"
        return f"data {self.sizes[0]} on {self.grid[0]} x {self.grid[1]} devices"


def make_plan(spec: str | Mapping[str, Any], mesh: Mesh) -> Plan:
    """The plan that `spec` names: "data", "spatial", {"data": 25} or {"spatial": [5, 5]}.

    Raises PlanError for an unknown kind, for one that does not fit the mesh (with the equation), and for a spatial
    plan over a dead device.
    """
    entries: dict[str, Any] = {spec: None} if isinstance(spec, str) else dict(spec)
    if len(entries) != 1 or next(iter(entries)) not in ("data", "spatial"):
        raise PlanError(f"plan {spec!r} is unknown; a plan is one of: 'data', 'spatial', {{data = N}}, "
                        "{spatial = [ROWS, COLS]}")  # fmt: skip
    kind, shape = next(iter(entries.items()))
    return _spatial(shape, mesh) if kind == "spatial" else _data(shape, mesh)


def _spatial(shape: Any, mesh: Mesh) -> Plan:
    if shape is None:
        shape = (mesh.rows, mesh.cols)
    if not isinstance(shape, list | tuple) or len(shape) != 2 or not all(_is_count(n) for n in shape):
        raise PlanError(f"plan.spatial must be two positive integers [rows, cols], not {shape!r}")
    rows, cols = shape
    if rows > mesh.rows or cols > mesh.cols:
        raise PlanError(f"plan.spatial = [{rows}, {cols}] is larger than the mesh of {mesh.rows} x {mesh.cols} devices")
    devices = _rectangle(rows, cols, mesh)
    dead = devices[~mesh.alive[devices]]
    if len(dead):
        raise PlanError(f"plan.spatial = [{rows}, {cols}] covers device {dead[0]}, which is dead")
    return Plan("spatial", ("h", "w"), (rows, cols), tuple(devices.tolist()), (rows, cols))


def _data(count: Any, mesh: Mesh) -> Plan:
    alive = np.flatnonzero(mesh.alive)
    if count is None:
        count = len(alive)
    if not _is_count(count):
        raise PlanError(f"plan.data must be a positive integer, not {count!r}")
    if count > len(alive):
        raise PlanError(f"plan.data = {count} is larger than the mesh: {count} > {len(alive)} live devices")
    if count == len(alive):
        absent = tuple(np.flatnonzero(~mesh.alive).tolist())
        return Plan("data", ("data",), (count,), tuple(alive.tolist()), (mesh.rows, mesh.cols), absent)
    fits = [(r, count // r) for r in range(1, mesh.rows + 1) if count % r == 0 and count // r <= mesh.cols]
    fits = [(r, c) for r, c in fits if mesh.alive[_rectangle(r, c, mesh)].all()]
    if not fits:
        raise PlanError(
            f"plan.data = {count} is no rows x cols rectangle of live devices in the north-west corner of the "
            f"{mesh.rows} x {mesh.cols} mesh"
        )
    rows, cols = min(fits, key=lambda fit: (abs(fit[0] - fit[1]), fit))
    return Plan("data", ("data",), (count,), tuple(_rectangle(rows, cols, mesh).tolist()), (rows, cols))


def _rectangle(rows: int, cols: int, mesh: Mesh) -> NDArray[np.int64]:
    return (np.arange(rows)[:, None] * mesh.cols + np.arange(cols)[None, :]).ravel()


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1
