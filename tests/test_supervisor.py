"""A rank that dies ends the whole job in seconds, with one line that names it and a code of the contract."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from meshemu.errors import CheckError, InputError, PlanError, ScheduleError
from meshemu.runtime.failure import Failure, Terminated, collect_failures, failure_of, guard, report_lines
from meshemu.runtime.launch import Launch
from meshemu.runtime.supervisor import supervise

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 30  # far below any timeout, far above what a job here takes

JOB = """
import functools, os, sys, time
from meshemu.errors import InputError
from meshemu.runtime import failure
from meshemu.runtime.failure import guard_ranks
from meshemu.runtime.launch import detect_launch, set_launch_defaults
from meshemu.runtime.mpi import raw_world
from meshemu.runtime.supervisor import supervise

launch = detect_launch(os.environ)
failure.collect_failures = functools.partial(failure.collect_failures, patience_s={patience_s})

def work():
    comm = raw_world()
    comm.Barrier()
    rank, last = comm.rank, comm.rank == comm.size - 1
    {body}
    comm.Barrier()
    print("done", flush=True)
    return 0

def main():
    set_launch_defaults(os.environ, launch)
    return guard_ranks(work, launch, raw_world)

sys.exit(supervise(main, launch))
"""


def run_job(mpirun, ranks, body, patience_s=5.0):
    """patience_s: for which a rank that failed waits for the others to fail too."""
    start_s = time.monotonic()
    job = mpirun(ranks, "-c", JOB.format(body=body, patience_s=patience_s), timeout_s=40)
    assert time.monotonic() - start_s < SECONDS
    return job


def ours(job):
    return [line for line in job.stderr.splitlines() if line.startswith("meshemu:")]


def test_a_good_job_ends_with_zero_on_all_ranks(mpirun):
    job = run_job(mpirun, 3, "pass")
    assert (job.returncode, job.stdout.count("done"), job.stderr) == (0, 3, "")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT"])
def test_a_rank_killed_by_a_signal_is_named(mpirun, name):
    number = int(getattr(signal, name))
    job = run_job(mpirun, 3, f"rank == 1 and os.kill(os.getpid(), {number})")
    assert job.returncode == 3
    assert ours(job) == [f"meshemu: rank 1 of 3 was killed by signal {number} ({name})"]


def test_a_killed_supervisor_ends_the_job_and_leaves_no_child(mpirun, tmp_path):
    note = tmp_path / "pid"
    body = f"open({str(note)!r}, 'w').write(str(os.getpid())) if last else None; last and os.kill(os.getppid(), 9)"
    job = run_job(mpirun, 2, body + "; time.sleep(60)")
    assert job.returncode != 0
    child = int(note.read_text())
    deadline_s = time.monotonic() + 5
    while psutil.pid_exists(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)


def test_a_failure_of_all_ranks_is_told_once_and_ends_in_order(mpirun):
    job = run_job(mpirun, 3, "raise InputError('no such key')")
    assert (job.returncode, job.stderr, job.stdout) == (2, "meshemu: error: no such key\n", "")


def test_a_failure_of_all_ranks_at_different_moments_is_told_once(mpirun):
    job = run_job(mpirun, 3, "time.sleep(0.7 * rank); raise InputError('no such key')")
    assert (job.returncode, job.stderr) == (2, "meshemu: error: no such key\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_of_one_rank_aborts_the_others(mpirun, rank):
    job = run_job(mpirun, 2, f"1 / (rank != {rank})", patience_s=0.5)
    assert job.returncode == 3
    assert len(ours(job)) == 1
    assert ours(job)[0].startswith(f"meshemu: rank {rank} of 2: internal error: ZeroDivisionError: ")


def test_bad_input_on_one_rank_keeps_its_code(mpirun):
    job = run_job(mpirun, 2, "if last: raise InputError('no file here')", patience_s=0.5)
    assert job.returncode == 2
    assert ours(job) == ["meshemu: rank 1 of 2: error: no file here"]


def test_a_rank_that_calls_exit_does_not_hang_the_others(mpirun):
    job = run_job(mpirun, 2, "last and sys.exit(4)", patience_s=0.5)
    assert job.returncode == 3
    assert "SystemExit: 4" in ours(job)[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("body", ["time.sleep(60)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
def test_signals_reach_the_work_and_end_it(number, code, body):
    """One supervised process without MPI: 128 + signal, whether the work ends by itself or must be killed."""
    if number == signal.SIGINT and "IGN" in body:
        body = body.replace("SIGTERM", "SIGINT")
    program = f"""
import signal, sys, time
from meshemu.runtime import supervisor
from meshemu.runtime.launch import Launch
from meshemu.runtime.failure import guard
from meshemu.runtime.supervisor import supervise
supervisor._GRACE_S = 1
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it, as a shell with & does
def work():
    print("ready", flush=True)
    {body}
    return 0
sys.exit(supervise(lambda: guard(work, Launch(1, 2)), Launch(1, 2)))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        start_s = time.monotonic()
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(timeout=20) == code
    assert time.monotonic() - start_s < 10


def test_mpirun_passes_an_interrupt_on(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB.format(body="print('ready', flush=True); time.sleep(60)", patience_s=5.0))
    mpirun = os.path.join(os.path.dirname(sys.executable), "mpirun")
    command = [mpirun, "-n", "2", sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert "Traceback" not in out + err


def test_one_rank_runs_in_this_process():
    pids = []
    assert supervise(lambda: pids.append(os.getpid()) or 7, Launch()) == 7
    assert pids == [os.getpid()]


def test_the_fork_comes_before_anything_heavy():
    heavy = {"numpy", "torch", "mpi4py", "numba", "pydantic", "h5py"}
    program = f"import sys, meshemu.cli; print({heavy!r} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_errors_have_the_codes_of_the_contract():
    assert failure_of(InputError("a\n  b")) == Failure(2, "error: a b")
    assert failure_of(PlanError("x")).code == 2
    assert failure_of(CheckError("they differ")) == Failure(1, "they differ")
    assert failure_of(ScheduleError("twice")).code == 3
    assert failure_of(KeyboardInterrupt()).code == 130
    assert failure_of(Terminated()).code == 143
    assert failure_of(ValueError("v")).message.startswith("internal error: ValueError: v (")
    assert "\n" not in failure_of(ValueError("a\nb")).message


def test_only_rank_0_reports_and_a_traceback_is_shown_on_demand(capsys, monkeypatch):
    def fail():
        raise ValueError("odd")

    assert guard(fail, Launch(1, 2)) == 3
    assert capsys.readouterr().err == ""
    assert guard(fail, Launch(0, 2)) == 3
    assert re.fullmatch(r"meshemu: internal error: ValueError: odd \(.*\)\n", capsys.readouterr().err)
    monkeypatch.setenv("MESHEMU_DEBUG", "1")
    guard(fail, Launch())
    assert "Traceback" in capsys.readouterr().err


def test_different_failures_are_all_told():
    same = Failure(2, "error: a")
    assert report_lines([same, same]) == ["error: a"]
    assert report_lines([same, Failure(3, "b"), same]) == ["rank 0 of 3: error: a", "rank 1 of 3: b"]


@pytest.mark.mpi
def test_failures_of_all_ranks_are_collected(comm):
    failures = collect_failures(comm, Failure(2, f"from {comm.rank}"))
    assert failures == [Failure(2, f"from {rank}") for rank in range(comm.size)]


@pytest.mark.mpi(min_size=2)
def test_a_failure_that_others_do_not_share_is_not_collected(comm):
    if comm.rank == comm.size - 1:
        assert collect_failures(comm, Failure(2, "alone"), patience_s=0.3) is None
    comm.Barrier()
    if comm.rank == 0:
        assert comm.recv(source=comm.size - 1, tag=32_749) == Failure(2, "alone")
