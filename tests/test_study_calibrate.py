"""Calibration: a table replaces the model, files round trip and are refused by row, this machine is measured."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meshemu
from meshemu import cli
from meshemu.cost import Calibration, CostOptions, Measured, durations_ps, read_calibration, work_ps, write_calibration
from meshemu.cost.calibrated import factors
from meshemu.cost.calibration import COLUMNS
from meshemu.errors import InputError
from meshemu.execute.data_parallel import average, averaged_alone
from meshemu.execute.host_steps import host_step
from meshemu.execute.measuring import measured_s
from meshemu.hardware import DeviceSpec
from meshemu.program.builder import ProgramBuilder
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.study import calibrate, this_machine
from meshemu.study.host import UNMEASURED, core, prepared_step

CHIP = DeviceSpec("chip", 1, {"fp32": 10**12}, {"fp32": 10**12}, 10**9, 10**12, 10**12, 0, 0)
ADD = ("add", "fp32", ((100,),), 100, 800, 400)  # 800 B at 1 TB/s: 800 ps by the model
RELU = ("relu", "fp32", ((100,),), 100, 400, 400)  # 400 ps


def table(*rows: tuple[Any, ...]) -> Calibration:
    return Calibration("here", tuple(Measured(*row) for row in rows))


def program(*ops: tuple[Any, ...], producer: int = -1) -> Any:
    builder = ProgramBuilder(1)
    for at, (name, number_format, shape, flops, read_bytes, write_bytes) in enumerate(ops):
        fused = at == 1 and producer >= 0
        builder.compute(
            0, label=name, op_class=name, number_format=number_format, flops=flops, read_bytes=read_bytes,
            write_bytes=write_bytes, shape=builder.shape(shape), producer=producer if fused else -1,
            producer_bytes=400 if fused else 0,
        )  # fmt: skip
    return builder.build()


def test_rows_that_match_replace_the_model_and_others_scale_their_class() -> None:
    twice, half = ("add", "fp32", ((200,),), 200, 1600, 800), ("add", "fp32", ((50,),), 50, 400, 200)
    known = table((*ADD, 5000), (*twice, 3200), (*half, 800))  # 6.25, 2 and 2 times the model's 800, 1600, 400
    assert factors(CHIP, known) == {"add": 2.0}
    other = ("add", "fp32", ((10,),), 10, 80, 40)
    times = durations_ps(program(ADD, other, RELU), CHIP, CostOptions(calibration=known))
    assert times.tolist() == [5000, 160, 400], "measured; twice the model; a class that the table does not have"
    for changed in range(2, 6):  # each part of the key counts
        near = list(ADD)
        near[changed] = ((101,),) if changed == 2 else near[changed] + 8
        model = work_ps(CHIP, "add", "fp32", meshemu.cost.Work(*near[3:], near[2]))
        assert durations_ps(program(tuple(near)), CHIP, CostOptions(calibration=known)).tolist() == [2 * model]


def test_reductions_and_fused_ops_take_no_measured_time() -> None:
    known = table((*ADD, 5000), (*RELU, 7000))
    together = durations_ps(program(ADD, RELU, producer=0), CHIP, CostOptions(True, known))
    # add keeps its 800 B of loads, times 5000 / 800; relu, without its load, its 400 B of stores, times 7000 / 400.
    assert together.tolist() == [5000, 7000]
    slow = table((*ADD, 5000), ("add", "fp32", ((1,),), 1, 8, 4, 8), ("add", "fp32", ((2,),), 2, 16, 8, 16))
    assert durations_ps(program(ADD, RELU, producer=0), CHIP, CostOptions(True, slow)).tolist() == [800, 400]
    as_it_ran = table(("relu", "fp32", ((100,),), 100, 0, 400, 9000), *usual("relu"))  # of an op that loads nothing
    assert durations_ps(program(ADD, RELU, producer=0), CHIP, CostOptions(True, as_it_ran)).tolist() == [800, 400]
    builder = ProgramBuilder(1)
    builder.reduce(0, label="r", op_class="add", number_format="fp32", flops=100, read_bytes=800, write_bytes=400)
    for shape in (((100,),), ()):
        known = table(("add", "fp32", shape, 100, 800, 400, 5000))
        assert durations_ps(builder.build(), CHIP, CostOptions(calibration=known)).tolist() == [800]


def usual(op_class: str) -> list[tuple[Any, ...]]:
    """Two rows that take what the model says: with one other row, the factor of their class is 1."""
    return [(op_class, "fp32", ((n,),), n, 8 * n, n, 8 * n) for n in (1, 2)]


def test_factors_are_of_op_classes_whatever_the_variant() -> None:
    """In-place variants are the same op; times are rounded to the nearest; nothing takes no time; messages are none."""
    in_place = ("relu_", *RELU[1:])
    nine = ("relu_", "fp32", ((9,),), 9, 9, 0)
    for row, op in ((RELU, in_place), (in_place, RELU)):
        known = table((*row, 700), ("message", "", ((4,),), 0, 64, 64, 9))
        assert factors(CHIP, known) == {"relu": 1.75}
        assert durations_ps(program(op, nine), CHIP, CostOptions(calibration=known)).tolist() == [700, 16]  # 15.75
        among_others = table((*row, 700), *usual("relu"))
        assert durations_ps(program(op), CHIP, CostOptions(calibration=among_others)).tolist() == [700]
    at_once = table((*ADD, 0), *usual("add"))
    assert durations_ps(program(ADD), CHIP, CostOptions(calibration=at_once)).tolist() == [0]


def test_a_file_holds_the_table(tmp_path: Path) -> None:
    rows = (
        Measured(*ADD, 5000), Measured("mm", "fp32", ((1, 2, 3, 4, 8, 12), (2, 2, 2, 2, 8, 8)), 80, 80, 24, 9),
        Measured("message", "", (), 0, 64, 64, 700),
    )  # fmt: skip
    write_calibration(tmp_path / "cpu.csv", rows)
    assert read_calibration(tmp_path / "cpu.csv").rows == rows


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("add,fp32,100,1,2,3", "row 1: time_ps = None is not a whole number"),
        ("add,fp32,100,1,2,3,-4", "row 1: time_ps = '-4' is not a whole number"),
        ("add,fp32,1x2,1,2,3,4", "row 1: shape = '1x2' is neither"),
        ("add,fp32,1x2x3x4x5,1,2,3,4", "row 1: shape = '1x2x3x4x5' is neither"),
        ("add,fp32,5+6,1,2,3,4", "row 1: shape = '5\\+6' is neither"),
        ("add,fp32,²,1,2,3,4", "row 1: shape = '²' is not a whole number"),
        (",fp32,5,1,2,3,4", "row 1: op_class is empty"),
        ("add,fp32,5,1,2,3,4\nadd,fp32,5,1,2,3,9", "row 2 measures the same as row 1"),
        ("", "holds no rows"),
    ],
)
def test_a_bad_row_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    path.write_text(",".join(COLUMNS) + "\n" + line, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_calibration(path)


def test_a_file_without_the_columns_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cpu.csv").write_text("op,time\n")
    with pytest.raises(InputError, match="lacks the columns op_class"):
        read_calibration(tmp_path / "cpu.csv")
    (tmp_path / "cpu.csv").write_text("op_class,shape,flops,time_ps\n")
    with pytest.raises(InputError, match="lacks the columns number_format, read_bytes, write_bytes; it has op_class,"):
        read_calibration(tmp_path / "cpu.csv")
    (tmp_path / "cpu.csv").write_bytes(b"op_class\xff")
    with pytest.raises(InputError, match=r"cpu\.csv: cannot be read: is not text in UTF-8"):
        read_calibration(tmp_path / "cpu.csv")
    with pytest.raises(InputError, match="No such file"):
        meshemu.TimingOptions(calibration=str(tmp_path / "none.csv"))


def test_every_operator_of_a_step_is_in_the_table() -> None:
    """What is measured for a step is what its Program asks for, whatever the model."""
    budget = calibrate.Budget(1e-4, 1e-3)
    step = host_step("mlp", 2)
    prepared, operators = prepared_step(step, UNMEASURED), calibrate.Operators(budget, SingleComm())
    operators.measure(step, prepared)
    rows = operators.rows
    known = Calibration("here", rows)
    assert all(row.time_ps > 0 for row in rows) and len({row.key for row in rows}) == len(rows)
    assert within_roofline(rows), "no op is faster than the roofline of the core"
    compute = prepared.timed.program
    [row] = this_machine.this_machine(known, budget, SingleComm(), [("mlp", 2)], [])
    assert (row.ops, row.matched, row.ranks) == (compute.n_ops, compute.n_ops, 1)
    times = {row.key: row.time_ps for row in rows}
    expected = sum(times[calibrate.row_of(compute, op).key] for op in range(compute.n_ops))
    assert row.predicted_ps == expected and row.measured_ps > 0
    text = this_machine.render([row], "here")
    assert f"{row.error:+.1%}" in text and "Median error" in text
    emptied = Calibration("here", tuple(r for r in rows if r.op_class != "mm"))
    [less] = this_machine.this_machine(emptied, budget, SingleComm(), [("mlp", 2)], [])
    assert less.matched < row.matched


def within_roofline(rows: Sequence[Measured]) -> bool:
    """Whether no fp32 row took less time than the core that they all make could have taken for it."""
    device = core(rows)
    return all(
        work_ps(device, row.op_class, row.number_format, meshemu.cost.Work(*row.key[3:], row.shape)) <= row.time_ps
        for row in rows
        if row.number_format == "fp32"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(
    st.tuples(st.sampled_from(["add", "mm"]), *(st.integers(0, 10**5) for _ in range(3)), st.integers(1, 10**13)),
    min_size=1, max_size=4,
))  # fmt: skip
def test_a_core_is_as_fast_as_its_fastest_rows(measured: list[tuple[str, int, int, int, int]]) -> None:
    """However slowly: rates of a few per second are not rounded down to less than a row shows."""
    assert within_roofline([Measured(name, "fp32", (), *work, time_ps) for name, *work, time_ps in measured])


def messages(**times_ps: int) -> list[Measured]:
    return [Measured("message", "", ((int(n[1:]),),), 0, int(n[1:]), int(n[1:]), t) for n, t in times_ps.items()]


def test_messages_become_a_link() -> None:
    """Small ones by one line (2 us and 100 ps a byte), large ones by another, from the size where they meet."""
    rows = messages(b4=2_000_400, b1024=2_102_400, b4096=3_000_000, b8192=3_819_200)
    assert this_machine.link(rows, 1) == this_machine.link(rows, 700) == (10**10, 2_000_000)
    assert this_machine.link(rows, 5000) == this_machine.link(rows, 10**6) == (5 * 10**9, 3_000_000 - 4096 * 200)
    steep = messages(b4=10, b1024=2_102_400)
    assert this_machine.link(steep, 1) == (1024 * 10**12 // 2_102_400, 0)
    for size, time_ps in ((4, 2_000_400), (1024, 2_102_400), (4096, 3_000_000)):
        rate, latency_ps = this_machine.link(rows, size)
        assert abs(latency_ps + size * 10**12 // rate - time_ps) <= 2, "a measured size takes what it took"
    with pytest.raises(InputError, match="mpirun -n 2 meshemu calibrate"):
        this_machine.link(rows[:1], 1)


def test_an_all_reduce_of_two_ranks_is_two_exchanges() -> None:
    rows = messages(b4=1_000_400, b1024=1_102_400, b4096=1_409_600)
    assert this_machine.all_reduce_ps(rows, 8000) == 2 * (1_000_000 + 4000 * 100)


def test_averaging_is_measured_or_in_proportion() -> None:
    rows = [Measured("average", "fp32", ((n,),), n, 4 * n, 4 * n, 7 * n + 100) for n in (1000, 9000)]
    assert this_machine.averaging_ps(rows, 1000) == 7100 and this_machine.averaging_ps(rows, 18_000) == 2 * 63_100
    assert this_machine.averaging_ps(rows, 500) == 3550
    with pytest.raises(InputError, match="no averaging: calibrate on two ranks"):
        this_machine.averaging_ps(messages(b4=1), 1000)


def test_two_ranks_measure_at_the_same_time_and_the_slower_counts() -> None:
    """Rank 1 takes twice as long by its own clock; both call as often as the one with the larger number says."""

    def ranks(comm: Any) -> tuple[int, int, int]:
        calls = 0
        now = 0.0

        def call() -> None:
            nonlocal calls, now
            calls += 1
            now += 0.5 * (1 + comm.rank)

        seconds = measured_s(call, 5.0, lambda: now, comm.max)
        return calls, round(seconds * 10), calibrate.slower_ps(seconds, comm)

    first, second = run_ranks(2, ranks)
    assert first[0] == second[0] == 2 + 10, "a budget of five seconds is ten of rank 0's calls"
    assert (first[1], second[1]) == (5, 10) and first[2] == second[2] == 10**12


def test_rows_of_averaging_need_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "average_s", lambda model, budget_s, agreed: 1e-6)
    names = ("mlp", "mlp", "chain")
    assert calibrate.average_rows(calibrate.Budget(), SingleComm(), names) == ()
    found = run_ranks(2, lambda comm: calibrate.average_rows(calibrate.Budget(), comm, names))
    assert found[0] == found[1] and {row.time_ps for row in found[0]} == {10**6} and len(found[0]) == 2


def test_operators_and_their_step_are_measured_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In three rounds, of which the second is disturbed: an operator takes 1, 20 and 3 us, the step 2, 50 and 4 ms."""
    rounds, seen = iter((1e-6, 20e-6, 3e-6)), []
    steps, original = iter((2e-3, 50e-3, 4e-3)), calibrate.Operators.measure
    monkeypatch.setattr(calibrate, "operator_s", lambda *_: now_s)
    monkeypatch.setattr(calibrate, "update_s", lambda *_: now_s)
    now_s, operated, trained = 0.0, [], []

    def measured(self: calibrate.Operators, step: Any, prepared: Any) -> None:
        nonlocal now_s
        now_s = next(rounds)
        seen.append("operators")
        operated.append(step.model)
        original(self, step, prepared)

    def stepped(model: Any, *_: Any, **__: Any) -> float:
        seen.append("step")
        trained.append(model)
        return next(steps)

    monkeypatch.setattr(calibrate.Operators, "measure", measured)
    monkeypatch.setattr(this_machine, "step_s", stepped)
    monkeypatch.setattr(this_machine, "overhead_ps", lambda *_: 500_000)
    [row] = this_machine.this_machine(None, calibrate.Budget(0.2, 1.0), SingleComm(), [("mlp", 2)], [])
    assert seen == ["operators", "step"] * 3
    assert len(set(trained)) == 3 and not set(trained) & set(operated), "nothing made up has updated what is measured"
    assert row.measured_ps == 4 * 10**9
    assert row.matched == row.ops and row.predicted_ps == row.ops * (3_000_000 + 500_000)


def test_rows_that_not_every_round_has_keep_their_time() -> None:
    rounds = messages(b8=7), messages(b8=9, b16=5), messages(b8=100)
    assert list(this_machine.medians(rounds)) == messages(b8=9, b16=5)


def test_two_ranks_average_gradients() -> None:
    def ranks(comm: Any) -> list[torch.Tensor]:
        gradients = [torch.arange(3.0) * (comm.rank + 1), torch.full((2, 2), 4.0 * comm.rank)]
        average(gradients, comm)
        return gradients

    alone = [torch.arange(4.0), torch.ones(3)]
    averaged_alone(alone)
    assert [a.shape for a in alone] == [(4,), (3,)]
    for found in run_ranks(2, ranks):
        assert found[0].tolist() == [0, 1.5, 3] and found[1].tolist() == [[2, 2], [2, 2]]


def test_time_is_the_median_of_samples() -> None:
    """A trial of one second, which makes three samples of a budget of three seconds; they take 4, 9 and 5 seconds."""
    ticks = iter(np.cumsum([0, 1, 7, 4, 7, 9, 7, 5]).tolist())
    assert measured_s(lambda: None, 3.0, lambda: float(next(ticks))) == median([4, 9, 5])


def test_the_commands_and_their_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["validate", "--quick"], "go with --this-machine"),
        (["validate", "--this-machine", "--set", "system.die.power=1 W"], "takes no --set"),
        (["validate", "--this-machine", "--calibration", str(tmp_path / "no.csv")], "No such file"),
        (["calibrate", "-o", str(tmp_path / "no" / "cpu.csv")], "cannot be written"),
        (["calibrate", "-o", str(tmp_path)], "there is such a file already"),
    ):
        assert cli.main(arguments) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
