"""Lines of devices that are rings: routes the shorter way round, faults, the engine, collectives, virtual channels."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import closed_form_ps, collective_lower_bound_ps, joined
from meshemu.config import parse, to_toml
from meshemu.emulator.collective_times import collective
from meshemu.emulator.timing import simulate_messages, time
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import (
    bisection_bytes_per_s,
    deadlock_free_levels,
    dependency_cycle,
    flatten,
    grid_distance,
    message_ps,
    routes,
    trees,
)
from meshemu.runtime.local import run_ranks

FEW = settings(max_examples=25, derandomize=True, deadline=None)
LINK_PS, RATE = 500_000, 50  # 500 ns, 50 B/ns


def torus(rows, cols, wrap, **changes):
    system = System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns")
    return system.override({"wrap": wrap} | {key.replace("__", "."): value for key, value in changes.items()})


def path(mesh, src, dst, order="xy"):
    return [src, *mesh.link_dst[routes(mesh, [src], [dst], order).links(0)].tolist()]


def all_pairs(mesh):
    alive = np.flatnonzero(mesh.alive)
    src, dst = np.meshgrid(alive, alive, indexing="ij")
    return src[src != dst], dst[src != dst]


def least_ps(mesh, dst):
    """Least latency of any way to dst from everywhere, by relaxing all links until nothing changes."""
    far = np.iinfo(np.int64).max // 2
    found = np.full(mesh.n_devices, far)
    found[dst] = 0
    while True:
        better = found.copy()
        np.minimum.at(better, mesh.link_src, found[mesh.link_dst] + mesh.latency_ps)
        if (better == found).all():
            return np.where(found < far, found, -1)
        found = better


def latency_ps(mesh, found):
    assert (mesh.link_dst[found.route_links[:-1]] == mesh.link_src[found.route_links[1:]])[
        np.setdiff1d(np.arange(len(found.route_links) - 1), found.route_ptr[1:-1] - 1)
    ].all(), "links join up"
    return message_ps(mesh, found, 0)


def test_links_and_their_class():
    mesh = flatten(torus(3, 4, "both"))
    assert mesh.n_links == 4 * 12 and mesh.class_names == ("link", "wrap_edge")
    assert np.count_nonzero(mesh.wrap_around) == 2 * (3 + 4)
    assert (mesh.link_class == mesh.wrap_around).all()
    assert (mesh.link_src[mesh.out_link[3, 1]], mesh.link_dst[mesh.out_link[3, 1]]) == (3, 0)
    assert mesh.link_name(int(mesh.out_link[8, 2])) == "device (2,0) -> south"
    assert bisection_bytes_per_s(flatten(torus(4, 4, "columns"))) == 2 * 4 * 50 * 10**9
    only_rows = flatten(torus(3, 4, "rows"))
    assert only_rows.n_links == 2 * (3 * 4 + 2 * 4) and (only_rows.row_rings, only_rows.column_rings) == (True, False)


def test_figures_are_those_of_the_outermost_class_until_given():
    tile = System.preset("dojo-tile").override({"wrap": "rows"})
    mesh = flatten(tile)
    around = mesh.wrap_around
    assert set(mesh.bandwidth_bytes_per_s[around]) == {900 * 10**9} and set(mesh.latency_ps[around]) == {200_000}
    slower = flatten(tile.override({"tile_edge.latency": "300 ns"}))
    assert set(slower.latency_ps[slower.wrap_around]) == {300_000}
    own = flatten(tile.override({"wrap_edge.bandwidth": "1 TB/s", "tile_edge.latency": "300 ns"}))
    assert set(own.bandwidth_bytes_per_s[own.wrap_around]) == {200 * 10**9}
    assert System.from_json(tile.to_json()) == tile
    wafer = flatten(System.preset("wse2-die").override({"wrap": "both"}))
    assert wafer.class_names == ("fabric", "wrap_edge")
    for direction in (0, 1):  # the fabric goes on around the wafer
        links = wafer.out_link[:, direction]
        assert len(set(wafer.bandwidth_bytes_per_s[links])) == len(set(wafer.latency_ps[links])) == 1


def test_routes_of_a_ring_of_six_written_out():
    mesh = flatten(torus(1, 6, "rows"))
    assert path(mesh, 0, 4) == [0, 5, 4] and path(mesh, 4, 1) == [4, 5, 0, 1]
    assert path(mesh, 0, 3) == [0, 1, 2, 3], "to the opposite side, even columns go east"
    assert path(mesh, 3, 0) == [3, 2, 1, 0] and path(mesh, 1, 4) == [1, 0, 5, 4], "odd ones west"
    column = flatten(torus(6, 1, "columns"))
    assert path(column, 0, 3) == [0, 5, 4, 3] and path(column, 1, 4) == [1, 2, 3, 4], "even rows north"


@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_all_pairs_load_all_links_of_a_ring_alike(n):
    mesh = flatten(torus(1, n, "rows"))
    found = routes(mesh, *all_pairs(mesh))
    load = np.bincount(found.route_links, minlength=mesh.n_links)
    assert np.ptp(load) == (1 if n % 4 == 2 else 0), "an odd number of hops to the opposite side is not shared evenly"


TORI = st.tuples(
    st.integers(3, 6), st.integers(3, 7), st.sampled_from(["rows", "columns", "both"]), st.sampled_from(["xy", "yx"]),
    st.sampled_from([0, 300, 500, 700, 4000]),
)  # fmt: skip


@FEW
@given(TORI)
def test_no_way_is_shorter_and_none_longer_than_without(case):
    rows, cols, wrap, order, latency_ns = case
    mesh = flatten(torus(rows, cols, wrap, wrap_edge__latency=f"{latency_ns} ns"))
    plain = flatten(torus(rows, cols, "none"))
    src, dst = all_pairs(mesh)
    found = latency_ps(mesh, routes(mesh, src, dst, order))
    best = np.stack([least_ps(mesh, target) for target in range(mesh.n_devices)])
    assert (found == best[dst, src]).all()
    assert (found <= message_ps(plain, routes(plain, src, dst, order), 0)).all()
    if latency_ns == 500:
        assert (found == grid_distance(mesh, src, dst) * LINK_PS).all()


@FEW
@given(TORI, st.integers(0, 10**6), st.integers(1, 6))
def test_detours_are_shortest_and_routes_to_one_place_form_a_tree(case, seed, n_dead):
    rows, cols, wrap, order, latency_ns = case
    rng = np.random.default_rng(seed)
    dead = [list(map(int, divmod(d, cols))) for d in rng.choice(rows * cols, n_dead, replace=False)]
    mesh = flatten(torus(rows, cols, wrap, wrap_edge__latency=f"{latency_ns} ns", dead=dead))
    target = int(np.flatnonzero(mesh.alive)[0])
    best = least_ps(mesh, target)
    members = np.flatnonzero(mesh.alive & (best > 0))
    found = routes(mesh, members, np.full(len(members), target), order)
    assert (latency_ps(mesh, found) == best[members]).all()
    merged = trees(mesh, [target], [False], members, np.zeros(len(members), int), order)
    assert [merged.path(i) for i in range(len(members))] == [found.links(int(i)).tolist() for i in found.index]
    for lost in np.flatnonzero(mesh.alive & (best < 0)):
        with pytest.raises(InputError, match="no route"):
            routes(mesh, [lost], [target], order)


def test_a_detour_goes_on_as_the_places_on_its_way_do():
    """(2,3) can only go up to (1,3), from where both ways along the row are as long: odd columns go
    west; (3,2) only to (3,1), and odd rows south.
    """
    mesh = flatten(torus(3, 4, "rows", dead=[[2, 0], [2, 2]]))
    assert path(mesh, 7, 1) == [7, 6, 5, 1] and path(mesh, 11, 1) == [11, 7, 6, 5, 1]
    turned = flatten(torus(4, 3, "columns", dead=[[0, 2], [2, 2]]))
    assert path(turned, 10, 3, "yx") == [10, 1, 4, 3] and path(turned, 11, 3, "yx") == [11, 10, 1, 4, 3]


def test_dead_and_slow_links_around_the_mesh():
    mesh = flatten(torus(1, 5, "rows", dead_links=[[[0, 4], [0, 0]]]))
    assert mesh.n_links == 8 and path(mesh, 0, 4) == [0, 1, 2, 3, 4]
    slow = flatten(torus(3, 3, "both", slow_links=[[[2, 1], [0, 1], 10]]))
    assert slow.bandwidth_bytes_per_s[slow.out_link[7, 2]] == 5 * 10**9
    assert np.count_nonzero(slow.bandwidth_bytes_per_s == 5 * 10**9) == 1
    with pytest.raises(InputError, match=r"dead_links: devices \(0,0\) and \(2,0\) are not neighbours"):
        torus(3, 3, "rows", dead_links=[[[0, 0], [2, 0]]])


def test_a_message_over_the_link_around_the_mesh():
    system = torus(1, 8, "rows")
    done = simulate_messages(system, [0, 6], [7, 1], [10**6, 1000], [0, 10**9])
    assert done.arrival_ps.tolist() == [LINK_PS + 20_000_000, 10**9 + 3 * LINK_PS + 20_000]
    mesh = flatten(system)
    assert done.links.bytes[mesh.wrap_around].tolist() == [10**6, 1000]
    assert done.links.bytes.sum() == 10**6 + 3 * 1000


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_ring_all_reduce_on_a_ring_is_the_formula_with_equal_hops(n):
    """2 (n - 1) (L + S / (n B)): where a folded line has edges of two hops."""
    size = 4 * n * 1000
    expected = 2 * (n - 1) * (LINK_PS + 4 * 1000 * 20)
    for system in (torus(1, n, "rows"), torus(n, 1, "columns")):
        for algorithm in ("ring", "rows_columns"):
            program = collective("all_reduce", algorithm, system=system, size_bytes=size, itemsize=4)
            assert time(program, system).end_ps == expected
    line = torus(1, n, "none")
    longer = time(collective("all_reduce", "ring", system=line, size_bytes=size, itemsize=4), line).end_ps
    assert longer > expected if n > 2 else longer == expected


@pytest.mark.parametrize(("rows", "cols", "wrap"), [(3, 5, "rows"), (5, 3, "columns"), (3, 3, "both"), (4, 5, "both")])
def test_an_odd_grid_with_rings_has_a_cycle_of_single_hops(rows, cols, wrap):
    system = torus(rows, cols, wrap)
    n, size = rows * cols, 4 * rows * cols * 100
    program = collective("all_reduce", "ring", system=system, size_bytes=size, itemsize=4)
    assert time(program, system).end_ps == 2 * (n - 1) * (LINK_PS + 4 * 100 * 20)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "all_gather", "broadcast"])
@pytest.mark.parametrize("algorithm", ["ring", "rows_columns", "tree"])
def test_formulas_hold_on_rings(kind, algorithm):
    system = torus(3, 4, "both", wrap_edge__bandwidth="80 GB/s")
    mesh = flatten(system)
    program = collective(kind, algorithm, system=system, size_bytes=4 * 12 * 64, itemsize=4)
    grid = np.arange(12).reshape(3, 4)
    formula = closed_form_ps(kind, algorithm, mesh, grid, 4 * 12 * 64, 4, np.zeros_like)
    end_ps = time(program, system).end_ps
    if algorithm != "tree" or kind in ("all_reduce", "broadcast"):
        assert end_ps == formula
    assert collective_lower_bound_ps(kind, mesh, grid, 4 * 12 * 64) <= end_ps


def test_which_groups_are_rings():
    mesh = flatten(torus(4, 6, "rows"))
    grid = np.arange(24).reshape(4, 6)

    def flags(devices):
        return joined(mesh, devices).column_rings, joined(mesh, devices).row_rings

    assert flags(grid) == (False, True) and flags(grid.T) == (True, False)
    assert flags(grid[:, ::2]) == (False, True), "every other device, all around"
    assert flags(grid[:, :5]) == (False, False) and flags(grid[:, [0, 2, 3]]) == (False, False)
    missing = np.where(grid == 7, -1, grid)
    assert flags(missing) == (False, True)
    assert not joined(flatten(torus(4, 6, "none")), grid).row_rings
    slower = flatten(torus(4, 6, "rows", slow_links=[[[1, 5], [1, 0], 2]]))
    assert not joined(slower, grid).row_rings, "a slow link around would hold up every chunk"


@pytest.mark.parametrize("wrap", ["rows", "both"])
def test_any_number_of_ranks_sees_the_same(wrap):
    system = torus(4, 5, wrap, wrap_edge__latency="300 ns", dead=[[1, 1]])
    rng = np.random.default_rng(3)
    alive = np.flatnonzero(flatten(system).alive)
    src, dst = (rng.choice(alive, 300) for _ in range(2))
    src, dst = src[src != dst], dst[src != dst]
    size, ready = rng.integers(1, 20_000, len(src)), rng.integers(0, 10**7, len(src))
    alone = simulate_messages(system, src, dst, size, ready)
    for n_ranks in (2, 3, 4):
        for found in run_ranks(n_ranks, lambda comm: simulate_messages(system, src, dst, size, ready, comm=comm)):
            assert (found.arrival_ps == alone.arrival_ps).all() and (found.links.busy_ps == alone.links.busy_ps).all()
    program = collective("all_reduce", "ring", system=system, size_bytes=19 * 4 * 50, itemsize=4)
    whole = time(program, system)
    for found in run_ranks(3, lambda comm: time(program, system, comm=comm)):
        assert (found.ops.end_ps == whole.ops.end_ps).all() and (found.links.bytes == whole.links.bytes).all()
    found = routes(flatten(system), src, dst)
    hops = np.diff(found.route_ptr)[found.index]
    assert alone.links.bytes.sum() == (size * hops).sum(), "bytes on links are those of messages times hops"


@FEW
@given(TORI, st.integers(0, 10**6), st.integers(0, 3))
def test_levels_keep_rings_from_deadlock(case, seed, n_dead):
    rows, cols, wrap, order, _ = case
    rng = np.random.default_rng(seed)
    dead = [list(map(int, divmod(d, cols))) for d in rng.choice(rows * cols, n_dead, replace=False)]
    mesh = flatten(torus(rows, cols, wrap, dead=dead))
    try:
        found = routes(mesh, *all_pairs(mesh), order)
    except InputError:  # the dead part the others
        return
    levels = deadlock_free_levels(mesh, found, order)
    assert dependency_cycle(found, levels) == []
    for route in range(found.n_routes):
        of_route = levels[found.route_ptr[route] : found.route_ptr[route + 1]]
        assert of_route[0] == 0 and np.isin(np.diff(of_route), (0, 1)).all()
    if not n_dead:
        assert levels.max() <= (2 if wrap == "both" else 1)


def test_routers_take_rings_by_virtual_channels():
    system = torus(1, 6, "rows")
    src = np.arange(6)
    sent = dict(src=src, dst=(src + 2) % 6, size_bytes=np.full(6, 64_000))
    mesh = flatten(system)
    found = routes(mesh, sent["src"], sent["dst"])
    assert dependency_cycle(found, np.zeros(len(found.route_links), np.int16)), "without levels it could"
    done = simulate_messages(system, *sent.values(), router=Router(virtual_channels=2, buffer_flits=2))
    assert done.links.bytes[mesh.out_link[:, 1]].tolist() == [128_000] * 6
    with pytest.raises(InputError, match=r"go around the mesh up to 1 times: .* virtual_channels = 2 .* has 1"):
        simulate_messages(system, *sent.values(), router=Router(virtual_channels=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wrap": "round"}, "wrap = 'round' is not one of none, rows, columns, both"),
        ({"wrap": "rows"}, "wrap = rows: a row of 4 x 2 devices has 2 devices, a ring takes 3"),
        ({"wrap_edge.latency": "1 us"}, "wrap_edge.latency: there are no wrap-around links; set wrap = rows"),
        ({"wrap": "columns", "wrap_edge.length": 3}, "unknown figure 'wrap_edge.length' .*wrap_edge.bandwidth"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        torus(4, 2, "none").override(change)


def test_a_configuration_and_its_overrides_say_how_edges_are_joined():
    text = """
    plan = "data"
    [system]
    preset = "dojo-tray"
    wrap = "rows"
    wrap_edge.latency = "1 us"
    z_plane = ["west", "east"]
    [model]
    name = "gpt"
    [data]
    name = "random_tokens"
    batch_size = 4
    [training]
    steps = 1
    optimizer = { name = "sgd", lr = 0.1 }
    """
    for overrides, wrap, plane in (
        ([], "rows", ("west", "east")),
        (["system.wrap=both", "system.z_plane=true"], "both", ("west", "east")),
        (["system.z_plane=false"], "rows", ()),
        (["system.z_plane=['north']"], "rows", ("north",)),
    ):
        config = parse(text, overrides, origin="a.toml", directory=Path("/base"))
        again = parse(to_toml(config), origin="again", directory=Path("/base"))
        for section in (config.system, again.system):
            system = System.preset(section.preset).override(section.overrides)
            assert (system.wrap, system.z_plane) == (wrap, plane)
            assert system.figure("wrap_edge.latency").number == 10**6
            assert system.figure("wrap_edge.bandwidth") == system.figure("tile_edge.bandwidth")


def test_rings_come_off_and_switches_have_none():
    system = torus(3, 3, "both", wrap_edge__latency="1 us")
    assert system.override({"wrap": "none"}) == torus(3, 3, "none")
    with pytest.raises(InputError, match="wrap: the gpus of a100-8 are joined by switches"):
        System.preset("a100-8").override({"wrap": "rows"})


def test_every_order_of_a_torus_is_covered():
    """Both orders visit the same corners as on a mesh: the second dimension is entered where the first has ended."""
    mesh = flatten(torus(5, 5, "both"))
    for src, dst in itertools.product((0, 7, 24), (4, 12, 20)):
        if src != dst:
            corner = {"xy": src // 5 * 5 + dst % 5, "yx": dst // 5 * 5 + src % 5}
            assert all(corner[order] in path(mesh, src, dst, order) for order in corner)
