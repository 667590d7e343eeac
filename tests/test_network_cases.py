"""Closed forms and published cases: the engine equals the formula exactly, or stays within a proven bound."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meshemu.collectives import collective_program
from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten
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


def test_all_to_all():
    src, turn = (axis.ravel() for axis in np.meshgrid(np.arange(64), np.arange(1, 64)))
    found = simulate_messages(grid(8, 8), src, (src + turn) % 64, 65536)
    assert 167_772_160 <= found.end_ps < 180_000_000


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
        ({"size_bytes": 2**61, "packet_bytes": 2**60}, r"2\*\*62"),
        ({"size_bytes": 2**40, "packet_bytes": 1}, "packets"),
        ({"ready_ps": 2**62}, r"2\*\*62"),
    ],
)
def test_refused(arguments, message):
    given = {"src": [0, 0, 0], "dst": [1, 2, 3], "size_bytes": [5, 5, 5]} | arguments
    with pytest.raises(InputError, match=message):
        simulate_messages(grid(2, 2), **given)


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
from meshemu.mesh import flatten
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
