"""Routing trees: the union of routes, each link once, whatever is dead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_engines import routed_mesh

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import Mesh, Order, Trees, flatten, message_ps, routes, trees, trees_ps

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def grid(rows: int, cols: int, **overrides: object) -> Mesh:
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns").override(overrides))


def one(mesh: Mesh, root: int, members: list[int], outward: bool, order: Order = "xy") -> Trees:
    return trees(mesh, [root], [outward], members, np.zeros(len(members), np.int64), order)


@st.composite
def faulty(draw: st.DrawFn) -> tuple[Mesh, int, list[int]]:
    """A mesh with dead devices, a root, and members that it can reach."""
    rows, cols = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    cells = st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1))
    dead = draw(st.lists(cells, max_size=3, unique=True))
    mesh = grid(rows, cols, dead=[list(cell) for cell in dead])
    alive = np.flatnonzero(mesh.alive).tolist()
    root = draw(st.sampled_from(alive))
    members = []
    for device in draw(st.permutations(alive)):
        try:
            routes(mesh, [device], [root])
            members.append(device)
        except InputError:
            continue  # the root itself, or parted from it
    return mesh, root, members[: draw(st.integers(1, len(alive)))]


@FEW
@given(faulty(), st.booleans(), st.sampled_from(["xy", "yx"]))
def test_every_member_has_a_shortest_path_and_devices_one_way(case, outward, order):
    mesh, root, members = case
    if not members:
        return
    tree = one(mesh, root, members, outward, order)
    link = tree.link
    assert len(set(link.tolist())) == len(link), "each link once"
    inner_end, outer_end = (mesh.link_src, mesh.link_dst) if outward else (mesh.link_dst, mesh.link_src)
    assert len(set(outer_end[link].tolist())) == len(link), "a device has one link towards the root"
    hops = np.diff(routes(mesh, members, np.full(len(members), root), order).route_ptr)
    shortest = dict(zip(sorted(members), hops.tolist(), strict=True))
    used = set()
    for number, member in enumerate(members):
        path = tree.path(number)
        walk = [int(mesh.link_src[path[0]]), *mesh.link_dst[path].tolist()]
        assert (walk[0], walk[-1]) == ((root, member) if outward else (member, root))
        assert (mesh.link_dst[path[:-1]] == mesh.link_src[path[1:]]).all()
        assert len(path) == shortest[member]
        used |= set(path)
    assert used == set(link.tolist()), "no link that nobody needs"
    assert ((tree.inner >= 0) == (inner_end[link] != root)).all()
    assert (inner_end[link[tree.inner >= 0]] == outer_end[link[tree.inner[tree.inner >= 0]]]).all()


@FEW
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6), st.sampled_from(["xy", "yx"]), st.booleans())
def test_without_faults_members_have_the_routes_of_messages(rows, cols, seed, order, ports):
    mesh = grid(rows, cols) if not ports else flatten(System.preset("dojo-die").override({"mesh.combine": "0 ps"}))
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(mesh.alive)
    root, *members = rng.choice(alive, min(len(alive), 12), replace=False).tolist()
    for outward in (False, True):
        tree = one(mesh, root, members, outward, order)
        ends = (np.full(len(members), root), members) if outward else (members, np.full(len(members), root))
        way = routes(mesh, *ends, order)
        if not ports:
            assert [tree.path(i) for i in range(len(members))] == [way.links(i).tolist() for i in way.index]
        assert [len(tree.path(i)) for i in range(len(members))] == [len(way.links(i)) for i in way.index]
        np.testing.assert_array_equal(trees_ps(mesh, tree, [999]), message_ps(mesh, way, 999))


def test_several_trees_at_once_are_those_one_by_one():
    mesh = grid(4, 5)
    jobs = [(7, [0, 4, 19], True), (3, [1, 2, 18, 9], False), (0, [19], True), (12, [7, 17, 11, 13], False)]
    together = trees(
        mesh, [root for root, _, _ in jobs], [outward for _, _, outward in jobs],
        [m for _, members, _ in jobs for m in members], np.repeat(range(4), [len(members) for _, members, _ in jobs]),
    )  # fmt: skip
    at = 0
    for number, (root, members, outward) in enumerate(jobs):
        alone = one(mesh, root, members, outward)
        part = slice(together.ptr[number], together.ptr[number + 1])
        assert together.link[part].tolist() == alone.link.tolist()
        assert (together.tree_of_edge[part] == number).all()
        for i in range(len(members)):
            assert together.path(at + i) == alone.path(i)
        assert together.root_inputs[number] == alone.root_inputs[0]
        at += len(members)


def test_inputs_count_branches_and_contributions():
    tree = one(grid(3, 3), 4, [0, 1, 2, 3, 6, 7, 8], False)
    by_source = dict(zip(grid(3, 3).link_src[tree.link].tolist(), tree.inputs.tolist(), strict=True))
    assert by_source == {0: 1, 1: 3, 2: 1, 3: 1, 6: 1, 7: 3, 8: 1}, "rows first into the middle column"
    assert tree.root_inputs.tolist() == [3]


def test_time_of_a_lone_tree():
    mesh = routed_mesh(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="500 ns"), "7 ps")
    east = mesh.out_link[:, 1]
    mesh.bandwidth_bytes_per_s[east[1]] = 10**10
    tree = one(mesh, 3, [0, 1, 2], False)
    assert tree.path(0) == east[:3].tolist()
    # Merges at devices 1 and 2; the slow second link carries what comes from 0 and 1.
    expected = [3 * 500_000 + 14 + 100 * 100, 2 * 500_000 + 14 + 100 * 100, 500_000 + 7 + 100 * 20]
    assert trees_ps(mesh, tree, [100]).tolist() == expected


@pytest.mark.parametrize("outward", [False, True])
def test_refused(outward):
    mesh = grid(2, 3, dead=[[0, 1], [1, 1]])
    with pytest.raises(InputError, match=r"pair 0: no route from .*dead devices or links part them"):
        one(mesh, 0, [2], outward)
    with pytest.raises(InputError, match=r"pair 1: .* is dead"):
        one(mesh, 0, [3, 1], outward)
    with pytest.raises(InputError, match="sends to itself"):
        one(mesh, 0, [0], outward)
    with pytest.raises(InputError, match="device 3 is in one tree twice"):
        one(mesh, 0, [3, 3], outward)
