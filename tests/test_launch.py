"""`pytest` alone runs every `mpi` test too: under mpirun with 1, 2, 3 and 4 ranks, none skipped silently."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshemu.runtime.launch import Launch, detect_launch, set_launch_defaults

RANKS = (1, 2, 3, 4)
TESTS = Path(__file__).parent
MARK = re.compile(r"\bmark\.mpi\b")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_mpi_test_passes(ranks, mpirun, tmp_path):
    """Every rank imports what it collects, so that only files with such a test are named to it."""
    files = [str(file) for file in sorted(TESTS.glob("test_*.py")) if MARK.search(file.read_text())]
    outcomes = tmp_path / "outcomes.json"
    job = mpirun(
        ranks, "-m", "pytest", "--only-mpi", "-q", "-p", "no:cacheprovider", "--outcomes", str(outcomes), *files,
        timeout_s=850,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout[-6000:] + job.stderr[-6000:]
    results = json.loads(outcomes.read_text())
    assert results, "no mpi test was collected"
    never = [name for name, result in results.items() if result["min_size"] > max(RANKS)]
    assert not never, f"these need more than {max(RANKS)} ranks and never run: {never}"
    missed = {n: r["outcome"] for n, r in results.items() if r["min_size"] <= ranks and r["outcome"] != "passed"}
    assert not missed, f"did not run with {ranks} ranks: {missed}"


@pytest.mark.mpi
def test_collective_assert_fails_on_all_ranks_and_names_the_failing_one(comm, collective_assert):
    collective_assert(True)
    last = comm.size - 1
    with pytest.raises(AssertionError, match=rf"^rank {last}: odd one out"):
        collective_assert(comm.rank != last, "odd one out")


@pytest.mark.mpi(min_size=2)
def test_comm_is_private(comm):
    assert comm.allreduce(comm.rank) == comm.size * (comm.size - 1) // 2
    comm.isend("stray", dest=(comm.rank + 1) % comm.size, tag=5)
    other = comm.Dup()
    assert not other.iprobe(tag=5)
    other.Free()
    assert comm.recv(tag=5) == "stray"


BAD = """
import os, time
import pytest

@pytest.mark.mpi
def test_bad(comm):
    last = comm.rank == comm.size - 1
    {body}
    comm.Barrier()
"""
WAYS = {
    "assert": ("assert not last, 'boom'", "[rank 1 of 2] FAILED test_bad.py::test_bad (call)"),
    "hang": ("time.sleep(1000 if last else 0)", ""),
    "deadlock": ("last and comm.recv(source=0, tag=77)", ""),
    "segfault": ("last and os.kill(os.getpid(), 11)", "egmentation fault"),
    "skip": ("last and pytest.skip('no reason')", ""),
    "exit": ("last and os._exit(5)", ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_bad_rank_ends_the_run(way, mpirun, tmp_path):
    body, said = WAYS[way]
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_bad.py").write_text(BAD.format(body=body))
    # Only where nothing fails does the timeout have to end it; elsewhere it is longer than this test allows. What the
    # timeout writes is not looked at: mpirun may drop the last words of a process that ends at once.
    limit_s = 2 if way in ("hang", "deadlock", "skip") else 100
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ntimeout = {limit_s}\ntimeout_method = thread\n")
    start_s = time.monotonic()
    job = mpirun(2, "-m", "pytest", "--only-mpi", "-ra", "-p", "no:cacheprovider", cwd=tmp_path, timeout_s=40)
    assert time.monotonic() - start_s < 30
    assert job.returncode != 0, job.stdout + job.stderr
    assert said in job.stdout + job.stderr


def test_a_module_that_cannot_be_imported_ends_the_run(mpirun, tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_bad.py").write_text("import os\nif os.environ['PMI_RANK'] == '1': import nowhere\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # names are relative to this folder, whatever lies above it
    job = mpirun(2, "-m", "pytest", "--only-mpi", "-p", "no:cacheprovider", cwd=tmp_path, timeout_s=30)
    assert job.returncode != 0
    assert "[rank 1 of 2] cannot collect test_bad.py" in job.stderr


@pytest.mark.parametrize(("option", "code"), [([], 0), (["--forbid-skips"], 1)])
def test_a_skip_can_be_forbidden(option, code, tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_a.py").write_text("import pytest\ndef test_a(): pytest.skip('no')\ndef test_b(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *option]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr


def test_launchers_are_recognised():
    assert detect_launch({}) == Launch(0, 1, 1)
    assert detect_launch({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}) == Launch(2, 4, 2)
    assert detect_launch({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}) == Launch(1, 3, 3)
    assert detect_launch({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}) == Launch(5, 8, 8)
    # mpirun inside a Slurm job: the launcher that is nearer counts
    both = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "3", "PMI_SIZE": "4"}
    assert detect_launch(both) == Launch(3, 4, 4)


def test_launch_defaults_leave_the_users_settings_alone():
    alone: dict[str, str] = {}
    set_launch_defaults(alone, Launch())
    assert alone == {}
    crowded = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "7"}
    set_launch_defaults(crowded, Launch(0, 4096, 4096))
    assert crowded["MPIR_CVAR_POLLS_BEFORE_YIELD"] == "7"
    assert crowded["MPIR_CVAR_CH4_PROGRESS_THROTTLE"] == "1"
    assert crowded["OMP_NUM_THREADS"] == "1"
    roomy: dict[str, str] = {}
    set_launch_defaults(roomy, Launch(0, 2, 1))
    assert "MPIR_CVAR_CH4_PROGRESS_THROTTLE" not in roomy
