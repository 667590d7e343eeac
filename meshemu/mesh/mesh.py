"""One flat grid of devices and directed links: what all levels of a system become at a chosen device granularity.

Device ids are row-major: id = row * cols + col, dead devices included. Row 0 is the north edge, column 0 the west edge.
Links are numbered by (source device, direction) with directions N, E, S, W; where lines of devices are rings, the link
that leaves the last device of a line leads to the first, and back. Injection and ejection links, where the hardware
limits them, follow all mesh links, and those of the Z-plane (`z_plane`) follow these. Where devices are joined by
switches (`switches`), links are numbered as told there. Ends of links are vertices: devices, then switches, or
interface processors and the Ethernet switch between them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.mesh.switches import Switches
from meshemu.mesh.z_plane import ZPlane

__all__ = ["EAST", "NORTH", "SOUTH", "WEST", "Mesh"]

NORTH, EAST, SOUTH, WEST = range(4)
_DIRECTIONS = ("north", "east", "south", "west")


@dataclass(frozen=True, eq=False)
class Mesh:
    """Devices and links of a system as arrays.

    rows, cols: size of the grid. row, col, tile_row, tile_col: int32[n_devices]; alive: bool[n_devices]. Where a system
    has no tiles, its outermost units of several devices stand for them.
    link_src, link_dst: int32[n_links], vertices (equal for injection and ejection links); link_class: int8[n_links], an
    index into class_names; bandwidth_bytes_per_s, latency_ps: int64[n_links], per direction.
    out_link: int32[n_devices, 4], the link that leaves a device to N, E, S, W, or -1.
    injection_link, ejection_link: int32[n_devices], or -1 where a device injects without limit.
    nest: (unit, rows, cols) of the units that the grid is made of, outermost first, in devices; the last is the device.
    multicast, reduction: whether routers fork a message to several devices, and merge those of several into one;
    combine_ps: how much later than the last of its parts the head of a merged packet leaves.
    column_rings, row_rings: whether a link joins the last device of every column (of every row) to the first.
    switches: what joins the devices, None where links to neighbours do. z_plane: what joins edges of the mesh, if
    anything does.
    """

    rows: int
    cols: int
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    tile_row: NDArray[np.int32]
    tile_col: NDArray[np.int32]
    alive: NDArray[np.bool_]
    link_src: NDArray[np.int32]
    link_dst: NDArray[np.int32]
    link_class: NDArray[np.int8]
    class_names: tuple[str, ...]
    bandwidth_bytes_per_s: NDArray[np.int64]
    latency_ps: NDArray[np.int64]
    out_link: NDArray[np.int32]
    injection_link: NDArray[np.int32]
    ejection_link: NDArray[np.int32]
    nest: tuple[tuple[str, int, int], ...] = (("device", 1, 1),)
    multicast: bool = False
    reduction: bool = False
    combine_ps: int = 0
    column_rings: bool = False
    row_rings: bool = False
    switches: Switches | None = None
    z_plane: ZPlane | None = None

    @property
    def n_devices(self) -> int:
        """Number of grid positions, dead ones included."""
        return self.rows * self.cols

    @property
    def n_vertices(self) -> int:
        """Number of ends that links may have: devices, switches and interface processors."""
        return len(self.home)

    @property
    def home(self) -> NDArray[np.int32]:
        """Of every vertex the device whose rank emulates it, int32[n_vertices]; a device's own is itself."""
        if self.switches is not None:
            return self.switches.home
        devices = np.arange(self.n_devices, dtype=np.int32)
        return devices if self.z_plane is None else np.concatenate([devices, self.z_plane.home])

    @property
    def on_grid(self) -> NDArray[np.bool_]:
        """Which links join devices to devices or switches, bool[n_links]: all but injection, ejection and Z-plane."""
        found: NDArray[np.bool_] = self.link_src != self.link_dst
        if self.z_plane is not None:
            found[self.z_plane.first_link :] = False
        return found

    @property
    def wrap_around(self) -> NDArray[np.bool_]:
        """Which links join the last device of a row or column to the first, or back, bool[n_links]."""
        found = np.zeros(self.n_links, np.bool_)
        lines = self.out_link.reshape(self.rows, self.cols, 4)
        ends: list[NDArray[np.int32]] = []
        if self.column_rings:
            ends += [lines[0, :, NORTH], lines[-1, :, SOUTH]]
        if self.row_rings:
            ends += [lines[:, 0, WEST], lines[:, -1, EAST]]
        for links in ends:
            found[links[links >= 0]] = True
        return found

    @property
    def n_links(self) -> int:
        """Number of directed links, injection and ejection links included."""
        return len(self.link_src)

    def device_id(self, row: int, col: int) -> int:
        """Id of the device at (row, col); InputError outside the grid."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise InputError(f"there is no device ({row},{col}) in a grid of {self.rows} x {self.cols} devices")
        return row * self.cols + col

    def place(self, vertex: int) -> str:
        """Where a device is, in words: "tile 0, die (2,3)"; "tile (0,1), die (2,3)" where there are several tiles.

        Of a switch, the unit whose parts it joins: "node (0,1)".
        """
        if self.z_plane is not None and vertex >= self.n_devices:
            return self.z_plane.name(vertex - self.n_devices)
        device, level = (vertex, 0) if vertex < self.n_devices or self.switches is None else (
            self.switches.home[vertex], self.switches.level[vertex]
        )
        row, col = divmod(int(device), self.cols)
        words = []
        outer_rows, outer_cols = self.rows, self.cols
        for unit, rows, cols in self.nest[: len(self.nest) - level]:
            alone = (outer_rows, outer_cols) == (rows, cols)
            words.append(f"{unit} 0" if alone else f"{unit} ({row % outer_rows // rows},{col % outer_cols // cols})")
            outer_rows, outer_cols = rows, cols
        return ", ".join(words)

    def direction_of(self, link: int) -> str:
        """"north", "east", "south" or "west"; "injection" or "ejection" for the links between a device and the mesh;
        "up" or "down" for those to and from a switch, "z-plane" for those of the Z-plane.
        """
        if self.z_plane is not None and link >= self.z_plane.first_link:
            return "z-plane"
        device = int(self.link_src[link])
        if self.switches is not None and link < 2 * np.count_nonzero(self.switches.up >= 0):
            return "up" if self.switches.up[device] == link else "down"
        if self.injection_link[device] == link:
            return "injection"
        if self.ejection_link[device] == link:
            return "ejection"
        return _DIRECTIONS[int(np.flatnonzero(self.out_link[device] == link)[0])]

    def link_name(self, link: int) -> str:
        """A link in words: "tile 0, die (2,3) -> east", "node (2,3) injection", "node 0, gpu (2,0) -> switch"."""
        direction = self.direction_of(link)
        if direction == "z-plane":
            return f"{self.place(int(self.link_src[link]))} -> {self.place(int(self.link_dst[link]))}"
        if direction in ("up", "down"):
            lower = self.place(int((self.link_src if direction == "up" else self.link_dst)[link]))
            return f"{lower} -> switch" if direction == "up" else f"switch -> {lower}"
        place = self.place(int(self.link_src[link]))
        return f"{place} -> {direction}" if direction in _DIRECTIONS else f"{place} {direction}"
