"""No kernel uses an index that is negative or too large: compiled code would not notice (`network.compiled.at`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RANDOM = ["test_network_properties.py", "test_network_trees.py", "test_network_credit.py"]  # traffic of all kinds

WRONG = """
import numpy as np
from meshemu.network.compiled import at, kernel

@kernel
def first(values: np.ndarray, index: int) -> int:
    return values[at(index)]

first(np.arange(3), {index})
"""


def checked(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with kernels that look at every index, compiled into a folder of their own."""
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(TESTS.parent)
    }  # fmt: skip
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("index", "code"), [(2, 0), (-1, 1), (3, 1)])
def test_a_wrong_index_is_noticed(index, code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WRONG.format(index=index))
    done = checked(tmp_path, str(script))
    assert done.returncode == code, done.stderr
    assert ("IndexError" in done.stderr) == bool(code)


def test_all_traffic_stays_within_its_arrays(tmp_path):
    files = [str(TESTS / name) for name in RANDOM]
    done = checked(tmp_path, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
