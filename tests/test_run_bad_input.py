"""Bad input to `meshemu run`: one clear line from one rank, exit code 2 (or 3), in seconds, no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import meshemu
from meshemu.config import load
from meshemu.runtime.local import run_ranks

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
plan = "spatial"
[system]
grid = { rows = 2, cols = 2, bandwidth = "50 GB/s", latency = "500 ns" }
[model]
name = "regnet"
args = { in_channels = 1, num_classes = 10, stem_width = 8, widths = [8], depths = [1], group_width = 8 }
[data]
name = "digits"
args = { image_size = 16 }
batch_size = 4
[training]
steps = 2
optimizer = { name = "sgd", lr = 0.1 }
"""
MODELS = """
import torch
from torch import nn
class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 10)
    def forward(self, x):
        x = x.mean(dim=(1, 2))
        return self.linear(x) * float(x.numpy().sum())
def hidden():
    return Hidden()
class Exponential(Hidden):
    def forward(self, x):
        return self.linear(torch.matrix_exp(x).mean(dim=(1, 2)))
def exponential():
    return Exponential()
def nothing():
    return None
def broken():
    raise RuntimeError("no weights here")
class Killer(Hidden):
    def forward(self, x):
        return self.linear(x.mean(dim=(1, 2)))
def slow():
    return Killer()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def error_line(job):
    lines = [line for line in job.stderr.splitlines() if line.startswith("meshemu")]
    assert len(lines) == 1, job.stderr
    assert "Traceback" not in job.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.step=3"], "training.step: unknown key, did you mean 'steps'?"),
        (["timing.packet_bytes=4 parsec"], "timing.packet_bytes = '4 parsec'"),
        (["system={preset='dojo-moon'}"], "dojo-moon"),
        (["system={preset='dojo-tile', die_edge={bandwidth='3 apples'}}"], "die_edge.bandwidth"),
        (["system={preset='dojo-tile', die_edge={speed='3 TB/s'}}"], "die_edge.speed"),
        (["plan={spatial=[3, 2]}"], "plan.spatial = [3, 2] is larger than the mesh of 2 x 2 devices"),
        (["plan={data=5}"], "plan.data = 5 is larger than the mesh: 5 > 4"),
        (["plan=data", "data.batch_size=3"], "batch size 3 < 4 devices"),
        (["model={build='no_such.py:build'}"], "no_such.py"),
        (["model={build='models.py:absent'}"], "absent is not defined"),
        (["model={build='models.py:broken'}"], "RuntimeError: no weights here"),
        (["model={build='models.py:nothing'}"], "models.py:nothing"),
        (["model={build='models.py:hidden'}"], "Hidden cannot be captured as one graph"),
        (["strict=true", "model={build='models.py:exponential'}"], "operator aten.linalg_matrix_exp.default"),
        (["data.name=faces"], "faces"),
        (["training.loss=surprise"], "training.loss = 'surprise'"),
        (["training.optimizer={name='sgd', lr=0.1, turbo=true}"], "training.optimizer.turbo: unknown key"),
    ],
)
def test_what_is_refused(overrides, said, folder):
    """Each fault is one line that names what is wrong, before anything is written."""
    with pytest.raises(meshemu.InputError) as raised:
        meshemu.run(load(folder / "config.toml", overrides), folder / "config.h5")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert not (folder / "config.h5").exists()


def test_the_command_says_it_once_and_ends_with_code_2(folder, mpirun):
    """What every rank finds when it captures; tests/test_cli.py has what is found before."""
    job = mpirun(
        2, "-m", "meshemu", "run", "config.toml", "--set", "model={build='models.py:hidden'}", cwd=folder, timeout_s=60
    )
    assert "cannot be captured" in error_line(job)
    assert job.returncode == 2
    assert not (folder / "config.h5").exists()


def refused_on(ranks, folder, output, *overrides):
    """What several ranks in this process are refused with."""
    config = load(folder / "config.toml", list(overrides))
    with pytest.raises(meshemu.MeshemuError) as raised:
        run_ranks(ranks, lambda comm: meshemu.run(config, output, comm=comm).path)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_more_ranks_than_devices(folder):
    assert "3 ranks > 1 x 2 = 2 devices" in refused_on(3, folder, folder / "run.h5", "system.grid.rows=1")
    assert not (folder / "run.h5").exists()


@pytest.mark.parametrize("output", ["nowhere/run.h5", "taken.h5", "."])
def test_output_that_cannot_be_written(output, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("taken.h5").write_text("something else")
    assert output in refused_on(2, folder, output)
    assert Path("taken.h5").read_text() == "something else"


def test_a_killed_rank_is_named_and_what_was_recorded_stays(folder):
    """Kill the working process of rank 1 after a few steps: code 3 within seconds, committed steps readable."""
    launcher = str(Path(sys.executable).with_name("mpirun"))
    words = ["run", "config.toml", "--steps", "100000", "-o", "run.h5"]
    with subprocess.Popen(
        [launcher, "-n", "2", sys.executable, "-m", "meshemu", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        deadline = time.monotonic() + 60
        while committed_steps(folder / "run.h5") < 3:
            assert job.poll() is None, job.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        working_process_of_rank(job.pid, 1).send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        _, said = job.communicate(timeout=30)
    assert time.monotonic() - killed_at < 10
    assert "rank 1 of 2 was killed by signal 9 (SIGKILL)" in said
    assert job.returncode == 3
    run = meshemu.open(folder / "run.h5")
    assert not run.complete
    assert run.n_steps >= 3
    assert run.steps.loss.notna().all()


SCRIPT = """
import torch
from mpi4py import MPI
import meshemu
from torch.nn import functional
world = MPI.COMM_WORLD
system = meshemu.System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns")
def batch(step):
    if step == 1 and world.rank == 1:
        raise RuntimeError("no more data here")
    return torch.ones(4, 3), torch.zeros(4, dtype=torch.long)
model, loss = torch.nn.Linear(3, 2), functional.cross_entropy
for steps in (1, 2):
    result = meshemu.emulate(model, batch, loss, system=system, steps=steps, comm=world)
    # one write, that no other rank comes between
    print(f"{len(result.losses)} steps on rank {world.rank}\\n", end="", flush=True)
"""


def test_a_users_script_whose_rank_fails_ends_at_once(mpirun, tmp_path):
    """Python without the command: an exception that one rank does not catch must not leave the others waiting."""
    (tmp_path / "script.py").write_text(SCRIPT)
    job = mpirun(2, "script.py", cwd=tmp_path, timeout_s=60)
    assert sorted(job.stdout.splitlines()) == ["1 steps on rank 0", "1 steps on rank 1"]
    assert job.returncode == 3, job.stderr
    assert "rank 1 of 2 failed: RuntimeError: no more data here" in job.stderr


def committed_steps(path):
    try:
        return meshemu.open(path).n_steps
    except meshemu.MeshemuError:
        return 0


def working_process_of_rank(launcher_pid, rank):
    """The process that does rank's work: the child that its supervisor has forked."""
    for process in psutil.Process(launcher_pid).children(recursive=True):
        environment = process.environ() if process.is_running() else {}
        if environment.get("PMI_RANK") == str(rank) and not process.children():
            return process
    raise AssertionError(f"no process of rank {rank}")
