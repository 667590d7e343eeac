"""The Z-plane: which messages leave the mesh for Ethernet, when they arrive, what the links carry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.emulator.collective_times import collective
from meshemu.emulator.timing import simulate_messages, time
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import flatten, grid_distance, message_ps, message_routes, ranks_of_vertices, routes
from meshemu.mesh.interfaces import interface_devices
from meshemu.network import contention_free
from meshemu.program import ProgramBuilder
from meshemu.program.loads import link_bytes, lower_bound_ps
from meshemu.runtime.local import run_ranks

CROSSING_PS = 200_000 + 650_000 + 650_000 + 200_000
ETHERNET_PS_PER_BYTE = 20  # 50 GB/s


def strip(n_tiles, **changes):
    """One row of tiles of 1 x 5 dies each, 5 interface processors beside the first and the last die."""
    system = System.preset("dojo-tray").override({"tiles": [1, n_tiles], "dies": [1, 5]})
    return system.override({"z_plane": True} | {key.replace("__", "."): value for key, value in changes.items()})


def mesh_ps(n_hops, n_tile_edges, size):
    return 100_000 * (n_hops - n_tile_edges) + 200_000 * n_tile_edges + size // 2  # over die edges of 2 TB/s


def test_links_stand_after_those_of_the_mesh_in_four_groups():
    system = strip(2)
    mesh, plain = flatten(system), flatten(system.override({"z_plane": False}))
    plane = mesh.z_plane
    assert plane.beside.tolist() == [0] * 5 + [9] * 5 == interface_devices(plain, ("west", "east"), 5).tolist()
    assert mesh.n_links == plain.n_links + 40 == plane.first_link + 40 and mesh.n_vertices == 10 + 10 + 1
    assert (mesh.link_src[: plain.n_links] == plain.link_src).all()
    assert mesh.class_names == (*plain.class_names, "interface_edge", "ethernet")
    out, up, down, back = np.arange(plane.first_link, mesh.n_links).reshape(4, 10)
    assert mesh.link_src[out].tolist() == mesh.link_dst[back].tolist() == plane.beside.tolist()
    assert mesh.link_dst[out].tolist() == mesh.link_src[up].tolist() == mesh.link_dst[down].tolist() == [*range(10, 20)]
    assert set(mesh.link_dst[up]) == set(mesh.link_src[down]) == {20}
    assert set(mesh.latency_ps[out]) == {200_000} and set(mesh.latency_ps[up]) == {650_000}
    assert set(mesh.bandwidth_bytes_per_s[back]) == {900 * 10**9}
    assert set(mesh.bandwidth_bytes_per_s[down]) == {50 * 10**9}
    assert mesh.link_name(int(out[7])) == "tile (0,1), die (0,4) -> interface processor 7"
    assert mesh.link_name(int(down[3])) == "Ethernet switch -> interface processor 3"
    assert mesh.direction_of(int(up[0])) == "z-plane" and not mesh.on_grid[plane.first_link :].any()
    odd = flatten(strip(2, interface__ethernet_latency="1001 ps"))
    assert odd.latency_ps[up[0]] + odd.latency_ps[down[0]] == 1001


def test_a_far_message_goes_over_ethernet_and_a_near_or_long_one_does_not():
    """30 dies in a row: 29 hops, five of them between tiles, take 3.4 us; edge, Ethernet and edge 1.7 us."""
    system = strip(6)
    sent = dict(src=[0, 29, 0, 3, 0], dst=[29, 0, 10, 27, 29], size_bytes=[1000, 1000, 1000, 1000, 10**6])
    done = simulate_messages(system, *sent.values(), [0, 0, 10**9, 2 * 10**9, 3 * 10**9])
    way_ps = done.arrival_ps - [0, 0, 10**9, 2 * 10**9, 3 * 10**9]
    over = 1000 * ETHERNET_PS_PER_BYTE
    assert way_ps.tolist() == [
        CROSSING_PS + over,
        CROSSING_PS + over,
        mesh_ps(10, 2, 1000),
        CROSSING_PS + 300_000 + 200_000 + over,
        mesh_ps(29, 5, 10**6),
    ]
    mesh = flatten(system)
    assert done.links.bytes[mesh.link_class == 3].sum() == 2 * 3 * 1000, "of three messages, up and down each"
    found = message_routes(mesh, *sent.values())
    hops = np.diff(found.route_ptr)[found.index]
    assert hops.tolist() == [4, 4, 10, 4 + 3 + 2, 29]
    assert done.links.bytes.sum() == (np.array(sent["size_bytes"]) * hops).sum()


def test_a_message_that_gains_nothing_stays_on_the_mesh():
    """One byte takes 3,400,001 ps over the mesh, and 400,020 ps and Ethernet's latency over the Z-plane."""
    for latency_ps, hops in ((2_999_981, 29), (2_999_980, 4)):
        found = message_routes(flatten(strip(6, interface__ethernet_latency=f"{latency_ps} ps")), [0], [29], 1)
        assert len(found.links(int(found.index[0]))) == hops


def test_messages_share_ethernet_links_by_turns():
    """Of the five interface processors beside a die, number (src + dst) mod 5; two messages over one queue up."""
    system = strip(6)
    size = 20_000
    done = simulate_messages(system, [0] * 3, [29, 29, 28], [size] * 3)
    alone = CROSSING_PS + size * ETHERNET_PS_PER_BYTE
    assert sorted(done.arrival_ps.tolist()) == [alone, alone + 100_000, alone + size * ETHERNET_PS_PER_BYTE]
    mesh = flatten(system)
    plane = mesh.z_plane
    assert plane.n_nearest[[0, 10, 29]].tolist() == [5, 5, 5]
    assert plane.gate(np.array([10, 10, 12]), np.array([7, 8, 12])).tolist() == [2, 3, 2]
    assert done.links.bytes[plane.first_link + np.arange(10)].tolist() == [0, 0, 0, size, 2 * size, 0, 0, 0, 0, 0]


CASES = st.tuples(
    st.integers(1, 2), st.integers(1, 5), st.sampled_from([["west"], ["west", "east"], ["north", "south", "east"]]),
    st.sampled_from(["none", "rows"]), st.integers(0, 10**6), st.integers(0, 4),
)  # fmt: skip


@settings(max_examples=20, derandomize=True, deadline=None)
@given(CASES)
def test_every_message_takes_the_sooner_of_both_ways(case):
    rows, cols, edges, wrap, seed, n_dead = case
    rng = np.random.default_rng(seed)
    plain = System.preset("dojo-tray").override({"tiles": [rows, cols], "wrap": wrap})
    n = plain.rows * plain.cols
    dead = [list(map(int, divmod(d, plain.cols))) for d in rng.choice(n, n_dead, replace=False)]
    try:
        plain = plain.override({"dead": dead})
        system = plain.override({"z_plane": edges, "interface.ethernet_latency": f"{rng.integers(10, 900)} ns"})
        mesh = flatten(system)
        src, dst = rng.choice(np.flatnonzero(mesh.alive), (2, 200))
        src, dst = src[src != dst], dst[src != dst]
        over_mesh = routes(mesh, src, dst)
    except InputError:  # the dead part the others, or no interface processor is left
        return
    size = rng.choice([1, 100, 10_000], len(src))
    found = message_routes(mesh, src, dst, size)
    least = message_ps(mesh, over_mesh, size)
    taken = message_ps(mesh, found, size)
    plane = mesh.z_plane
    crosses = np.array([(found.links(int(i)) >= plane.first_link).any() for i in found.index])
    assert (taken[crosses] < least[crosses]).all() and (taken[~crosses] == least[~crosses]).all()
    for i in np.flatnonzero(crosses):
        links = found.links(int(found.index[i]))
        assert (mesh.link_dst[links[:-1]] == mesh.link_src[links[1:]]).all()
        assert (mesh.link_src[links[0]], mesh.link_dst[links[-1]]) == (src[i], dst[i])
        assert np.count_nonzero(links >= plane.first_link) == 4
    if n_dead == 0:
        near = np.array([grid_distance(mesh, np.arange(n), at) for at in plane.beside])
        gates = plane.gate(np.arange(n), np.zeros(n, int))
        assert (near[gates, np.arange(n)] == near.min(axis=0)).all()
        # Latencies from each device to those beside interface processors tell what no message would gain by.
        to_edge = np.array([_latency_ps(mesh, at) for at in plane.beside])
        gate = [plane.gate(ends, src + dst) for ends in (src, dst)]
        edges_ps = to_edge[gate[0], src] + to_edge[gate[1], dst]
        apart = gate[0] != gate[1]
        crossing = 400_000 + system.figure("interface.ethernet_latency").number
        slowest = size * ETHERNET_PS_PER_BYTE
        assert (crosses == (apart & (edges_ps + crossing + slowest < least))).all()


def _latency_ps(mesh, device):
    others = np.arange(mesh.n_devices)
    found = np.zeros(mesh.n_devices, np.int64)
    away = others != device
    found[away] = message_ps(mesh, routes(mesh, others[away], np.full(away.sum(), device)), 0)
    return found


def test_any_number_of_ranks_sees_the_same_and_bytes_are_conserved():
    system = strip(3, wrap="rows")
    rng = np.random.default_rng(5)
    src, dst = rng.integers(0, 15, (2, 200))
    src, dst = src[src != dst], dst[src != dst]
    size, ready = rng.integers(1, 4000, len(src)), rng.integers(0, 10**7, len(src))
    faster = system.override({"interface.ethernet_latency": "10 ns", "interface.link_latency": "10 ns"})
    alone = simulate_messages(faster, src, dst, size, ready)
    mesh = flatten(faster)
    ethernet = mesh.link_class == mesh.class_names.index("ethernet")
    assert alone.links.bytes[ethernet].any()
    for n_ranks in (2, 3, 4):
        assert len(set(ranks_of_vertices(mesh, n_ranks)[mesh.n_devices :])) > 1
        for found in run_ranks(n_ranks, lambda comm: simulate_messages(faster, src, dst, size, ready, comm=comm)):
            assert (found.arrival_ps == alone.arrival_ps).all() and (found.links.bytes == alone.links.bytes).all()
    found = message_routes(mesh, src, dst, size)
    assert alone.links.bytes.sum() == (size * np.diff(found.route_ptr)[found.index]).sum()


def test_programs_and_their_loads_follow_the_same_routes():
    system = strip(6).override({"mesh.multicast": True, "mesh.reduction": True})
    mesh = flatten(system)
    builder = ProgramBuilder(30)
    builder.messages([0, 3, 12], [29, 27, 1], [1000, 1000, 10**6], label="move")
    program = builder.build()
    done = time(program, system)
    assert (link_bytes(program, mesh) == done.links.bytes).all() and done.links.bytes[mesh.z_plane.first_link :].any()
    assert contention_free(program, mesh, np.zeros(program.n_ops)).end_ps.max() == done.end_ps
    assert lower_bound_ps(program, mesh) == done.end_ps
    forked = collective("broadcast", "in_network", system=system, size_bytes=6000, root=0)
    assert not time(forked, system).links.bytes[mesh.z_plane.first_link :].any(), "trees stay on the mesh"


@pytest.mark.parametrize(
    ("system", "value", "message"),
    [
        ("dojo-tray", "up", "z_plane = 'up' is neither true nor false nor a list of north, east, south, west"),
        ("dojo-tray", ["west", "top"], "z_plane: 'top' is not one of north, east, south, west"),
        ("dojo-tray", ["west", "west"], "z_plane: an edge is named twice in west, west"),
        ("dojo-die", True, "z_plane: dojo-die has no figure interface.per_edge"),
        ("a100-8", True, "z_plane: the gpus of a100-8 are joined by switches"),
    ],
)
def test_refusals(system, value, message):
    with pytest.raises(InputError, match=message):
        System.preset(system).override({"z_plane": value})


def test_nodes_and_routers_and_dead_edges_are_refused():
    with pytest.raises(InputError, match=r"z_plane: .*set system\.devices = 'die'"):
        System.preset("dojo-tile", "node").override({"z_plane": True})
    with pytest.raises(InputError, match=r"leave system\.z_plane = false"):
        simulate_messages(strip(1), [0], [4], 10, router=Router())
    dead = strip(2, dead=[[0, 0], [0, 9]])
    with pytest.raises(InputError, match="z_plane: no live device is beside one of the 10 interface processors"):
        flatten(dead)


def test_tiles_as_devices_and_stored_systems():
    system = System.preset("dojo-exapod", "tile").override({"z_plane": ["north"]})
    mesh = flatten(system)
    assert mesh.z_plane.n_interfaces == 200 and (mesh.z_plane.n_nearest[:40] == 5).all()
    done = simulate_messages(system, [0], [39], 1)
    assert done.arrival_ps.tolist() == [CROSSING_PS + ETHERNET_PS_PER_BYTE], "39 hops of 200 ns on the mesh"
    assert System.from_json(system.to_json()) == system
