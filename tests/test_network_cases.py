"""Closed forms and published cases: the engine equals the formula exactly, or stays within a proven bound."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import meshemu
from meshemu.collectives import collective_program
from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten, routes
from meshemu.network import contention_free, simulate_messages, step_summary, time_program
from meshemu.program.builder import ProgramBuilder

MIB = 2**20
WORK = {"op_class": "matmul", "number_format": "fp32", "flops": 8, "read_bytes": 1, "write_bytes": 1}


def grid(rows, cols, bandwidth="50 GB/s", latency="500 ns"):
    return flatten(System.grid(rows=rows, cols=cols, bandwidth=bandwidth, latency=latency))


@pytest.mark.parametrize("packet_bytes", [64, 1000, 4096, MIB, 2 * MIB])
def test_one_message_on_a_line(packet_bytes):
    found = simulate_messages(grid(1, 8), [0], [7], [MIB], packet_bytes=packet_bytes)
    assert found.arrival_ps.tolist() == [24_471_520]
    assert found.depart_ps.tolist() == [0]


def test_four_messages_to_one_end():
    found = simulate_messages(grid(1, 8), [0, 2, 4, 6], [7] * 4, [MIB] * 4)
    assert 83_886_000 <= found.end_ps <= 84_900_000
    assert found.links.busy_ps.max() == 4 * MIB * 20, "the last link is busy without a gap"


def free(program):
    return np.zeros(program.n_ops, np.int64)


def test_ring_all_reduce():
    mesh = grid(8, 8)
    program = collective_program("all_reduce", "ring", mesh, MIB)
    timing = time_program(program, mesh, free(program))
    assert timing.end_ps == 104_287_680 == 126 * (500_000 + 327_680)
    assert contention_free(program, mesh, free(program)).end_ps.max() == timing.end_ps


@pytest.mark.parametrize(
    "rows, cols, size, rate_ps, latency_ps",
    [(2, 2, 4096, 20, 500_000), (4, 4, 2**14, 1, 1), (2, 5, 1000, 100, 7), (6, 3, 18 * 4, 4, 12_345)],
)
def test_ring_all_reduce_closed_form(rows, cols, size, rate_ps, latency_ps):
    mesh = grid(rows, cols, f"{1000 // rate_ps} GB/s", f"{latency_ps} ps")
    program = collective_program("all_reduce", "ring", mesh, size)
    n = rows * cols
    timing = time_program(program, mesh, free(program), packet_bytes=64)
    assert timing.end_ps == 2 * (n - 1) * (latency_ps + size // n * rate_ps)


@pytest.mark.parametrize("given", ["by source", "by destination", 1, 2])
def test_all_to_all(given):
    pair = np.flatnonzero(np.eye(64).ravel() == 0)
    if given == "by destination":
        pair = pair[np.argsort(pair % 64, kind="stable")]
    elif given != "by source":
        pair = np.random.default_rng(given).permutation(pair)
    src, dst = np.divmod(pair, 64)
    size = np.full(len(src), 65536)
    found = simulate_messages(grid(8, 8), src, dst, size)
    assert 167_772_160 <= found.end_ps < 180_000_000
    assert found.end_ps == 173_272_160, "whatever the order of the rows"


def saturated_bytes_per_s(system, src, dst, load):
    """Bytes per second that get through while (src, dst) pairs send `load` bytes each, all at once."""
    found = meshemu.simulate_messages(system, src, dst, load)
    return int(np.broadcast_to(load, len(src)).sum()) * 10**12 / found.end_ps


def fair_rates(mesh, paths):
    """Bytes per second of each path if links share their bandwidth max-min fairly (progressive filling)."""
    uses = np.zeros((len(paths), mesh.n_links))
    for row, links in enumerate(paths):
        uses[row, links] = 1
    rates, free, left = np.zeros(len(paths)), np.ones(len(paths), bool), mesh.bandwidth_bytes_per_s.astype(float)
    while free.any():
        sharing = uses[free].sum(axis=0)
        share = np.divide(left, sharing, out=np.full(mesh.n_links, np.inf), where=sharing > 0)
        stopped = free & (uses[:, np.argmin(share)] > 0)
        rates[stopped] = share.min()
        left -= rates[stopped] @ uses[stopped]
        free &= ~stopped
    return rates


def across_rows(system, distance, time_s):
    """Every live device north of the middle sends south, as much as its fair share of all links carries in time_s."""
    mesh = flatten(system)
    north = mesh.row < mesh.rows // 2
    src = np.flatnonzero(north & mesh.alive)
    src = src[mesh.alive[src + distance * mesh.cols]]
    dst = src + distance * mesh.cols
    way = routes(mesh, src, dst)
    return src, dst, (fair_rates(mesh, [way.links(i) for i in way.index]) * time_s).astype(np.int64)


@pytest.mark.parametrize(
    ("name", "dead", "distance", "time_s", "published", "within"),
    [
        ("dojo-die", [], 9, 20e-6, 10e12, 0.03),
        ("dojo-die", None, 9, 20e-6, 10e12, 0.05),
        ("dojo-tile", [], 2, 100e-6, 10e12, 0.002),
        ("dojo-tray", [], 5, 100e-6, 13.4e12, 0.01),
    ],
)
def test_bisection_saturates_at_the_published_bandwidth(name, dead, distance, time_s, published, within):
    """A die's 20 links of 512 GB/s, a tile's 5 of 2 TB/s, a tray's 15 of 900 GB/s.

    With its dead nodes a die loses a little: behind one only two neighbours eject, and detours do not share fairly.
    """
    system = System.preset(name) if dead is None else System.preset(name).override({"dead": dead})
    src, dst, load = across_rows(system, distance, time_s)
    assert saturated_bytes_per_s(system, src, dst, load) == pytest.approx(published, rel=within)
    more = saturated_bytes_per_s(system, np.tile(src, 2), np.tile(dst, 2), np.tile(load, 2))
    assert more == pytest.approx(published, rel=within), "twice the load takes twice the time"


@pytest.mark.parametrize("devices", ["die", "tile"])
def test_a_tile_edge_saturates_at_its_published_bandwidth_in_both_directions(devices):
    system = System.preset("dojo-tray", devices=devices)
    mesh = flatten(system)
    west = np.flatnonzero((mesh.tile_row == 0) & (mesh.tile_col == 0))
    east = west + mesh.cols // 3
    one_way = saturated_bytes_per_s(system, west, east, 2**27)
    both = saturated_bytes_per_s(system, np.append(west, east), np.append(east, west), 2**27)
    assert one_way == pytest.approx(4.5e12, rel=0.01)
    assert both == pytest.approx(9e12, rel=0.01)


def test_slow_link_between_fast_ones():
    mesh = grid(1, 4, "1 TB/s", "10 ns")
    mesh.bandwidth_bytes_per_s[mesh.out_link[1, 1]] = 10**11
    found = simulate_messages(mesh, [0], [3], [10_000], packet_bytes=100)
    assert found.arrival_ps[0] == 3 * 10_000 + 10_000 * 10
    last = mesh.out_link[2, 1]
    assert found.links.busy_ps[last] == 10_000 * 10, "a link is busy until the tail has come in from a slower one"


def test_program_units_and_summary():
    builder = ProgramBuilder(2)
    first, second = builder.compute([0, 0], label="c", **WORK)
    message, send, recv = builder.messages([0], [1], [1000], label="m")
    builder.depend(send, first)
    combine = builder.reduce([1], label="r", message=message, **WORK)
    other = builder.compute([1], label="c", **WORK)
    builder.depend(combine, recv)
    program = builder.build()
    duration = np.zeros(program.n_ops, np.int64)
    duration[[first, second, combine[0], other[0]]] = 5000, 7000, 300, 20_000
    mesh = grid(1, 2, "1 TB/s", "10 ns")
    timing = time_program(program, mesh, duration)
    starts, ends = timing.ops.start_ps, timing.ops.end_ps
    assert (starts[first], ends[first], starts[second], ends[second]) == (0, 5000, 5000, 12_000)
    assert (starts[send[0]], ends[send[0]]) == (5000, 6000)
    assert (starts[recv[0]], ends[recv[0]]) == (0, 16_000)
    assert (starts[combine[0]], ends[combine[0]]) == (16_000, 16_300), "not after the compute unit's 20,000"
    summary = step_summary(program, timing, duration)
    assert (summary.time_ps, summary.compute_ps, summary.exposed_comm_ps, summary.flops) == (20_000, 20_000, 0, 32)
    assert summary.device_compute_ps.tolist() == [12_000, 20_000]
    assert summary.device_idle_ps.tolist() == [8000, 0]


def test_contention_free_is_a_lower_bound():
    mesh = grid(4, 4)
    program = collective_program("all_reduce", "tree", mesh, MIB)
    duration = np.full(program.n_ops, 12_345)
    ideal, timing = contention_free(program, mesh, duration), time_program(program, mesh, duration)
    assert (ideal.end_ps <= timing.ops.end_ps).all()
    assert 0 < ideal.end_ps.max() <= timing.end_ps


def test_deadlock_names_ops():
    builder = ProgramBuilder(2)
    _, send, recv = builder.messages([0, 1], [1, 0], [8, 8], label="swap")
    builder.depend(send, recv[::-1])
    program = builder.build()
    with pytest.raises(ScheduleError, match=r"4 of 4 ops never become ready: op 0 \(SEND 'swap' on device 0\)"):
        time_program(program, grid(1, 2), free(program))
    with pytest.raises(ScheduleError, match="4 of 4 ops"):
        contention_free(program, grid(1, 2), free(program))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size_bytes": [5, 0, 5]}, "row 1: size_bytes = 0"),
        ({"size_bytes": [5, 5, -3]}, "row 2: size_bytes = -3"),
        ({"ready_ps": [0, -1, 0]}, "row 1: ready_ps = -1"),
        ({"src": [0, 4, 0]}, "row 1: src = 4 is no device"),
        ({"dst": [1, 1, -1]}, "row 2: dst = -1 is no device"),
        ({"dst": [1, 1, 0]}, "row 2: src = dst = 0"),
        ({"size_bytes": [5, 5]}, "lengths differ: src has 3 rows.*size_bytes has 2 rows"),
        ({"size_bytes": [5.5, 5, 5]}, "size_bytes must be one list of integers"),
        ({"packet_bytes": 0}, "packet_bytes = 0"),
        ({"timeline_bins": -1}, "timeline_bins = -1"),
        ({"order": "zx"}, "zx"),
        ({"packet_bytes": 4096.5}, "packet_bytes = 4096.5 must be a whole number of at least 1"),
        ({"packet_bytes": "4 KiB"}, "packet_bytes = '4 KiB' must be a whole number"),
        ({"packet_bytes": True}, "packet_bytes = True must be a whole number"),
        ({"packet_bytes": 2**63}, "packet_bytes = 9223372036854775808 must be"),
        ({"size_bytes": [5, 2**61, 5], "packet_bytes": 2**60}, r"row 1: .*2\*\*62"),
        ({"size_bytes": [5, 5, 2**40], "packet_bytes": 1}, "row 2: 1099511627776 bytes .* packets"),
        ({"ready_ps": [0, 0, 2**62]}, r"row 2: takes until 4.61e\+18 ps, .*2\*\*62"),
        ({"size_bytes": np.array([5, 2**64 - 1, 5], np.uint64)}, "row 1: size_bytes = 18446744073709551615 must be"),
        ({"size_bytes": [5, 5, 10**30]}, f"row 2: size_bytes = {10**30} must be at most"),
        ({"ready_ps": np.array([0, 2**63, 0], np.uint64)}, "row 1: ready_ps = 9223372036854775808 must be at most"),
        ({"ready_ps": [0, 2**62 + 1, 0]}, f"row 1: ready_ps = {2**62 + 1} must be at most"),
        ({"ready_ps": [0, 0, -1]}, "row 2: ready_ps = -1 must be at least 0"),
        ({"src": np.array([0, 2**63, 0], np.uint64)}, "row 1: src = 9223372036854775808 is no device"),
        ({"dst": [1, 2**70, 3]}, f"row 1: dst = {2**70} is no device"),
    ],
)
def test_refused(arguments, message):
    given = {"src": [0, 0, 0], "dst": [1, 2, 3], "size_bytes": [5, 5, 5]} | arguments
    with pytest.raises(InputError, match=message):
        simulate_messages(grid(2, 2), **given)


@pytest.mark.parametrize(
    ("system", "rows", "message"),
    [
        ({}, {"size_bytes": [5, -2]}, "row 1: size_bytes = -2 must be at least 1"),
        ({}, {"dst": [1, 1]}, "row 1: src = dst = 1"),
        ({}, {"ready_ps": [0, -1]}, "row 1: ready_ps = -1"),
        ({"dead": [[0, 0]]}, {}, "row 0: src = 0 is dead"),
        (
            {"dead": [[0, 1], [1, 1], [2, 1]]},
            {"src": [0, 0, 0], "dst": [3, 3, 2], "size_bytes": 5},
            "row 2: no route from",
        ),
        ({"dead_links": [[[0, 0], [0, 1]], [[0, 0], [1, 0]]]}, {}, "row 0: no route from"),
        ({}, {"ready_ps": [0, 2**62]}, r"row 1: .*2\*\*62"),
        ({}, {"size_bytes": [5, 2**61], "packet_bytes": 2**60}, r"row 1: .*2\*\*62"),
        ({"link.bandwidth": "1 B/s"}, {"size_bytes": [2**40, 2**40], "packet_bytes": 2**30}, r"row 0: .*2\*\*62"),
        ({"link.bandwidth": "0 B/s"}, {}, "link.bandwidth = '0 B/s' must be more than zero"),
        ({"link.bandwidth": -1}, {}, "link.bandwidth = -1 is not a bandwidth"),
        ({"link.latency": "-1 ns"}, {}, "link.latency = '-1 ns' is not a time"),
    ],
)
def test_refused_on_a_system(system, rows, message):
    given = {"src": [0, 1], "dst": [1, 0], "size_bytes": [5, 5]} | rows
    with pytest.raises(InputError, match=message):
        meshemu.simulate_messages(
            System.grid(rows=3, cols=3, bandwidth="50 GB/s", latency="500 ns").override(system), **given
        )


def test_rows_that_are_fine_are_not_refused_for_links_that_they_do_not_use():
    """2**62 bounds a message on its own way."""
    mesh = grid(1, 3)
    mesh.bandwidth_bytes_per_s[mesh.out_link[1, 1]] = 1
    found = simulate_messages(mesh, [0], [1], 2**40, packet_bytes=2**30)
    assert found.end_ps == 2**40 * 20 + 500_000
    with pytest.raises(InputError, match=r"row 1: 1099511627776 bytes x 1000000000000 .* >= 2\*\*62"):
        simulate_messages(mesh, [0, 1], [1, 2], 2**40, packet_bytes=2**30)


def test_a_link_without_bandwidth_is_refused():
    mesh = grid(1, 3)
    mesh.bandwidth_bytes_per_s[mesh.out_link[1, 1]] = 0
    with pytest.raises(InputError, match=r"link 1 .device 1 -> device 2.: bandwidth_bytes_per_s = 0"):
        simulate_messages(mesh, [0], [2], 8)


def test_dead_device_is_refused_with_its_row():
    mesh = grid(2, 2)
    mesh.alive[3] = False
    with pytest.raises(InputError, match="row 1: dst = 3 is dead"):
        simulate_messages(mesh, [0, 1], [1, 3], 8)


def test_durations_must_fit():
    mesh = grid(2, 2)
    program = collective_program("all_reduce", "ring", mesh, 64)
    with pytest.raises(InputError, match="duration_ps has shape"):
        time_program(program, mesh, [1, 2])
    with pytest.raises(InputError, match="op 3: duration_ps = -7"):
        time_program(program, mesh, np.where(np.arange(program.n_ops) == 3, -7, 0))
    with pytest.raises(InputError, match="for 4 devices, the mesh has 6"):
        time_program(program, grid(2, 3), free(program))


def test_nothing_to_do():
    found = simulate_messages(grid(1, 1), [], [], [], timeline_bins=4)
    assert found.end_ps == 0 and found.links.bytes.size == 0
    assert time_program(ProgramBuilder(4).build(), grid(2, 2), []).end_ps == 0


PRINT_TIMES = """
import numpy as np
from meshemu.collectives import collective_program
from meshemu.hardware import System
from meshemu.mesh import flatten, routes
from meshemu.network import simulate_messages, time_program
mesh = flatten(System.grid(rows=3, cols=4, bandwidth="700 GB/s", latency="3 ns"))
src, dst = np.divmod(np.arange(144), 12)
found = simulate_messages(mesh, src[src != dst], dst[src != dst], 1000, packet_bytes=300, timeline_bins=8)
program = collective_program("all_reduce", "rows_columns", mesh, 5000)
timing = time_program(program, mesh, np.full(program.n_ops, 77), packet_bytes=100, timeline_bins=8)
for result in (found, timing):
    print(result.arrival_ps.tolist(), result.timeline.link_busy_ps.tolist())
    print({name: column.tolist() for name, column in vars(result.links).items()})
"""


def test_compiled_equals_interpreted():
    root = Path(__file__).resolve().parent.parent

    def printed(disable_jit: str) -> str:
        environment = os.environ | {"NUMBA_DISABLE_JIT": disable_jit, "PYTHONPATH": str(root)}
        command = [sys.executable, "-W", "error", "-c", PRINT_TIMES]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    compiled = printed("0")
    assert len(compiled) > 5000
    assert compiled == printed("1")
