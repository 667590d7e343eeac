"""Which routes can deadlock, and the levels that keep those around dead devices from it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import EAST, NORTH, SOUTH, WEST, Routes, deadlock_free_levels, dependency_cycle, flatten, routes

FEW = settings(max_examples=30, deadline=None, derandomize=True)


def grid(rows, cols, dead=()):
    system = System.grid(rows=rows, cols=cols, bandwidth="64 GB/s", latency="1 ns")
    return flatten(system.override({"dead": [list(position) for position in dead]}) if dead else system)


def all_pairs(mesh):
    alive = np.flatnonzero(mesh.alive)
    pairs = np.array([(a, b) for a, b in itertools.product(alive, alive) if a != b]).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def table(mesh, ways):
    """Routes made by hand: (device, directions) each."""
    links, ptr, ends = [], [0], []
    for device, directions in ways:
        start = device
        for direction in directions:
            links.append(int(mesh.out_link[device, direction]))
            device = int(mesh.link_dst[links[-1]])
        ptr.append(len(links))
        ends.append((start, device))
    src, dst = np.array(ends, np.int32).T
    return Routes(np.arange(len(ways), dtype=np.int32), src, dst, np.array(ptr), np.array(links, np.int32))


@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 7), (4, 4), (3, 6)])
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_dimension_order_is_free_of_cycles(rows, cols, order):
    mesh = grid(rows, cols)
    paths = routes(mesh, *all_pairs(mesh), order)
    assert dependency_cycle(paths, np.zeros(len(paths.route_links), np.int16)) == []
    assert not deadlock_free_levels(mesh, paths, order).any()


def test_four_turns_make_a_cycle():
    mesh = grid(2, 2)
    around = table(mesh, [(0, [EAST, SOUTH]), (1, [SOUTH, WEST]), (3, [WEST, NORTH]), (2, [NORTH, EAST])])
    cycle = dependency_cycle(around, np.zeros(8, np.int16))
    expected = [int(mesh.out_link[device, way]) for device, way in ((0, EAST), (1, SOUTH), (3, WEST), (2, NORTH))]
    assert sorted(cycle) == sorted(expected)
    assert all(mesh.link_dst[a] == mesh.link_src[b] for a, b in itertools.pairwise([*cycle, cycle[0]])), "in order"
    three = table(mesh, [(0, [EAST, SOUTH]), (1, [SOUTH, WEST]), (3, [WEST, NORTH])])
    assert dependency_cycle(three, np.zeros(6, np.int16)) == []


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_one_turn_of_the_cycle_goes_up(order):
    mesh = grid(2, 2)
    around = table(mesh, [(0, [EAST, SOUTH]), (1, [SOUTH, WEST]), (3, [WEST, NORTH]), (2, [NORTH, EAST])])
    levels = deadlock_free_levels(mesh, around, order)
    assert levels.sum() == 1 and levels.max() == 1
    assert dependency_cycle(around, levels) == []


def test_routes_that_turn_around_are_refused():
    mesh = grid(1, 3)
    back_and_forth = table(mesh, [(0, [EAST, WEST, EAST]), (1, [WEST, EAST])])
    with pytest.raises(InputError, match=r"can deadlock: each of links \d+ \(device \(0,\d\) -> (east|west)\)"):
        deadlock_free_levels(mesh, back_and_forth, "xy")


@FEW
@given(seed=st.integers(0, 10**6), n_dead=st.integers(1, 5), order=st.sampled_from(["xy", "yx"]))
def test_levels_of_detours(seed, n_dead, order):
    rng = np.random.default_rng(seed)
    mesh = grid(5, 6, [divmod(int(d), 6) for d in rng.choice(30, n_dead, replace=False)])
    src, dst = all_pairs(mesh)
    try:
        paths = routes(mesh, src, dst, order)
    except InputError:  # the dead part the others
        return
    levels = deadlock_free_levels(mesh, paths, order)
    assert dependency_cycle(paths, levels) == []
    for route in range(paths.n_routes):
        of_route = levels[paths.route_ptr[route] : paths.route_ptr[route + 1]]
        assert of_route[0] == 0
        assert np.isin(np.diff(of_route), (0, 1)).all(), "a packet never goes down, and one level at a time"


def test_a_dead_device_in_the_middle_makes_a_cycle():
    mesh = grid(3, 3, [(1, 1)])
    paths = routes(mesh, *all_pairs(mesh))
    assert dependency_cycle(paths, np.zeros(len(paths.route_links), np.int16))
    assert deadlock_free_levels(mesh, paths, "xy").max() == 1


def test_nothing_to_check():
    mesh = grid(2, 2)
    none = routes(mesh, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert dependency_cycle(none, np.zeros(0, np.int16)) == []
    to_self = routes(mesh, [0, 3], [0, 2], to_self=True)
    assert deadlock_free_levels(mesh, to_self, "xy").tolist() == [0]
    assert to_self.links(0).size == 0
