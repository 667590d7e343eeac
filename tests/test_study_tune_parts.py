"""What tuning rests on: plans that fit, bounds that no step beats, estimates that learn, cuts that are others."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_gpt import SMALL_GPT

from meshemu import System
from meshemu.config import load
from meshemu.config.schema import Timing
from meshemu.emulator.configured import parts_of
from meshemu.emulator.running import prepared_step
from meshemu.errors import PlanError
from meshemu.mesh import flatten
from meshemu.study.study_file import as_toml
from meshemu.study.tuning_bounds import UNKNOWN, AloneTime, plan_bound_ps
from meshemu.study.tuning_cuts import stage_cuts
from meshemu.study.tuning_estimate import Estimates
from meshemu.study.tuning_options import Options
from meshemu.study.tuning_space import placements, plan_tables
from meshemu.study.tuning_trials import Trials
from meshemu.workload.placement import make_plan
from meshemu.workload.stage_costs import flops_and_bytes
from meshemu.workload.stages import assign_stages

SYSTEM = """
plan = "data"
[training]
steps = 1
optimizer = { name = "sgd", lr = 0.1 }
[system]
preset = "dojo-tile"
dies = [2, 3]
"""
GPT = SYSTEM + SMALL_GPT + "batch_size = 8\n"
IMAGES = SYSTEM + """
[model]
name = "regnet"
args = { in_channels = 1, num_classes = 10, stem_width = 8, widths = [8], depths = [1], group_width = 8 }
[data]
name = "digits"
args = { image_size = 8 }
batch_size = 6
"""
"""A model whose statistics of the batch make plans differ in more than their collectives."""


AXES = [{"data": 6}, {"data": 4, "tensor": 2}, {"pipeline": 2, "data": 2}, {"data": 2, "spatial": [2, 1]}]


def mesh_of(rows, cols, dead=()):
    system = System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns")
    return flatten(system.override({"dead": [list(divmod(d, cols)) for d in dead]} if dead else {}))


@pytest.fixture(scope="module")
def trials_of(tmp_path_factory):
    """A function from the text of a configuration and settings to its Trials; captures are shared by model."""
    place = tmp_path_factory.mktemp("parts")

    def make(text, *overrides):
        path = place / f"{abs(hash(text))}.toml"
        path.write_text(text)
        return Trials(load(path, overrides))

    return make


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 6), st.sets(st.integers(0, 29), max_size=2), st.integers(2, 40))
def test_plans_fit_the_mesh_and_leave_out_no_number_of_replicas_that_matters(rows, cols, dead, batch):
    dead = sorted(d for d in dead if d < rows * cols)
    if len(dead) == rows * cols:
        return
    mesh = mesh_of(rows, cols, dead)
    tables = plan_tables(mesh, batch, images=True, pipelines=True)
    assert len({as_toml(table) for table in tables}) == len(tables)
    for table in tables[:: max(1, len(tables) // 12)]:
        placed = make_plan(table, mesh)  # raises where it does not fit
        assert placed.size(placed.batch_axes) * table.get("micro_batches", 1) <= batch
        assert batch % table.get("micro_batches", 1) == 0

    def fits(n):
        try:
            make_plan({"data": n}, mesh)
        except PlanError:
            return False
        return True

    possible = {n for n in range(1, min(batch, rows * cols - len(dead)) + 1) if fits(n)}
    found = {table["data"] for table in tables if list(table) == ["data"]}
    assert 1 in found <= possible and max(found) == max(possible)
    assert {-(-batch // n) for n in found} == {-(-batch // n) for n in possible}


def test_plans_of_a_tray_have_every_kind_of_axis():
    mesh = flatten(System.preset("dojo-tray"))
    tables = plan_tables(mesh, 300, images=True, pipelines=True)
    assert {kind for table in tables for kind in table} == {
        "data", "tensor", "spatial", "pipeline", "micro_batches",
    }  # fmt: skip
    assert {"data": 150} in tables and {"spatial": [5, 5], "data": 6} in tables and {"tensor": 8} in tables
    plain = plan_tables(mesh, 300, images=False, pipelines=False)
    assert not any("spatial" in table or "pipeline" in table for table in plain)
    given_parts = plan_tables(mesh, 300, images=False, pipelines=True, micro_batches=6)
    assert {table["micro_batches"] for table in given_parts if "pipeline" in table} == {6}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(AXES), st.integers(2, 6), st.integers(2, 6))
def test_placements_are_all_the_layouts_but_the_usual_one(table, rows, cols):
    mesh = mesh_of(rows, cols)
    shapes = [
        [[r, n // r] for r in range(1, n + 1) if n % r == 0] if isinstance(n, int) else [n] for n in table.values()
    ]
    layouts = set()
    for chosen in product(*shapes):
        try:
            layouts.add(make_plan(dict(zip(table, chosen, strict=True)), mesh).devices)
        except PlanError:
            continue
    found = [make_plan(one, mesh) for one in placements(table, mesh)]
    if not layouts:
        assert not found
        return
    usual = make_plan(table, mesh).devices
    assert len(found) == len({plan.axes for plan in found}) and usual not in {plan.devices for plan in found}
    assert {plan.devices for plan in found} | {usual} == layouts or len(found) == 16


def test_bounds_are_below_every_time(trials_of):
    """Of plans of every kind, of two models, with dear launches, with fusion and with two threads."""
    of_gpt = [{"data": 4}, {"shard": 2, "zero": 2}, {"tensor": 2}, {"pipeline": 2, "micro_batches": 4}]
    of_images = [{"data": 6}, {"spatial": [2, 3]}, {"tensor": 2, "data": 3}]
    tight = []
    for text, overrides, tables in [
        (GPT, ["system.op_launch=1 us"], of_gpt),
        (GPT, ["timing.fusion=true"], [{"data": 1}]),
        (GPT, ["timing.compute_threads=2", "ingest.enabled=true"], [{"data": 1}]),
        (IMAGES, [], of_images),
    ]:
        trials = trials_of(text, *overrides)
        assert trials.bound_ps({"data": 1}) > 0
        for table in tables:
            trial = trials.trial(trials.usual(table), table)
            assert trials.loose_bound_ps(table) <= trial.bound_ps <= trial.step_ps, (table, overrides)
            tight.append(trial.bound_ps / trial.step_ps)
    assert max(tight) > 0.75, "a bound that is never near says little"


def test_a_bound_is_what_the_busiest_unit_shares():
    alone = AloneTime((1000, 400), (60, 90))
    assert plan_bound_ps({"data": 7}, alone) == 143 + 60
    assert plan_bound_ps({"pipeline": 2, "data": [2, 5], "micro_batches": 4}, alone) == 50 + 30
    assert plan_bound_ps({"spatial": [10, 10]}, alone) == max(10 + 60, 4 + 90)
    assert plan_bound_ps({"data": 3}, UNKNOWN) == 0


def test_nothing_is_bounded_where_times_are_measured(trials_of, tmp_path):
    table = tmp_path / "measured.csv"
    table.write_text("op_class,number_format,shape,flops,read_bytes,write_bytes,time_ps\nadd,fp32,,1,8,4,5000\n")
    assert trials_of(GPT, f"timing.calibration={table}").bound_ps({"data": 1}) == 0


def test_estimates_learn_what_each_axis_costs():
    """Of made-up times in which features are dear and replicas cheap."""
    tables = [{"data": n} for n in (4, 9, 16, 25)] + [{"tensor": n} for n in (4, 9, 16, 25)]
    alone = AloneTime((36_000_000,), (2_000_000,))

    def truth(table):
        (kind, n), = table.items()
        return 36e6 / n + 2e6 + {"data": 1e5, "tensor": 3e6}[kind] * n**0.5

    estimates = Estimates(tables, alone)
    blind = estimates.ps([(tables[0], round(truth(tables[0])))], 1e5)
    assert blind[6] < 0.5 * truth(tables[6])
    told = estimates.ps([(tables[i], round(truth(tables[i]))) for i in (0, 4)], 1e5)
    assert told == pytest.approx([truth(table) for table in tables], rel=0.05)
    flow = Estimates([{"pipeline": 3, "micro_batches": 6}], AloneTime((36_000,), (3_000,)))
    assert flow.ps([], 0.0)[0] == pytest.approx((36_000 / 3 + 3_000 * 6 / 3) * 8 / 6)


def test_cuts_of_a_pipeline_are_others_than_the_usual_one_and_can_be_made(trials_of):
    trials = trials_of(GPT)
    trials.trial(trials.usual({"data": 2}), {"data": 2})
    usual = assign_stages(trials.graph, 2, cost=flops_and_bytes).of
    cuts = stage_cuts(trials.graph, 2, flops_and_bytes)
    assert 2 <= len(cuts) == len(set(cuts))
    for names in cuts:
        assert assign_stages(trials.graph, 2, names).of != usual
    assert stage_cuts(trials.graph, 10_000, flops_and_bytes) == []
    step_ps = {names: trials.trial(
        trials.usual(table := {"pipeline": 2, "micro_batches": 4, "stages": list(names)}), table
    ).step_ps for names in cuts}  # fmt: skip
    assert None not in step_ps.values() and len(set(step_ps.values())) > 1


def test_options_differ_in_what_matters_and_are_counted_once():
    timing = Timing()
    table = {"shard": 4}
    options = Options.of(
        table, timing, layouts=[{"shard": [1, 4]}], cuts=[], collectives=("auto", "ring"), gradient_bytes=8_000
    )
    everything = [options.choice(numbers, timing) for numbers in options.all()]
    assert len({choice for choice, _ in everything}) == len(everything) == options.count == 2 * 2 * 4 * 7 * 2
    assert everything[0][0].plan == "{ shard = 4 }" and everything[0][0].timing(timing) == timing
    assert {choice.bucket_bytes for choice, _ in everything} == {25_000_000, 4_000, 2_000, 1_000}
    levels = ["zero = 1", "zero = 2", "zero = 3"]
    assert {choice.plan for choice, _ in everything} == {
        f"{{ {words} }}"
        for extent in ("4", "[1, 4]")
        for words in (f"data = {extent}", f"shard = {extent}", *(f"shard = {extent}, {zero}" for zero in levels[:2]))
    } | {f"{{ shard = {extent}, zero = 3 }}" for extent in ("4", "[1, 4]")}
    assert {choice.prefetch for choice, plan in everything if plan.get("zero") != 3} == {timing.prefetch}
    single = [options.choice(numbers, timing)[0] for numbers in options.single_changes()]
    assert len(single) == 1 + 1 + 3 + 6 + 1
    usual = everything[0][0]
    assert all(usual != one for one in single)
    flow = Options.of({"pipeline": 2}, timing, layouts=[], cuts=[("norm",)], collectives=(), gradient_bytes=0)
    plans = {choice.plan for choice, _ in (flow.choice(numbers, timing) for numbers in flow.all())}
    assert plans == {
        "{ pipeline = 2 }", '{ pipeline = 2, order = "gpipe" }', '{ pipeline = 2, stages = ["norm"] }',
        '{ pipeline = 2, stages = ["norm"], order = "gpipe" }',
    }  # fmt: skip


def test_a_trial_is_what_a_run_says(trials_of):
    trials = trials_of(GPT)
    table = {"data": 2, "tensor": [1, 2]}
    trial = trials.trial(trials.usual(table), table)
    config = trials.configured(trial)
    timed = prepared_step(parts_of(config), config).timed
    assert trial.step_ps == timed.timing.end_ps == trial.where.total_ps
    assert trial.memory_bytes == int(np.max(timed.peak_memory_bytes))
    assert trials.trial(trials.usual(table), table) is trial and trials.known == trials.timed == [trial]
