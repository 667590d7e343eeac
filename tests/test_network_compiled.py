"""What compiling costs and says: kernels alone are compiled and kept, and a user is told that they are."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba.core.registry import CPUDispatcher

from meshemu.network import compiling, heap, kernels
from meshemu.network.credit import kernels as credit_kernels
from meshemu.network.events import EVENT
from meshemu.network.state import HEAP, SCALARS

ROOT = Path(__file__).resolve().parent.parent

FIRST_MESSAGE = """
import sys
import meshemu
system = meshemu.System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="5 ns")
assert meshemu.simulate_messages(system, [0], [3], [50]).end_ps == 11_000
print(*[name for name in ("torch", "h5py", "pandas", "pydantic", "matplotlib") if name in sys.modules])
"""


def test_messages_are_timed_without_heavy_imports():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", FIRST_MESSAGE]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "\n"


def test_only_kernels_are_compiled_for_python():
    assert isinstance(kernels.run, CPUDispatcher) and isinstance(credit_kernels.run, CPUDispatcher)
    assert not isinstance(heap.push, CPUDispatcher)


def test_parts_of_kernels_run_from_python():
    """They have no entry from Python: what is called there is the plain function."""
    events, scalar = [[0] * EVENT for _ in range(3)], [0] * SCALARS
    for time in (30, 10, 20):
        heap.push(events, scalar, time, 1, 2, 3)
    assert scalar[HEAP] == 3 and events[0] == [10, 1, 2, 3]


@pytest.mark.parametrize("misses, expected", [(1, compiling.NOTICE + "\n"), (0, "")])
def test_notice(misses, expected, capsys, monkeypatch):
    """On stderr, when a kernel is found to be missing on disk, and only then."""
    monkeypatch.setattr(compiling, "PATIENCE_S", 0.001)
    kernel = SimpleNamespace(signatures=[], stats=SimpleNamespace(cache_misses=misses))
    with compiling.notice(kernel):
        finished = compiling.threading.Event()
        finished.wait(0.1)
    assert capsys.readouterr().err == expected
