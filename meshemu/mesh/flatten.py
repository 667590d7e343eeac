"""A nested machine as one flat grid of devices, each link with the class of the outermost boundary that it crosses.

The bandwidth of an edge is that of the whole edge of a unit; the device links that cross it share it equally (dead
devices keep their share, since lanes belong to positions); slow links have a part of theirs. Where the class of a
boundary is that of units inside a device, a device link is all of their links along its edge, and as long as their hops
across it. A wrap-around link is what a link over the outermost boundary is, of a class of its own. Devices and links
that are dead have no links.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meshemu.hardware import Level, System
from meshemu.hardware.topology import WRAP_LINK, neighbours, wraps
from meshemu.mesh.detour import grid_hops
from meshemu.mesh.interfaces import interface_devices
from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh
from meshemu.mesh.switches import Switches, switch_tree
from meshemu.mesh.z_plane import PLANE_CLASSES, PLANE_FIGURES, plane_links, z_plane

__all__ = ["flatten"]

_ROW_STEP = np.array([-1, 0, 1, 0], np.int32)
_COL_STEP = np.array([0, 1, 0, -1], np.int32)

_Ints = NDArray[np.int64]
_Nest = tuple[tuple[str, int, int], ...]


class _Links(NamedTuple):
    """Links between devices, or devices and switches: ends, index of the outer level, figures; int64[n_links] each."""

    src: _Ints
    dst: _Ints
    level: _Ints
    bandwidth_bytes_per_s: _Ints
    latency_ps: _Ints


def flatten(system: System) -> Mesh:
    """The mesh of a system at its device granularity."""
    rows, cols = system.rows, system.cols
    n_devices = rows * cols
    row, col = np.divmod(np.arange(n_devices, dtype=np.int32), np.int32(cols))
    alive = np.ones((rows, cols), np.bool_)
    for position in system.dead_devices():
        alive[position] = False
    nest = _nest(system)
    out_link = np.full((n_devices, 4), -1, np.int32)
    switches = None
    if system.switched:
        switches = switch_tree(rows, cols, alive.ravel(), [size[1:] for size in nest])
        links = _switch_links(switches, system)
    else:
        links = _grid_links(row, col, alive, nest, system, out_link)
    names = _classes(system)
    used, link_class = np.unique([names.index(names[level]) for level in links.level], return_inverse=True)

    ports = np.flatnonzero(alive) if system.injection_bandwidth_bytes_per_s is not None else np.empty(0, np.int64)
    n_ports, n_links = len(ports), len(links.src)
    injection_link, ejection_link = np.full((2, n_devices), -1, np.int32)
    injection_link[ports] = n_links + np.arange(n_ports)
    ejection_link[ports] = n_links + n_ports + np.arange(n_ports)
    port_class = len(used) + np.repeat([0, 1], n_ports)
    port_bandwidth = np.full(2 * n_ports, system.injection_bandwidth_bytes_per_s or 0)
    port_latency = np.full(2 * n_ports, system.injection_latency_ps)

    tile_rows, tile_cols = _tile(nest, rows, cols)
    column_rings, row_rings = wraps(system.wrap)
    mesh = Mesh(
        rows=rows,
        cols=cols,
        row=row,
        col=col,
        tile_row=row // np.int32(tile_rows),
        tile_col=col // np.int32(tile_cols),
        alive=alive.ravel(),
        link_src=np.concatenate([links.src, ports, ports]).astype(np.int32),
        link_dst=np.concatenate([links.dst, ports, ports]).astype(np.int32),
        link_class=np.concatenate([link_class, port_class]).astype(np.int8),
        class_names=(*(names[int(i)] for i in used), *(("injection", "ejection") if n_ports else ())),
        bandwidth_bytes_per_s=np.concatenate([links.bandwidth_bytes_per_s, port_bandwidth]).astype(np.int64),
        latency_ps=np.concatenate([links.latency_ps, port_latency]).astype(np.int64),
        out_link=out_link,
        injection_link=injection_link,
        ejection_link=ejection_link,
        nest=tuple(reversed(nest)),
        multicast=bool(system.optional("mesh.multicast")),
        reduction=bool(system.optional("mesh.reduction")),
        combine_ps=system.optional("mesh.combine"),
        column_rings=column_rings,
        row_rings=row_rings,
        switches=switches,
    )
    return _with_z_plane(mesh, system) if system.z_plane else mesh


def _with_z_plane(mesh: Mesh, system: System) -> Mesh:
    """The mesh with interface processors at edges, and Ethernet between them."""
    beside = interface_devices(mesh, system.z_plane, system.figure("interface.per_edge").number, "z_plane")
    corners, which = np.unique(beside, return_inverse=True)
    links = plane_links(beside, mesh.n_devices)
    figure = {name: system.figure(f"interface.{name}").number for name in PLANE_FIGURES}
    bandwidth = np.where(links.is_ethernet, figure["ethernet_bandwidth"], figure["link_bandwidth"])
    up = figure["ethernet_latency"] // 2
    down = figure["ethernet_latency"] - up
    latency = np.repeat([figure["link_latency"], up, down, figure["link_latency"]], len(beside))
    n_classes = len(mesh.class_names)
    return replace(
        mesh,
        link_src=np.concatenate([mesh.link_src, links.src]).astype(np.int32),
        link_dst=np.concatenate([mesh.link_dst, links.dst]).astype(np.int32),
        link_class=np.concatenate([mesh.link_class, n_classes + links.is_ethernet]).astype(np.int8),
        class_names=(*mesh.class_names, *PLANE_CLASSES),
        bandwidth_bytes_per_s=np.concatenate([mesh.bandwidth_bytes_per_s, bandwidth]).astype(np.int64),
        latency_ps=np.concatenate([mesh.latency_ps, latency]).astype(np.int64),
        z_plane=z_plane(beside, grid_hops(mesh, corners)[which.ravel()], mesh.n_links),
    )


def _grid_links(
    row: NDArray[np.int32], col: NDArray[np.int32], alive: NDArray[np.bool_], nest: _Nest, system: System,
    out_link: NDArray[np.int32],
) -> _Links:
    """Links between neighbours, by (source device, direction); their numbers go into out_link, int32[n_devices, 4]."""
    src, direction = np.nonzero(_links_exist(alive, system))
    rows, cols = alive.shape
    to_row, to_col = row[src] + _ROW_STEP[direction], col[src] + _COL_STEP[direction]
    dst = (to_row % rows).astype(np.int64) * cols + to_col % cols
    out_link[src, direction] = np.arange(len(src))
    boundary = _boundary(row, col, src, dst, nest)
    boundary[(to_row % rows != to_row) | (to_col % cols != to_col)] = len(nest)
    along_row = (direction == EAST) | (direction == WEST)
    lanes, hops, share = (np.array(part, np.int64) for part in zip(*_edges(system, nest), strict=True))
    orientation = along_row.astype(np.int64)
    bandwidth, latency = _level_figures(system)
    slower = np.ones(len(src), np.int64)
    for (src_row, src_col), (dst_row, dst_col), factor in system.slow_links:
        slower[(src == src_row * cols + src_col) & (dst == dst_row * cols + dst_col)] = factor
    whole = bandwidth[boundary] * lanes[boundary, orientation] // share[boundary, orientation]
    return _Links(
        src=src,
        dst=dst,
        level=boundary,
        bandwidth_bytes_per_s=np.maximum(whole // slower, 1),
        latency_ps=latency[boundary] * hops[boundary, orientation],
    )


def _edges(system: System, nest: _Nest) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """(lanes, hops, share) of a device link over the boundary of each outer level, and of one around the mesh, which is
    as over the outermost; each (down a column, along a row).

    lanes: edges of the unit that the link class belongs to along the edge of a device; hops: such units across it;
    share: devices along the edge of that unit, where it is the larger of the two.
    """
    names = [level.link for level in system.levels]
    inner = len(names) - len(nest)
    found = []
    for level in system.outer_levels:
        owner = names.index(level.link)
        if owner >= inner:
            _, unit_rows, unit_cols = nest[owner - inner]
            found.append(((1, 1), (1, 1), (unit_cols, unit_rows)))
        else:
            grids = [system.figure(within.grid).shape for within in system.levels[owner:inner]]
            unit_rows, unit_cols = (int(np.prod([grid[i] for grid in grids])) for i in range(2))
            found.append(((unit_cols, unit_rows), (unit_rows, unit_cols), (1, 1)))
    return [*found, found[-1]]


def _switch_links(switches: Switches, system: System) -> _Links:
    """Links up and down the tree, as it numbers them; half of the latency between two units is on each way."""
    lower = np.flatnonzero(switches.up >= 0)
    upper, level = switches.parent[lower], switches.level[lower]
    bandwidth, latency = (figure[level] for figure in _level_figures(system))
    return _Links(
        src=np.concatenate([lower, upper]),
        dst=np.concatenate([upper, lower]),
        level=np.concatenate([level, level]),
        bandwidth_bytes_per_s=np.concatenate([bandwidth, bandwidth]),
        latency_ps=np.concatenate([latency // 2, latency - latency // 2]),
    )


def _level_figures(system: System) -> tuple[_Ints, _Ints]:
    """Bandwidth and latency of each of `_classes`."""
    keys = _classes(system)
    bandwidth, latency = (
        np.array([system.figure(f"{key}.{name}").number for key in keys], np.int64) for name in ("bandwidth", "latency")
    )
    return bandwidth, latency


def _classes(system: System) -> list[str]:
    """The link class of each outer level, and that of links around the mesh."""
    return [*(level.link for level in system.outer_levels), WRAP_LINK]


def _tile(nest: _Nest, rows: int, cols: int) -> tuple[int, int]:
    """Size in devices of a tile; without tiles, of the outermost units of several devices; else of everything."""
    tiles = [size[1:] for size in nest if size[0] == "tile"]
    groups = [size[1:] for size in reversed(nest) if size[1:] != (1, 1)]
    return next(iter([*tiles, *groups]), (rows, cols))


def _nest(system: System) -> _Nest:
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
    column_rings, row_rings = wraps(system.wrap)
    if column_rings:
        exists[-1, :, SOUTH] = exists[0, :, NORTH] = alive[0] & alive[-1]
    if row_rings:
        exists[:, -1, EAST] = exists[:, 0, WEST] = alive[:, 0] & alive[:, -1]
    for (row, col), (other_row, other_col) in system.dead_links:  # sorted: the other end is to the east or south
        there, back = (EAST, WEST) if row == other_row else (SOUTH, NORTH)
        if not neighbours((row, col), (other_row, other_col), rows, cols, "none"):  # ... or around the mesh
            there, back = back, there
        exists[row, col, there] = exists[other_row, other_col, back] = False
    return exists.reshape(-1, 4)


def _boundary(
    row: NDArray[np.int32], col: NDArray[np.int32], src: NDArray[np.int64], dst: NDArray[np.int64],
    nest: _Nest,
) -> NDArray[np.int64]:
    """Index of the outermost level whose units a link joins; 0 joins devices of one unit."""
    boundary = np.zeros(len(src), np.int64)
    for index, (_, unit_rows, unit_cols) in enumerate(nest):
        crosses = (row[src] // unit_rows != row[dst] // unit_rows) | (col[src] // unit_cols != col[dst] // unit_cols)
        boundary[crosses] = index
    return boundary
