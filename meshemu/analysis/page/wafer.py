"""What the page needs to draw the grid of devices and links, and to say what each of them did."""

from typing import Any

import numpy as np

from meshemu.analysis.heatmap import arrows, round_up
from meshemu.analysis.link_ends import room_beside, switch_bars
from meshemu.analysis.link_use import link_use
from meshemu.analysis.page.arrays import packed
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.record import Run

__all__ = ["wafer"]

_MOST_SHARES = 750_000  # shares of links over time in one page; bins are merged beyond
_SHARE_UNITS = 65_535  # shares travel as 16-bit fixed point
_OUTER, _OUTER_OF_MANY, _MANY = 0.175, 0.27, 400  # links take more of the room where devices are small


def wafer(run: Run) -> dict[str, Any]:
    """Geometry in (col, row); figures of the last step; use of links over the first recorded one."""
    mesh = run.mesh()
    return {
        "rows": mesh.rows,
        "cols": mesh.cols,
        "unit": System.from_json(run.system_json).devices,
        "room": room_beside(mesh)._asdict(),
        "tile_edges": _tile_edges(mesh),
        "bars": [bar.ravel().tolist() for bar in switch_bars(mesh)],
        "devices": _devices(run),
        "links": _links(run),
        "use": _use(run),
    }


def _tile_edges(mesh: Mesh) -> dict[str, list[float]]:
    """Where tiles begin and end."""
    col, row = mesh.tile_col.reshape(mesh.rows, mesh.cols)[0], mesh.tile_row.reshape(mesh.rows, mesh.cols)[:, 0]
    return {
        "x": [-0.5, *(np.flatnonzero(np.diff(col)) + 0.5).tolist(), mesh.cols - 0.5],
        "y": [-0.5, *(np.flatnonzero(np.diff(row)) + 0.5).tolist(), mesh.rows - 0.5],
    }


def _devices(run: Run) -> dict[str, Any]:
    mesh = run.mesh()
    content: dict[str, Any] = {
        "place": [mesh.place(device) for device in range(mesh.n_devices)],
        "alive": packed(mesh.alive, "u1"),
    }
    if run.n_steps:
        table = run.devices(-1)
        names = ("compute_ps", "idle_ps", "peak_memory_bytes")
        content |= {name: packed(table[name].to_numpy()) for name in names}
    return content


def _links(run: Run) -> dict[str, Any]:
    """Links on the grid come with an arrow each; injection and ejection links and the Z-plane have no place there."""
    mesh = run.mesh()
    on_grid = np.flatnonzero(mesh.on_grid)
    outer = _OUTER if mesh.n_devices <= _MANY else _OUTER_OF_MANY
    content: dict[str, Any] = {
        "name": [mesh.link_name(link) for link in range(mesh.n_links)],
        "src": packed(mesh.link_src, "i4"),
        "on_grid": packed(on_grid, "i4"),
        "arrow": packed(arrows(mesh, on_grid, outer) if len(on_grid) else np.zeros((0, 5, 2)), "f4"),
        "class": packed(mesh.link_class, "u1"),
        "class_names": list(mesh.class_names),
        "bandwidth_bytes_per_s": packed(mesh.bandwidth_bytes_per_s),
        "latency_ps": packed(mesh.latency_ps),
    }
    if run.n_steps:
        table = run.links(-1)
        names = ("bytes", "busy_ps", "wait_ps", "max_queue", "utilisation")
        content |= {name: packed(table[name].to_numpy()) for name in names}
        highest = table["utilisation"].to_numpy()[on_grid].max(initial=0.0)
        content["utilisation_scale"] = round_up(float(highest))
    return content


def _use(run: Run) -> dict[str, Any] | None:
    n_links = run.mesh().n_links
    use = link_use(run, max(1, _MOST_SHARES // max(n_links, 1)))
    if not use.n_bins or not n_links:
        return None
    share = np.minimum(use.share, 1.0)
    return {
        "edge_ps": packed(use.edge_ps),
        "share": packed(np.rint(share * _SHARE_UNITS), "u2"),
        "share_units": _SHARE_UNITS,
        "scale": round_up(float(share.max())),
    }
