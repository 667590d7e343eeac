"""Routes: written out, Manhattan lengths, detours around what is dead, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten, routes


def mesh_of(rows, cols, **faults):
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns").override(faults))


def visited(mesh, found, route):
    """Devices on a route, checking that its links join up."""
    links = found.links(route)
    links = links[mesh.link_src[links] != mesh.link_dst[links]]
    assert (mesh.link_dst[links[:-1]] == mesh.link_src[links[1:]]).all()
    return [int(mesh.link_src[links[0]]), *mesh.link_dst[links].tolist()]


def path(mesh, src, dst, order="xy"):
    return visited(mesh, routes(mesh, [src], [dst], order), 0)


def test_routes_of_a_3x3_grid_written_out():
    # 0 1 2
    # 3 4 5
    # 6 7 8
    mesh = mesh_of(3, 3)
    assert path(mesh, 0, 8) == [0, 1, 2, 5, 8]
    assert path(mesh, 0, 8, "yx") == [0, 3, 6, 7, 8]
    assert path(mesh, 8, 0) == [8, 7, 6, 3, 0]
    assert path(mesh, 5, 6) == [5, 4, 3, 6]
    assert path(mesh, 2, 7, "yx") == [2, 5, 8, 7]
    assert path(mesh, 1, 7) == [1, 4, 7]


def pairs_among(n):
    device = st.integers(0, n - 1)
    return st.tuples(device, device).filter(lambda pair: pair[0] != pair[1])


PAIRS = st.integers(1, 7).flatmap(
    lambda rows: st.integers(1 if rows > 1 else 2, 7).flatmap(
        lambda cols: st.tuples(
            st.just((rows, cols)),
            st.lists(pairs_among(rows * cols), min_size=1, max_size=12),
            st.sampled_from(["xy", "yx"]),
        )
    )
)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(PAIRS)
def test_length_is_manhattan_and_turns_at_most_once(case):
    (rows, cols), pairs, order = case
    mesh = mesh_of(rows, cols)
    src, dst = np.array(pairs).T
    found = routes(mesh, src, dst, order)
    assert found.n_routes == len(set(pairs)) and found.route_ptr[-1] == len(found.route_links)
    for (start, end), route in zip(pairs, found.index, strict=True):
        devices = visited(mesh, found, route)
        assert (devices[0], devices[-1]) == (start, end) == (found.src[route], found.dst[route])
        assert len(devices) - 1 == abs(start // cols - end // cols) + abs(start % cols - end % cols)
        corner = (start // cols) * cols + end % cols if order == "xy" else (end // cols) * cols + start % cols
        assert corner in devices


def test_many_pairs_over_several_blocks():
    mesh = mesh_of(9, 13)
    src, dst = np.nonzero(~np.eye(117, dtype=bool))
    found = routes(mesh, src, dst)
    assert found.n_routes == 117 * 116 and (found.index == np.arange(117 * 116)).all()
    hops = abs(mesh.row[src] - mesh.row[dst]) + abs(mesh.col[src] - mesh.col[dst])
    assert (np.diff(found.route_ptr) == hops).all()
    assert (mesh.link_src[found.route_links[found.route_ptr[:-1]]] == src).all()
    assert (mesh.link_dst[found.route_links[found.route_ptr[1:] - 1]] == dst).all()
    inner = np.ones(len(found.route_links), bool)
    inner[found.route_ptr[1:] - 1] = False
    at = np.flatnonzero(inner)
    assert (mesh.link_dst[found.route_links[at]] == mesh.link_src[found.route_links[at + 1]]).all()


def test_injection_and_ejection_are_part_of_the_route():
    mesh = flatten(System.preset("dojo-die"))
    links = routes(mesh, [0], [22]).links(0)
    assert [mesh.direction_of(link) for link in links] == ["injection", "east", "east", "south", "ejection"]
    assert (mesh.link_src[links[0]], mesh.link_src[links[-1]]) == (0, 22)


def test_detours_are_shortest_and_the_same_every_time():
    # 0 1 2 3
    # 4 x 6 7      5 is dead, 8 - 9 is a dead link
    # 8 9 . .
    mesh = mesh_of(3, 4, dead=[[1, 1]], dead_links=[[[2, 0], [2, 1]]])
    assert path(mesh, 4, 6) == [4, 0, 1, 2, 6]
    assert path(mesh, 0, 9) == [0, 1, 2, 6, 10, 9]
    assert path(mesh, 8, 9) == [8, 4, 0, 1, 2, 6, 10, 9]
    assert path(mesh, 9, 3) == [9, 10, 11, 7, 3]
    src, dst = [4, 0, 9, 4], [6, 9, 3, 6]
    together = routes(mesh, src, dst)
    assert together.index.tolist() == [1, 0, 2, 1]
    alone = [path(mesh, *pair) for pair in zip(src, dst, strict=True)]
    assert [visited(mesh, together, route) for route in together.index] == alone


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.sets(st.integers(0, 29), max_size=9), st.sampled_from(["xy", "yx"]))
def test_detours_equal_a_plain_search(dead, order):
    mesh = mesh_of(5, 6, dead=[[device // 6, device % 6] for device in dead])
    living = np.flatnonzero(mesh.alive)
    for dst in living[:3]:
        hops, frontier = {int(dst): 0}, [int(dst)]
        for device in frontier:
            for step in (-6, 6, *([-1] if device % 6 else []), *([1] if device % 6 < 5 else [])):
                other = device + step
                if 0 <= other < 30 and other not in dead and other not in hops:
                    hops[other] = hops[device] + 1
                    frontier.append(other)
        for src in living[living != dst]:
            if int(src) in hops:
                assert len(path(mesh, src, dst, order)) - 1 == hops[int(src)]
            else:
                with pytest.raises(InputError, match="no route"):
                    routes(mesh, [src], [dst], order)


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ([0, 3], [1, 3], r"pair 1: device \(1,0\) sends to itself \(src = dst = 3\)"),
        ([0, 4], [1, 0], r"pair 1: src 4, device \(1,1\), is dead"),
        ([0, 2], [1, 4], r"pair 1: dst 4, device \(1,1\), is dead"),
        ([0, 9], [1, 0], "pair 1: src 9 is not one of the 9 devices"),
        ([0], [-1], "pair 0: dst -1 is not one of the 9 devices"),
        ([0, 1], [2], "two lists of one length"),
        ([0.5], [2], "ids of devices"),
        ([0, 8], [1, 0], r"pair 1: no route from device \(2,2\) \(device 8\) to device \(0,0\) \(device 0\)"),
    ],
)
def test_refusals_name_the_pair(src, dst, message):
    mesh = mesh_of(3, 3, dead=[[1, 1]], dead_links=[[[2, 2], [1, 2]], [[2, 2], [2, 1]]])
    with pytest.raises(InputError, match=message):
        routes(mesh, src, dst)


def test_order_and_emptiness():
    mesh = mesh_of(2, 2)
    with pytest.raises(InputError, match="'zz' is not one of xy, yx"):
        routes(mesh, [0], [1], "zz")
    none = routes(mesh, [], [])
    assert none.n_routes == 0 and none.route_ptr.tolist() == [0] and none.index.size == 0
