"""Devices behind switches: the tree, its links and routes, times by closed forms, the same on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import closed_form_ps
from meshemu.collectives.bounds import collective_lower_bound_ps
from meshemu.emulator.collective_times import collective
from meshemu.emulator.timing import simulate_messages
from meshemu.errors import InputError
from meshemu.hardware import Level, Router, System
from meshemu.mesh import flatten, lookahead_ps, message_ps, ranks_of_vertices, routes, trees
from meshemu.network import time_program
from meshemu.runtime.local import run_ranks

SWITCHES = {"nvlink.latency": 600_001, "network.latency": "2 us"}


def nodes(gpus, count, **changes):
    """Nodes of so many GPUs each."""
    return System.preset("a100-24").override({"gpus": [gpus, 1], "nodes": [1, count], **changes})


def test_links_of_two_nodes_written_out():
    # gpu 0 1    vertices 4 and 5: the nodes' switches, 6: the network
    #     2 3    links 0-3 up from GPUs, 4-5 up from nodes; 6-9 and 10-11 back
    mesh = flatten(nodes(2, 2, **SWITCHES))
    ends = list(zip(mesh.link_src.tolist(), mesh.link_dst.tolist(), strict=True))
    up = [(0, 4), (1, 5), (2, 4), (3, 5), (4, 6), (5, 6)]
    assert ends == up + [(dst, src) for src, dst in up]
    assert mesh.latency_ps.tolist() == [300_000] * 4 + [1_000_000] * 2 + [300_001] * 4 + [1_000_000] * 2
    assert mesh.bandwidth_bytes_per_s.tolist() == ([300 * 10**9] * 4 + [200 * 10**9] * 2) * 2
    assert mesh.class_names == ("nvlink", "network") and mesh.n_vertices == 7 and (mesh.out_link < 0).all()
    assert mesh.link_name(2) == "node (0,0), gpu (1,0) -> switch" and mesh.link_name(11) == "switch -> node (0,1)"
    found = routes(mesh, [0, 0, 3], [2, 3, 0])
    assert [found.links(i).tolist() for i in found.index] == [[0, 8], [0, 4, 11, 9], [3, 5, 10, 6]]
    assert mesh.tile_col.tolist() == [0, 1, 0, 1] and not mesh.tile_row.any()


def test_one_node_has_no_network_and_dead_gpus_no_links():
    mesh = flatten(System.preset("a100-8").override({"dead": [[3, 0]]}))
    assert mesh.class_names == ("nvlink",) and mesh.n_links == 14 and 3 not in {*mesh.link_src, *mesh.link_dst}
    with pytest.raises(InputError, match=r"src 3, node 0, gpu \(3,0\), is dead"):
        routes(mesh, [3], [0])
    alone = flatten(System.preset("a100-8", "node"))
    assert (alone.n_vertices, alone.n_links) == (1, 0)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_a_lone_message_takes_latencies_and_its_slowest_link(gpus, count, data):
    system = nodes(gpus, count, **SWITCHES)
    ends = st.integers(0, gpus * count - 1)
    src, dst = data.draw(ends), data.draw(ends)
    size = data.draw(st.integers(1, 10**6))
    if src == dst:
        return
    inside = src % count == dst % count
    rate, latency = (300, 600_001) if inside else (200, 2_600_001)
    done = simulate_messages(system, [src], [dst], [size], packet_bytes=data.draw(st.sampled_from([512, 10**6])))
    assert done.arrival_ps[0] == latency + -(-size * 1000 // rate)
    mesh = flatten(system)
    assert message_ps(mesh, routes(mesh, [src], [dst]), size)[0] == done.arrival_ps[0]


def test_gpus_of_a_node_share_its_way_out():
    size = 2**20
    out = simulate_messages(nodes(4, 2), [0, 2, 4, 6], [1, 3, 5, 7], size)
    assert int(out.arrival_ps.max()) >= 4 * size * 5  # 5 ps a byte at 200 GB/s
    inside = simulate_messages(nodes(4, 2), [0, 2], [4, 6], size)
    assert set(inside.arrival_ps) == {600_000 + -(-size * 1000 // 300)}  # a switch never blocks


def test_ring_all_reduce_in_a_node_is_the_closed_form():
    system = System.preset("a100-8")
    size = 8 * 3 * 2**16  # chunks of a whole number of 300-byte units: no rounding
    program = collective("all_reduce", "ring", system=system, size_bytes=size, itemsize=4)
    timing = time_program(program, flatten(system), np.zeros(program.n_ops, np.int64))
    assert timing.end_ps == 2 * 7 * (600_000 + size // 8 * 10 // 3)


def test_ring_all_reduce_over_nodes_is_bound_by_the_network():
    size = 24 * 6 * 2**19
    ends = []
    for bandwidth in ("200 GB/s", "100 GB/s"):
        system = System.preset("a100-24").override({"network.bandwidth": bandwidth})
        mesh = flatten(system)
        program = collective("all_reduce", "ring", system=system, size_bytes=size, itemsize=4)
        timing = time_program(program, mesh, np.zeros(program.n_ops, np.int64))
        network = mesh.link_class == mesh.class_names.index("network")
        assert set(timing.links.bytes[network]) == {2 * 23 * size // 24}  # each node is entered and left once
        assert timing.links.busy_ps[network].min() > 0.9 * timing.end_ps
        ends.append(timing.end_ps)
    chunk_ps = size // 24 * 5
    assert 46 * chunk_ps < ends[0] < 46 * (chunk_ps + 2_700_000)
    assert ends[1] - ends[0] == pytest.approx(46 * chunk_ps, rel=0.05)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("size", [4096, 24 * 2**20])
def test_the_choice_of_an_algorithm_counts_what_shares_a_link(kind, size):
    system = System.preset("a100-24")
    mesh = flatten(system)
    grid = np.arange(24).reshape(8, 3)
    simulated, modelled = {}, {}
    for algorithm in ("ring", "rows_columns", "tree"):
        program = collective(kind, algorithm, system=system, size_bytes=size, itemsize=4)
        simulated[algorithm] = time_program(program, mesh, np.zeros(program.n_ops, np.int64)).end_ps
        modelled[algorithm] = closed_form_ps(kind, algorithm, mesh, grid, size, 4, np.zeros_like)
        assert modelled[algorithm] == pytest.approx(simulated[algorithm], rel=0.2)
    best = min(modelled, key=modelled.get)
    assert simulated[best] <= 1.03 * min(simulated.values())
    assert collective_lower_bound_ps(kind, mesh, grid, size) <= min(simulated.values())


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_any_number_of_ranks_gives_the_same(n_ranks):
    system = System.preset("a100-24").override({"dead": [[4, 1]]})
    program = collective("all_reduce", "ring", system=system, size_bytes=24 * 1000, itemsize=4)
    mesh = flatten(system)
    vertices = ranks_of_vertices(mesh, n_ranks)
    assert len(vertices) == mesh.n_vertices and lookahead_ps(mesh, vertices) == 300_000
    assert vertices[24:27].tolist() == vertices[:3].tolist() and vertices[27] == vertices[0]
    duration = np.full(program.n_ops, 1000)
    reference = time_program(program, mesh, duration)
    for other in run_ranks(n_ranks, lambda comm: time_program(program, mesh, duration, comm=comm)):
        assert other.end_ps == reference.end_ps
        assert np.array_equal(other.arrival_ps, reference.arrival_ps)
        for name in ("bytes", "busy_ps", "wait_ps", "packets", "max_queue"):
            assert np.array_equal(getattr(other.links, name), getattr(reference.links, name)), name


def test_trees_over_switches_lead_back_the_way_they_came():
    mesh = flatten(nodes(2, 2))
    found = trees(mesh, [0, 0], [True, False], [2, 3, 2, 3], [0, 0, 1, 1])
    assert found.path(0) == [0, 8] and found.path(1) == [0, 4, 11, 9]
    assert found.path(2) == [2, 6] and found.path(3) == [3, 5, 10, 6]


def test_refusals():
    system = System.preset("a100-8")
    with pytest.raises(InputError, match="dead_links: the gpus of a100-8 are joined by switches: give dead"):
        system.override({"dead_links": [[[0, 0], [1, 0]]]})
    with pytest.raises(InputError, match=r"network\.router: routers are those of a mesh"):
        simulate_messages(system, [0], [1], 64, router=Router())
    mixed = (system.levels[0], Level("node", "nodes", "network"))
    with pytest.raises(InputError, match="a100-8 with gpus as devices: switch all levels or none, not gpus by"):
        System(name="a100-8", devices="gpu", device_name="x", levels=mixed, entries=system.entries)
