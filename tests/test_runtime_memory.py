"""Memory that a process has freed stays its own, unless the user has said what is to be done with it."""

import os
import subprocess
import sys

import pytest

from meshemu.cli import entry
from meshemu.runtime.memory import keep_freed_memory
from meshemu.study import pool

FAULTS = """
import os, resource
import numpy as np
from meshemu.runtime.memory import keep_freed_memory

def touch():
    sizes = [2**20, 2**24, 2**22, 2**25]  # of several arrays at once, as in a step
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        array[:] = 1

if {keep}:
    assert keep_freed_memory(os.environ)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_freed_is_used_again():
    """The kernel hands out no new page for arrays that come again, and many where nothing is kept."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (True, False)
    )
    assert kept == given_back == 0 or kept < 50 < given_back, "kernels of some sandboxes count no pages"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"])
def test_what_the_user_says_counts(name):
    assert not keep_freed_memory({name: "glibc.malloc.trim_threshold=1"})


def test_commands_and_processes_of_studies_keep_it(monkeypatch):
    told = []
    for module in (entry, pool):
        monkeypatch.setattr(module, "keep_freed_memory", told.append)
    assert entry.main(["--version"]) == 0
    pool._begin()
    assert told == [os.environ, os.environ]
