"""Shapes, producers, fusion and calibration in the Programs of real steps, and in files of them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import meshemu
from meshemu import cli
from meshemu.cost import BOUNDS, CostOptions, Measured, bounds, durations_ps, write_calibration
from meshemu.cost.op_classes import MATRIX, POINTWISE, base_name
from meshemu.program.ir import OpKind
from meshemu.program.verify import verify

TILE = meshemu.System.preset("dojo-tile")


class Forked(nn.Module):
    """relu of a product that nobody else reads, and a product that two read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x)).view(-1, 40)
        y = self.second(hidden)
        return torch.sigmoid(y) * y


def step(**changes: Any) -> Any:
    torch.manual_seed(0)
    batch = torch.rand(10, 24), torch.rand(10, 24)
    return meshemu.emulate(
        Forked(), batch, F.mse_loss, system=TILE, plan={"data": 5}, execute=False,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "run.h5"
    step(output=file)
    return file


def test_steps_know_their_shapes_and_lone_readers(path: Path) -> None:
    program = meshemu.open(path).program()
    verify(program)
    classes = np.array([base_name(name) for name in program.op_classes])[program.op_class]
    computes = np.flatnonzero(program.kind == OpKind.COMPUTE)
    for op in computes:
        assert program.shape[op] >= 0
        if classes[op] in MATRIX:
            products = program.shapes[program.shape[op]]
            assert sum(2 * int(np.prod(product[:4])) for product in products) == program.flops[op]
    assert {program.shapes[i] for i in program.shape[computes[classes[computes] == "addmm"]]} == {
        ((1, 2, 40, 24, 48, 960),), ((1, 2, 24, 40, 80, 960),)
    }, "two samples on each of five dies"  # fmt: skip
    updates = computes[classes[computes] == "sgd_momentum"]
    assert {program.shapes[i] for i in program.shape[updates]} == {((24 * 40 + 40 + 40 * 24 + 24,),)}
    readers = np.flatnonzero(program.producer >= 0)
    pairs = {(classes[op], classes[program.producer[op]]) for op in readers}
    assert all(classes[op] in POINTWISE for op in readers)
    assert ("mul", "sigmoid") not in pairs, "the backward pass reads the sigmoid too"
    for op in readers:
        assert program.producer_bytes[op] == program.shapes[program.shape[op]][0][0] * 4


def test_a_chain_that_nobody_else_reads_is_fused() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.neg(x @ self.weight) + 1.0).view(-1).sum()

    batch = {"x": torch.rand(10, 4)}
    program = meshemu.emulate(
        Chain(), batch, lambda out, _: out, system=TILE, plan={"data": 5}, execute=False
    ).program  # fmt: skip
    names = [program.op_classes[i] for i in program.op_class]
    own = [op for op in range(program.n_ops) if program.device[op] == 0 and program.producer[op] >= 0]
    chain = [(names[op], names[program.producer[op]], int(program.producer_bytes[op])) for op in own]
    assert ("neg", "mm", 2 * 6 * 4) in chain and ("add", "neg", 2 * 6 * 4) in chain
    assert TILE.device is not None
    apart, together = (durations_ps(program, TILE.device, CostOptions(fusion=on)) for on in (False, True))
    assert (together <= apart).all()
    launch = TILE.device.op_launch_ps
    assert all(apart[op] - together[op] >= launch for op in own)
    assert BOUNDS[bounds(program, TILE.device)[own[0]]] == "launch"


def test_a_stored_step_is_fused_as_a_run_is(path: Path, tmp_path: Path) -> None:
    fused = step(options=meshemu.TimingOptions(fusion=True), output=tmp_path / "fused.h5")
    assert fused.time_ps < meshemu.open(path).steps["time_ps"][0]
    meshemu.retime(path, ["timing.fusion=true"], tmp_path / "again.h5")
    assert meshemu.compare(tmp_path / "fused.h5", tmp_path / "again.h5") is None
    assert "the op not launched" in " ".join(meshemu.open(tmp_path / "again.h5").assumptions)


def test_a_table_times_a_stored_step(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = meshemu.open(path).program()
    rows = {}
    for op in np.flatnonzero(program.kind == OpKind.COMPUTE):
        row = Measured(
            program.op_classes[program.op_class[op]], program.number_formats[program.number_format[op]],
            program.shapes[program.shape[op]], int(program.flops[op]), int(program.read_bytes[op]),
            int(program.write_bytes[op]), 12_345,
        )  # fmt: skip
        rows[row.key] = row
    write_calibration(tmp_path / "dies.csv", tuple(rows.values()))
    assert cli.main([
        "retime", str(path), "--set", f"timing.calibration={tmp_path / 'dies.csv'}", "-o", str(tmp_path / "b.h5"),
    ]) == 0  # fmt: skip
    timed = meshemu.open(tmp_path / "b.h5")
    ops = timed.ops(0)
    computes = ops[ops["kind"] == "COMPUTE"]
    assert set(computes["end_ps"] - computes["start_ps"]) == {12_345}
    assert any(str(tmp_path / "dies.csv") in text for text in timed.assumptions)
    assert meshemu.retime(tmp_path / "b.h5", [], tmp_path / "c.h5").timing.end_ps == timed.steps["time_ps"][0]


def test_a_file_without_shapes_is_timed_at_peak_rates_and_says_so(path: Path, tmp_path: Path) -> None:
    """As a file of layout 2 is read, which has none of the three columns."""
    stored = meshemu.open(path).program()
    old = meshemu.program.from_arrays(
        {**meshemu.program.arrays(stored), "shape": np.full(stored.n_ops, -1), "producer": np.full(stored.n_ops, -1)},
        {**meshemu.program.tables(stored), "shapes": []},
    )  # fmt: skip
    assert TILE.device is not None
    known = {a.key: a.sentence for a in meshemu.cost.assumptions(TILE.device, old)}
    assert "at the peak rate" in known["unknown_shapes"]
    assert "unknown_shapes" not in {a.key for a in meshemu.cost.assumptions(TILE.device, stored)}
    assert (durations_ps(old, TILE.device) <= durations_ps(stored, TILE.device)).all()
    with h5py.File(path) as file:
        assert {"shape", "producer", "producer_bytes"} <= set(file["/program/ops"])
