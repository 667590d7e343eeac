"""Real jobs that are killed or told to stop at some moment, and go on with another number of ranks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from test_resume_runs import CONFIG, MINE, captured

import meshemu
from meshemu.config import load
from meshemu.errors import RecordError
from meshemu.runtime.local import run_ranks

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder)
    meshemu.run(load(folder / "run.toml"), folder / "whole.h5", capture=captured(folder / "mine.py"))
    return folder / "whole.h5"


def prepare(folder: Path) -> None:
    (folder / "run.toml").write_text(f'plan = "data"\n{CONFIG}'.replace("steps = 6", f"steps = {STEPS}"))
    (folder / "mine.py").write_text(MINE)


def words(ranks: int, *options: str) -> list[str]:
    launcher = [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, "-m", "meshemu", "run", "run.toml", "-o", "run.h5", *options]


@contextmanager
def job(folder: Path, ranks: int, *options: str) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words(ranks, *options), cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def n_steps(path: Path) -> int:
    """Committed steps, -1 while there is no file."""
    try:
        return meshemu.open(path).n_steps
    except RecordError:
        assert not path.exists(), "a results file that is there can be read"
        return -1


def wait_for(path: Path, steps: int, process: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + 100
    while n_steps(path) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.03)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that work, one a rank: those of us that have no children."""
    launched = psutil.Process(process.pid)
    found = [p for p in launched.children(recursive=True) if "meshemu" in p.cmdline() and not p.children()]
    return sorted(found, key=lambda p: p.environ().get("PMI_RANK", "")) or [launched]


def check_left(path: Path, whole: Path) -> int:
    """What a kill has left is what the uninterrupted run recorded, as far as it goes; so many steps."""
    left = max(n_steps(path), 0)
    if path.exists():
        run, reference = meshemu.open(path), meshemu.open(whole)
        for column in ("loss", "parameters_sha256", "time_ps", "gradient_norm"):
            assert run.steps[column].tolist() == reference.steps[column].tolist()[:left]
        for column in ("bytes", "wait_ps"):
            stored = reference.column(f"/results/links/{column}")[:left]
            assert run.column(f"/results/links/{column}").tolist() == stored.tolist()
        assert not run.complete or left == STEPS
    return left


def kill_a_job(folder: Path, chance: random.Random, ranks: int, whole: Path) -> int:
    """Kill -9 a random rank at a random moment of a run, before, while or after its file appears; steps left."""
    path = folder / "run.h5"
    with job(folder, ranks) as process:
        wait_for(path, chance.choice([-1, 0, chance.randrange(STEPS - 1)]), process)
        time.sleep(chance.random() * 0.05)
        working = workers(process)
        working[chance.randrange(len(working))].kill()
        process.communicate(timeout=60)
    return check_left(path, whole)


def kill_a_process(folder: Path, chance: random.Random, whole: Path) -> int:
    """The same with one rank, in a copy of this process, which has everything loaded."""
    path = folder / "run.h5"
    child = os.fork()
    if child == 0:
        try:
            meshemu.run(load(folder / "run.toml"), path, capture=captured(folder / "mine.py"))
        finally:
            os._exit(0)
    wanted = chance.choice([0, chance.randrange(STEPS)])
    while n_steps(path) < wanted:
        time.sleep(0.001)
    time.sleep(chance.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return check_left(path, whole)


def go_on(folder: Path, ranks: int, whole: Path) -> None:
    config, capture = load(folder / "run.toml"), captured(folder / "mine.py")
    run_ranks(
        ranks, lambda comm: meshemu.run(config, folder / "run.h5", resume=True, comm=comm, capture=capture).path
    )
    assert meshemu.compare(whole, folder / "run.h5") is None and meshemu.open(folder / "run.h5").complete


@pytest.mark.parametrize(("trial", "after"), [(0, 2), (1, 1), (2, 3), (3, 2), (4, 1)])
def test_killed_at_any_moment_a_run_goes_on(
    trial: int, after: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    kill_a_process(tmp_path, random.Random(trial), whole)
    go_on(tmp_path, after, whole)


def test_a_killed_rank_of_two_leaves_a_run_for_one_and_for_three(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    kill_a_job(tmp_path, random.Random(7), 2, whole)
    shutil.copytree(tmp_path, tmp_path / "again")
    go_on(tmp_path, 1, whole)
    go_on(tmp_path / "again", 3, whole)


def test_a_signal_to_the_launcher_stops_all_ranks_between_two_steps(whole: Path, tmp_path: Path) -> None:
    """As Slurm sends it; the job ends by itself, says how to go on, and does."""
    prepare(tmp_path)
    path = tmp_path / "run.h5"
    with job(tmp_path, 2, "--steps", "100000") as process:
        wait_for(path, 1, process)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=60)
    stopped = n_steps(path)
    assert process.returncode == 75
    assert said.count("\n") == 1
    assert f"meshemu: stopped by SIGUSR1 after {stopped} of 100000 steps; the same command with --resume" in said
    assert (tmp_path / "run.checkpoints" / f"step-{stopped:06d}.pt").exists()
    assert meshemu.open(path).steps["loss"].tolist()[:STEPS] == meshemu.open(whole).steps["loss"].tolist()[:stopped]
