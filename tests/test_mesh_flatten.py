"""Nested machines as flat grids: numbering, classes, shares of an edge, dead devices, words."""

import numpy as np
import pytest

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import EAST, NORTH, SOUTH, WEST, bandwidth_between_bytes_per_s, bisection_bytes_per_s, flatten


def grid(rows, cols):
    return System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns")


def test_links_of_a_2x3_grid_written_out():
    # 0 1 2
    # 3 4 5
    mesh = flatten(grid(2, 3))
    expected = [
        (0, 1), (0, 3), (1, 2), (1, 4), (1, 0), (2, 5), (2, 1),
        (3, 0), (3, 4), (4, 1), (4, 5), (4, 3), (5, 2), (5, 4),
    ]  # fmt: skip
    assert list(zip(mesh.link_src.tolist(), mesh.link_dst.tolist(), strict=True)) == expected
    assert mesh.out_link[4].tolist() == [9, 10, -1, 11] and mesh.out_link[0].tolist() == [-1, 0, 1, -1]
    assert mesh.class_names == ("link",) and set(mesh.bandwidth_bytes_per_s) == {50 * 10**9}
    assert set(mesh.latency_ps) == {500_000} and (mesh.injection_link == -1).all() and not mesh.tile_row.any()
    assert mesh.link_name(10) == "device (1,1) -> east" and mesh.direction_of(9) == "north"
    assert mesh.device_id(1, 2) == 5
    with pytest.raises(InputError, match=r"no device \(2,0\) in a grid of 2 x 3"):
        mesh.device_id(2, 0)


@pytest.mark.parametrize("system", [grid(4, 5), System.preset("dojo-tray"), System.preset("dojo-die")])
def test_arrays_agree_with_each_other(system):
    mesh = flatten(system)
    n_mesh_links = int((mesh.out_link >= 0).sum())
    src, dst = mesh.link_src[:n_mesh_links], mesh.link_dst[:n_mesh_links]
    assert (np.diff(src) >= 0).all()
    steps = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}
    for device, direction in zip(*np.nonzero(mesh.out_link >= 0), strict=True):
        link = mesh.out_link[device, direction]
        step = (mesh.row[dst[link]] - mesh.row[device], mesh.col[dst[link]] - mesh.col[device])
        assert src[link] == device and step == steps[direction]
        assert mesh.direction_of(link) == ("north", "east", "south", "west")[direction]
    assert mesh.alive[src].all() and mesh.alive[dst].all()
    dtypes = {"link_src": "i4", "link_class": "i1", "latency_ps": "i8", "bandwidth_bytes_per_s": "i8"}
    for name, dtype in dtypes.items():
        array = getattr(mesh, name)
        assert array.dtype == dtype and array.shape == (mesh.n_links,)
    for name in ("row", "col", "tile_row", "tile_col", "injection_link", "ejection_link"):
        assert getattr(mesh, name).dtype == np.int32 and getattr(mesh, name).shape == (mesh.n_devices,)


def test_die_links_share_the_edge_of_a_tile():
    mesh = flatten(System.preset("dojo-tray"))
    assert mesh.class_names == ("die_edge", "tile_edge")
    inside, across = (mesh.bandwidth_bytes_per_s[mesh.link_class == index] for index in (0, 1))
    assert set(inside) == {2 * 10**12} and set(across) == {9 * 10**11}
    assert set(mesh.latency_ps[mesh.link_class == 0]) == {100_000}
    assert len(across) == 7 * 5 * 2 and len(inside) == 6 * 80
    crossing = mesh.tile_row[mesh.link_src] != mesh.tile_row[mesh.link_dst]
    crossing |= mesh.tile_col[mesh.link_src] != mesh.tile_col[mesh.link_dst]
    assert (crossing == (mesh.link_class == 1)).all()


def test_tiles_as_devices_have_the_whole_edge():
    mesh = flatten(System.preset("dojo-tray", "tile"))
    assert mesh.class_names == ("tile_edge",) and set(mesh.bandwidth_bytes_per_s) == {4_500_000_000_000}
    assert mesh.tile_row.tolist() == [0, 0, 0, 1, 1, 1] and mesh.place(4) == "tile (1,1)"
    assert flatten(System.preset("dojo-tile", "tile")).n_links == 0


def test_nodes_share_edges_and_have_injection():
    mesh = flatten(System.preset("dojo-tray", "node"))
    assert mesh.class_names == ("noc", "die_edge", "tile_edge", "injection", "ejection")
    by_class = {name: set(mesh.bandwidth_bytes_per_s[mesh.link_class == i]) for i, name in enumerate(mesh.class_names)}
    assert by_class["noc"] == {512 * 10**9}
    assert by_class["die_edge"] == {2 * 10**12 // 18, 2 * 10**12 // 20}
    assert by_class["tile_edge"] == {4_500_000_000_000 // 90, 4_500_000_000_000 // 100}
    assert by_class["injection"] == by_class["ejection"] == {128 * 10**9}
    corner = mesh.device_id(17, 19)  # 18 rows share its east edge, 20 columns its south edge
    shares = mesh.bandwidth_bytes_per_s[mesh.out_link[corner, [EAST, SOUTH]]]
    assert shares.tolist() == [2 * 10**12 // 18, 2 * 10**12 // 20]
    ports = mesh.injection_link[mesh.alive]
    assert (mesh.link_src[ports] == np.flatnonzero(mesh.alive)).all() and not mesh.latency_ps[ports].any()
    assert (mesh.injection_link[~mesh.alive] == -1).all() and (mesh.alive.sum(), mesh.n_devices) == (53100, 54000)
    assert mesh.link_name(mesh.injection_link[0]) == "tile (0,0), die (0,0), node (0,0) injection"
    assert mesh.link_name(mesh.ejection_link[21]) == "tile (0,0), die (0,1), node (0,1) ejection"


def test_published_bisections_and_edges():
    """Reference case 9: links x bandwidth."""
    assert bisection_bytes_per_s(flatten(System.preset("dojo-die"))) == 20 * 512 * 10**9
    assert bisection_bytes_per_s(flatten(System.preset("dojo-tile"))) == 10 * 10**12
    tray = flatten(System.preset("dojo-tray"))
    assert bisection_bytes_per_s(tray) == 13_500_000_000_000
    tile = (tray.tile_row == 0) & (tray.tile_col == 1)
    assert bandwidth_between_bytes_per_s(tray, tile, tray.tile_col == 2) == 4_500_000_000_000
    assert bandwidth_between_bytes_per_s(tray, tile, ~tile) == 3 * 4_500_000_000_000


def test_dead_devices_and_links_have_no_links():
    mesh = flatten(grid(3, 3).override({"dead": [[1, 1]], "dead_links": [[[0, 1], [0, 0]], [[1, 0], [2, 0]]]}))
    assert mesh.n_links == 24 - 8 - 4 and not mesh.alive[4]
    assert not (set(mesh.link_src) | set(mesh.link_dst)) & {4}
    assert mesh.out_link[0].tolist() == [-1, -1, 0, -1]
    assert mesh.out_link[6, NORTH] == -1 and mesh.out_link[1, WEST] == -1


def test_slow_links_lose_bandwidth_in_one_direction():
    plain, slow = (flatten(grid(3, 3).override(values)) for values in ({}, {"slow_links": [[[1, 1], [1, 2], 10]]}))
    link = slow.out_link[4, EAST]
    expected = plain.bandwidth_bytes_per_s.copy()
    expected[link] //= 10
    assert (slow.bandwidth_bytes_per_s == expected).all() and (slow.latency_ps == plain.latency_ps).all()


def test_places_in_words():
    tile = flatten(System.preset("dojo-tile"))
    assert tile.place(13) == "tile 0, die (2,3)"
    assert tile.link_name(tile.out_link[13, EAST]) == "tile 0, die (2,3) -> east"
    tray = flatten(System.preset("dojo-tray"))
    assert tray.place(tray.device_id(2, 8)) == "tile (0,1), die (2,3)"
    assert tray.place(tray.device_id(7, 3)) == "tile (1,0), die (2,3)"
    die = flatten(System.preset("dojo-die"))
    assert die.place(25) == "die 0, node (1,5)"
