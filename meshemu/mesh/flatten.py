"""A nested machine as one flat grid of devices, each link with the class of the outermost boundary that it crosses.

The bandwidth of an edge is that of the whole edge of a unit; the device links that cross it share it equally (dead
devices keep their share, since lanes belong to positions). Devices and links that are dead have no links.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.hardware import Level, System
from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh

__all__ = ["flatten"]

_ROW_STEP = np.array([-1, 0, 1, 0], np.int32)
_COL_STEP = np.array([0, 1, 0, -1], np.int32)


def flatten(system: System) -> Mesh:
    """The mesh of a system at its device granularity."""
    rows, cols = system.rows, system.cols
    n_devices = rows * cols
    row, col = np.divmod(np.arange(n_devices, dtype=np.int32), np.int32(cols))
    alive = np.ones((rows, cols), np.bool_)
    for position in system.dead_devices():
        alive[position] = False
    nest = _nest(system)
    exists = _links_exist(alive, system)

    src, direction = np.nonzero(exists)
    dst = src + _ROW_STEP[direction] * cols + _COL_STEP[direction]
    boundary = _boundary(row, col, src, dst, nest)
    along_row = (direction == EAST) | (direction == WEST)
    unit_rows, unit_cols = np.array([(size[1], size[2]) for size in nest]).T
    share = np.where(along_row, unit_rows[boundary], unit_cols[boundary])
    levels = system.outer_levels
    edge_bandwidth = np.array([system.figure(f"{level.link}.bandwidth").number for level in levels], np.int64)
    edge_latency = np.array([system.figure(f"{level.link}.latency").number for level in levels], np.int64)
    used, link_class = np.unique(boundary, return_inverse=True)

    out_link = np.full((n_devices, 4), -1, np.int32)
    out_link[src, direction] = np.arange(len(src))
    ports = np.flatnonzero(alive) if system.injection_bandwidth_bytes_per_s is not None else np.empty(0, np.int64)
    n_ports, n_links = len(ports), len(src)
    injection_link, ejection_link = np.full((2, n_devices), -1, np.int32)
    injection_link[ports] = n_links + np.arange(n_ports)
    ejection_link[ports] = n_links + n_ports + np.arange(n_ports)
    port_class = len(used) + np.repeat([0, 1], n_ports)
    port_bandwidth = np.full(2 * n_ports, system.injection_bandwidth_bytes_per_s or 0)

    tile_rows, tile_cols = next(((size[1], size[2]) for size in nest if size[0] == "tile"), (rows, cols))
    return Mesh(
        rows=rows,
        cols=cols,
        row=row,
        col=col,
        tile_row=row // np.int32(tile_rows),
        tile_col=col // np.int32(tile_cols),
        alive=alive.ravel(),
        link_src=np.concatenate([src, ports, ports]).astype(np.int32),
        link_dst=np.concatenate([dst, ports, ports]).astype(np.int32),
        link_class=np.concatenate([link_class, port_class]).astype(np.int8),
        class_names=(*(levels[i].link for i in used), *(("injection", "ejection") if n_ports else ())),
        bandwidth_bytes_per_s=np.concatenate([edge_bandwidth[boundary] // share, port_bandwidth]).astype(np.int64),
        latency_ps=np.concatenate([edge_latency[boundary], np.zeros(2 * n_ports)]).astype(np.int64),
        out_link=out_link,
        injection_link=injection_link,
        ejection_link=ejection_link,
        nest=tuple(reversed(nest)),
        multicast=bool(system.optional("mesh.multicast")),
        reduction=bool(system.optional("mesh.reduction")),
        combine_ps=system.optional("mesh.combine"),
    )


def _nest(system: System) -> tuple[tuple[str, int, int], ...]:
    """(unit, rows, cols) of the units of each outer level in devices, the device itself first."""
    levels: tuple[Level, ...] = system.outer_levels
    sizes, rows, cols = [], 1, 1
    for level in levels:
        sizes.append((level.unit, rows, cols))
        grid_rows, grid_cols = system.figure(level.grid).shape
        rows, cols = rows * grid_rows, cols * grid_cols
    return tuple(sizes)


def _links_exist(alive: NDArray[np.bool_], system: System) -> NDArray[np.bool_]:
    """bool[n_devices, 4]: whether a link leaves a device to N, E, S, W."""
    rows, cols = alive.shape
    exists = np.zeros((rows, cols, 4), np.bool_)
    down = alive[:-1] & alive[1:]
    right = alive[:, :-1] & alive[:, 1:]
    exists[:-1, :, SOUTH], exists[1:, :, NORTH] = down, down
    exists[:, :-1, EAST], exists[:, 1:, WEST] = right, right
    for (row, col), (other_row, other_col) in system.dead_links:  # sorted: the other end is to the east or south
        there, back = (EAST, WEST) if row == other_row else (SOUTH, NORTH)
        exists[row, col, there] = exists[other_row, other_col, back] = False
    return exists.reshape(-1, 4)


def _boundary(
    row: NDArray[np.int32], col: NDArray[np.int32], src: NDArray[np.int64], dst: NDArray[np.int64],
    nest: tuple[tuple[str, int, int], ...],
) -> NDArray[np.int64]:
    """Index of the outermost level whose units a link joins; 0 joins devices of one unit."""
    boundary = np.zeros(len(src), np.int64)
    for index, (_, unit_rows, unit_cols) in enumerate(nest):
        crosses = (row[src] // unit_rows != row[dst] // unit_rows) | (col[src] // unit_cols != col[dst] // unit_cols)
        boundary[crosses] = index
    return boundary
