"""A picture of the mesh with every link coloured by its utilisation.

The two directions of an edge lie side by side, each on the right-hand side of its travel:

    [A] <------- [B]      eastward traffic below, westward above;
    [A] -------> [B]      southward traffic on the west side, northward on the east side
"""

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meshemu.analysis.link_ends import link_ends, room_beside, switch_bars
from meshemu.analysis.metrics import router_table
from meshemu.analysis.palette import UNUSED, link_scale
from meshemu.analysis.sheet import INK, write
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.record import Run
from meshemu.units import format_time

__all__ = ["arrows", "picture", "round_up", "save"]

_MEAN_SIDE_INCHES, _LONG_SIDE_INCHES, _LARGEST_PITCH_INCHES = 8.0, 20.0, 1.25
_LEAST_WIDTH_INCHES, _LEAST_HEIGHT_INCHES, _LEFT_INCHES = 7.0, 1.6, 0.45
_SMALLEST_LABEL_POINTS, _LEAST_TILE_POINTS = 4.0, 14.0
_DEVICE, _DEAD, _TILE_EDGE = "#dfe3e8", "#9aa1ab", "#8a929e"

# In units of the grid's pitch. Below the wide pitch, links take the room that labels would need.
_MARGIN = 0.55
_DEVICE_HALF = 0.22
_INNER, _OUTER, _OUTER_WHEN_SMALL = 0.025, 0.175, 0.27
_TAIL, _SHOULDER, _TIP = 0.24, 0.64, 0.77
_WIDE_PITCH_POINTS = 24.0


def save(run: Run, path: str | os.PathLike[str], step: int = -1) -> None:
    """Write a PNG of link utilisation in a step (negative: from the end) to `path`.

    Raises:
        RecordError: there is no such step, or the picture cannot be written.
    """
    write(picture(run, step), path, "png")


def picture(run: Run, step: int = -1) -> Figure:
    """The picture of a step (negative: from the end). RecordError: there is no such step."""
    utilisation = run.link_utilisation(step)
    figures = run.steps.iloc[step]
    system = System.from_json(run.system_json)
    title = f"Link utilisation, {system.name}, step {figures.name}: {format_time(int(figures['time_ps']))}"
    if router_table(run.config) is not None:
        title += ", with routers"
    return _draw(run.mesh(), utilisation, title, system.devices)


def _draw(mesh: Mesh, utilisation: NDArray[np.float64], title: str, unit: str) -> Figure:
    """The whole picture. Injection, ejection and Z-plane have no place on the grid; the caption gives their maximum."""
    on_grid = mesh.on_grid
    norm = Normalize(0, 100 * round_up(float(utilisation[on_grid].max(initial=0.0))))
    colours = link_scale()
    figure, axes, points_per_pitch = _page(mesh)
    _draw_tiles(axes, mesh, points_per_pitch)
    _draw_devices(axes, mesh, points_per_pitch)
    _draw_switches(axes, mesh)
    outer = _OUTER if points_per_pitch >= _WIDE_PITCH_POINTS else _OUTER_WHEN_SMALL
    links = np.flatnonzero(on_grid)
    links = links[np.argsort(utilisation[links], kind="stable")]  # the busiest on top
    faces = colours(norm(100 * utilisation[links]))
    faces[utilisation[links] == 0] = to_rgba(UNUSED)
    outlines = list(arrows(mesh, links, outer))
    axes.add_collection(PolyCollection(outlines, facecolors=faces, edgecolors="none", zorder=2))
    _caption(figure, mesh, title, utilisation, on_grid, unit)
    if len(links):
        _colour_bar(figure, axes, ScalarMappable(norm, colours))
    return figure


def _page(mesh: Mesh) -> tuple[Figure, Axes, float]:
    """A page around the grid, axes in units of the grid's pitch (rows downwards), and the pitch in points."""
    room = room_beside(mesh)
    width = mesh.cols + 2 * _MARGIN - 1 + room.left + room.right
    height = mesh.rows + 2 * _MARGIN - 1 + room.upper + room.lower
    by_area, by_length = _MEAN_SIDE_INCHES / (width * height) ** 0.5, _LONG_SIDE_INCHES / max(width, height)
    inches = min(by_area, by_length, _LARGEST_PITCH_INCHES)
    left, right, bottom, above = _LEFT_INCHES, 1.0, 0.45, 0.75
    page_width = max(left + width * inches + right, _LEAST_WIDTH_INCHES)
    box_height = max(height * inches, _LEAST_HEIGHT_INCHES)
    page_height = bottom + box_height + above
    figure = Figure(figsize=(page_width, page_height), facecolor="white")
    box = (left / page_width, bottom / page_height, 1 - (left + right) / page_width, box_height / page_height)
    axes = figure.add_axes(box)
    axes.set_xlim(-_MARGIN - room.left, mesh.cols - 1 + _MARGIN + room.right)
    axes.set_ylim(mesh.rows - 1 + _MARGIN + room.lower, -_MARGIN - room.upper)
    axes.set_aspect("equal", anchor="W")
    axes.set_axis_off()
    return figure, axes, 72 * inches


def _draw_tiles(axes: Axes, mesh: Mesh, points_per_pitch: float) -> None:
    """A frame around every tile, and where there are several their rows and columns beside the grid."""
    col, row = mesh.tile_col.reshape(mesh.rows, mesh.cols)[0], mesh.tile_row.reshape(mesh.rows, mesh.cols)[:, 0]
    edges_x = np.concatenate([[0], np.flatnonzero(np.diff(col)) + 1, [mesh.cols]]) - 0.5
    edges_y = np.concatenate([[0], np.flatnonzero(np.diff(row)) + 1, [mesh.rows]]) - 0.5
    lines = [[(x, -0.5), (x, mesh.rows - 0.5)] for x in edges_x] + [[(-0.5, y), (mesh.cols - 0.5, y)] for y in edges_y]
    axes.add_collection(LineCollection(lines, colors=_TILE_EDGE, linewidths=0.8, zorder=1))
    if len(lines) == 4:
        return
    for axis, edges in enumerate((edges_x, edges_y)):
        if min(np.diff(edges)) * points_per_pitch < _LEAST_TILE_POINTS:
            continue
        for number, middle in enumerate((edges[:-1] + edges[1:]) / 2):
            offset = -0.5 - 7 / points_per_pitch
            x, y = (middle, offset) if axis == 0 else (offset, middle)
            axes.text(x, y, str(number), ha="center", va="center", fontsize=8, color=INK)


def _draw_devices(axes: Axes, mesh: Mesh, points_per_pitch: float) -> None:
    """Squares; dead devices are hollow and crossed; row,col within the tile in them while it can be read."""
    half = _DEVICE_HALF
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    squares = np.column_stack([mesh.col, mesh.row])[:, None, :] + corners
    axes.add_collection(PolyCollection(list(squares[mesh.alive]), facecolors=_DEVICE, edgecolors="none", zorder=2))
    dead = squares[~mesh.alive]
    width = min(1.0, points_per_pitch / 25)
    axes.add_collection(PolyCollection(list(dead), facecolors="white", edgecolors=_DEAD, linewidths=width, zorder=2))
    crosses = np.concatenate([dead[:, [0, 2]], dead[:, [1, 3]]])
    axes.add_collection(LineCollection(list(crosses), colors=_DEAD, linewidths=width, zorder=2))
    size = 0.16 * points_per_pitch
    if size >= _SMALLEST_LABEL_POINTS:
        first_row = np.searchsorted(mesh.tile_row, mesh.tile_row, side="left") // mesh.cols
        first_col = np.searchsorted(mesh.tile_col[: mesh.cols], mesh.tile_col)
        for device in np.flatnonzero(mesh.alive):
            col, row = int(mesh.col[device]), int(mesh.row[device])
            text = f"{row - first_row[device]},{col - first_col[device]}"
            axes.text(col, row, text, ha="center", va="center", fontsize=min(size, 9), color=INK, zorder=3)


def _draw_switches(axes: Axes, mesh: Mesh) -> None:
    """A bar for every switch."""
    axes.add_collection(
        LineCollection(switch_bars(mesh), colors=_TILE_EDGE, linewidths=4, capstyle="projecting", zorder=1)
    )


def arrows(mesh: Mesh, links: NDArray[np.int64], outer: float) -> NDArray[np.float64]:
    """Outline of each link as an arrow on the right-hand side of its travel, float[n, 5, 2] in (col, row)."""
    start, end = link_ends(mesh, links, _DEVICE_HALF).transpose(1, 0, 2)
    if mesh.switches is not None:  # these arrows fill the way from end to end
        stretched = (end - start) / (_TIP - _TAIL)
        start = start - _TAIL * stretched
        end = start + stretched
    along = end - start
    aside = np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1, keepdims=True)
    #      lengthwise, sideways: two corners at the tail, two shoulders, the tip
    tip = (_TIP, (_INNER + outer) / 2)
    outline = np.array([(_TAIL, _INNER), (_TAIL, outer), (_SHOULDER, outer), tip, (_SHOULDER, _INNER)])
    return np.asarray(start[:, None] + outline[:, :1] * along[:, None] + outline[:, 1:] * aside[:, None])


def _caption(
    figure: Figure, mesh: Mesh, title: str, utilisation: NDArray[np.float64], on_grid: NDArray[np.bool_], unit: str
) -> None:
    """The title above; below, what the picture holds and the busiest link."""
    left, height = _LEFT_INCHES / figure.get_figwidth(), figure.get_figheight()
    figure.text(left, 1 - 0.3 / height, title, fontsize=12, color=INK, va="center")
    words = [f"{mesh.rows} x {mesh.cols} {unit}s"]
    if not mesh.alive.all():
        words.append(f"{np.count_nonzero(~mesh.alive)} dead (crossed)")
    if on_grid.any():
        busiest = int(np.where(on_grid, utilisation, -1).argmax())
        mean = 100 * utilisation[on_grid].mean()
        highest = f"{mesh.link_name(busiest)} {100 * utilisation[busiest]:.3g} %"
        words.append(f"mean {mean:.3g} %, busiest {highest}, unused grey")
    if not on_grid.all():
        beside = "Z-plane" if mesh.z_plane is not None else "injection and ejection"
        words.append(f"{beside} at most {100 * utilisation[~on_grid].max():.3g} %")
    figure.text(left, 0.2 / height, "; ".join(words), fontsize=8, color=INK, va="center")


def _colour_bar(figure: Figure, axes: Axes, colours: ScalarMappable) -> None:
    """The scale in percent, beside the grid and as high as the room for it."""
    room = axes.get_position()
    axes.apply_aspect()
    grid, width = axes.get_position(), figure.get_figwidth()
    place = figure.add_axes((grid.x1 + 0.15 / width, room.y0, 0.16 / width, room.height))
    bar = figure.colorbar(colours, cax=place)
    bar.set_label("time in use  (% of the step)", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def round_up(fraction: float) -> float:
    """The next of 1, 2 and 5 times a power of ten, up to 100 %, so that the scale reads well; more only for more.

    1 % for nothing.
    """
    tops = [digit / 10**power for power in range(6, 0, -1) for digit in (1, 2, 5)] + [1.0]
    return next((top for top in tops if 0 < fraction <= top), fraction or 0.01)
