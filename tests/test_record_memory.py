"""A run needs no more memory after many steps than after few: nothing keeps the rows of steps that are in the file."""

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from test_resume_runs import CONFIG, MINE, captured

import meshemu
from meshemu.config import load
from meshemu.emulator.recording import Recorder
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network.results import LinkStats
from meshemu.program.builder import ProgramBuilder
from meshemu.record import Head, RunWriter, StepRecord

MIB = 2**20


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def test_a_writer_keeps_no_rows(tmp_path: Path) -> None:
    """200 steps of 3,000 devices are 100 MB of rows; 5 steps leave all behind that any number does."""
    system = System.grid(rows=60, cols=50, bandwidth="1 GB/s", latency=0)
    mesh = flatten(system)
    random = np.random.default_rng(0)

    def record() -> StepRecord:
        """Rows of its own, as steps that take different paths have them; small numbers are quickly compressed."""
        names = ("bytes", "busy_ps", "wait_ps", "packets", "max_queue")
        links = LinkStats(**{name: np.full(mesh.n_links, random.integers(99)) for name in names})
        idle = np.full(mesh.n_devices, random.integers(99))
        return StepRecord(
            time_ps=1, compute_ps=1, exposed_comm_ps=0, flops=0, links=links, device_compute_ps=idle + 1,
            device_idle_ps=idle, wall_s=0.0,
        )  # fmt: skip

    program = ProgramBuilder(mesh.n_devices).build()
    head = Head(system_json=system.to_json(), mesh=mesh, program=program, config_text="", n_steps=205)
    with RunWriter.create(tmp_path / "run.h5", head) as writer:
        for _ in range(5):
            writer.append_step(record())
        few = resident_bytes()
        for _ in range(200):
            writer.append_step(record())
        assert resident_bytes() - few < 10 * MIB


def test_training_keeps_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tensors are alive after 30 executed and recorded steps as after 5."""
    (tmp_path / "run.toml").write_text(f'plan = "data"\n{CONFIG}')
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    alive: dict[int, int] = {}
    record = Recorder.step

    def step(self: Recorder, number: int, *arguments: object, **options: object) -> None:
        if number in (5, 30):
            gc.collect()
            alive[number] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        record(self, number, *arguments, **options)

    monkeypatch.setattr(Recorder, "step", step)
    config = load("run.toml", ["training.steps=31", "checkpoint.every_steps=10", "training.evaluate_every=0"])
    meshemu.run(config, "run.h5", capture=captured(Path("mine.py")))
    assert alive[30] <= alive[5] + 5
