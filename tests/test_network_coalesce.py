"""Trains of packets: exact whatever comes between them, and cheap where nothing does."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_engine import check_messages, check_same

from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.network import simulate_messages
from meshemu.network.compiled import compiled
from meshemu.runtime.local import run_ranks

SOME = settings(max_examples=60, deadline=None, derandomize=True)
RATES = {
    "equal": [10**12],
    "apart": [10**11, 3 * 10**11, 10**12, 9 * 10**12],
    "die and tile": [2 * 10**12, 18 * 10**11],
    "nearly equal": [10**12, 999 * 10**9, 1001 * 10**9],
}


def line(n: int, bandwidths: list[int], latencies: list[int], seed: int) -> Mesh:
    """A line of devices whose links are drawn from the given figures."""
    rng = np.random.default_rng(seed)
    mesh = flatten(System.grid(rows=1, cols=n, bandwidth="1 TB/s", latency="1 ns"))
    mesh.bandwidth_bytes_per_s[:] = rng.choice(bandwidths, mesh.n_links)
    mesh.latency_ps[:] = rng.choice(latencies, mesh.n_links)
    return mesh


def long_and_short(n_devices: int, packet_bytes: int, seed: int):
    """A few messages of many packets, and others of few that meet them at any time on the way."""
    rng = np.random.default_rng(seed)
    n_long, n_short = rng.integers(1, 4), rng.integers(0, 12)
    packets = np.concatenate([rng.integers(20, 120, n_long), rng.integers(1, 4, n_short)])
    size = packets * packet_bytes - rng.integers(0, packet_bytes, len(packets))
    src = rng.integers(0, n_devices, len(size))
    dst = (src + rng.integers(1, n_devices, len(size))) % n_devices
    ready = rng.integers(0, max(1, int(size.max()) * 2), len(size)) * (rng.random(len(size)) < 0.7)
    return src, dst, np.maximum(size, 1), ready


@SOME
@given(
    seed=st.integers(0, 10**6),
    rates=st.sampled_from(list(RATES)),
    latencies=st.sampled_from([[500], [1, 1000], [0, 1, 70], [100_000]]),
    packet_bytes=st.sampled_from([2, 16, 100, 4096]),
)
def test_trains_equal_reference(seed, rates, latencies, packet_bytes):
    mesh = line(7, RATES[rates], latencies, seed)
    src, dst, size, ready = long_and_short(7, packet_bytes, seed)
    found = simulate_messages(mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=7)
    check_messages(found, mesh, src, dst, size, ready, packet_bytes)


@pytest.mark.parametrize("rates", list(RATES))
@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_cuts_cross_to_other_ranks(n_ranks, rates):
    for seed in range(6):
        mesh = line(8, RATES[rates], [500, 3000], seed)
        src, dst, size, ready = long_and_short(8, 64, seed + 100)

        def on(comm, mesh=mesh, traffic=(src, dst, size, ready)):
            return simulate_messages(mesh, *traffic, packet_bytes=64, timeline_bins=5, comm=comm)

        single = on(None)
        check_messages(single, mesh, src, dst, size, ready, 64)
        for result in run_ranks(n_ranks, on):
            check_same(result, single)


def test_a_lone_train_costs_two_events_per_link():
    mesh = line(9, [10**12], [1000], 0)
    found = simulate_messages(mesh, [0], [8], [100_000 * 64 + 1], packet_bytes=64)
    assert found.counters.packet_hops == 8 * 100_001
    assert found.counters.events == 1 + 2 * 7
    assert found.arrival_ps[0] == 8 * 1000 + 100_000 * 64 + 1


def test_a_packet_between_cuts_the_train_once():
    mesh = line(9, [10**12], [1000], 0)
    src, dst, size, ready = np.array([0, 4]), np.array([8, 6]), np.array([100_000 * 64, 64]), np.array([0, 3_000_017])
    found = simulate_messages(mesh, src, dst, size, ready, packet_bytes=64)
    # Head k of the long message is at device 4 at 4000 + 64 k, so 46,813 have come before; the short one waits 15 ps.
    assert found.arrival_ps.tolist() == [8 * 1000 + 100_000 * 64 + 64, 3_000_017 + 15 + 2 * 1000 + 64]
    assert found.links.wait_ps.sum() == 15 + (100_000 - 46_813) * 64
    assert found.counters.events < 40, "the train goes on as two trains, not packet by packet"


def test_many_trains_through_one_link():
    mesh = flatten(System.grid(rows=4, cols=4, bandwidth="50 GB/s", latency="500 ns"))
    src = np.arange(1, 16)
    found = simulate_messages(mesh, src, 0, 40 * 512 + 7, packet_bytes=512, timeline_bins=6)
    n = len(src)
    check_messages(found, mesh, src, np.zeros(n, int), np.full(n, 40 * 512 + 7), np.zeros(n, int), 512)


TRAFFIC = """
import numpy as np
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import kernels, simulate_messages
{change}
mesh = flatten(System.grid(rows=3, cols=4, bandwidth="700 GB/s", latency="3 ns"))
rng = np.random.default_rng(5)
src = rng.integers(0, 12, 30)
dst = (src + rng.integers(1, 12, 30)) % 12
size, ready = rng.integers(1, 40, 30) * 300, rng.integers(0, 9000, 30)
found = simulate_messages(mesh, src, dst, size, ready, packet_bytes=300, timeline_bins=8)
print(found.arrival_ps.tolist(), found.timeline.link_busy_ps.tolist())
print({{name: column.tolist() for name, column in vars(found.links).items()}})
print(found.counters.events)
"""


def test_the_same_without_coalescing():
    root = Path(__file__).resolve().parent.parent

    def printed(change: str) -> tuple[str, int]:
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", TRAFFIC.format(change=change)]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        *results, events = text.splitlines()
        return "\n".join(results), int(events)

    with_trains, without = printed(""), printed("kernels.SHORTEST = 2**40")
    assert with_trains[0] == without[0]
    assert with_trains[1] < without[1]


CALLEE = """
from meshemu.network.compiled import compiled
LIMIT = {limit}
@compiled
def inner(x):
    return x + LIMIT{more}
"""
CALLER = """
from meshemu.network.compiled import kernel
from callee import inner
@kernel
def outer(x):
    return inner(x)
"""


def test_compiled_code_is_renewed_when_what_it_uses_changes(tmp_path, monkeypatch):
    """The file of the caller stays the same; only the callee's changes."""
    (tmp_path / "caller.py").write_text(CALLER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def result(**callee: object) -> tuple[int, bool]:
        (tmp_path / "callee.py").write_text(CALLEE.format(**callee))
        for name in ("caller", "callee"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        outer = importlib.import_module("caller").outer
        return outer(10), bool(outer.stats.cache_hits)

    assert result(limit=1, more="") == (11, False)
    assert result(limit=1, more="") == (11, True)
    assert result(limit=2, more="") == (12, False)
    assert result(limit=2, more=" * 3") == (16, False)


def test_a_compiled_function_names_only_what_comes_before_it():
    space = {"compiled": compiled, "__name__": "test"}
    with pytest.raises(TypeError, match="outer uses inner: define inner before it"):
        exec("@compiled\ndef outer(x):\n    return inner(x)\n", space)
