"""Tuning: as good as trying everything, never a plan that does not fit, and a configuration that runs."""

import csv
import io
import json

import pytest
from small_gpt import SMALL_GPT

from meshemu import System, cli
from meshemu.config import load
from meshemu.emulator.running import run
from meshemu.errors import InputError, PlanError
from meshemu.mesh import flatten
from meshemu.record.reader import open_run
from meshemu.study import tune as tuning
from meshemu.study.study_file import as_toml
from meshemu.study.tune import tune
from meshemu.study.tune_report import render, save, to_csv
from meshemu.study.tuning_space import alone_time, plan_bound_ps, plan_estimate_ps, plan_tables
from meshemu.workload.placement import make_plan

CONFIG = (
    """
plan = "data"
[system]
preset = "dojo-tile"
dies = [2, 3]"""
    + SMALL_GPT
    + """batch_size = 12
[training]
steps = 1
optimizer = { name = "sgd", lr = 0.1 }
"""
)
PLANS = [{"data": 6}, {"shard": 6, "zero": 1}, {"data": 3, "tensor": 2}, {"pipeline": 2, "micro_batches": 2}]
COLLECTIVES = ("auto", "ring")


@pytest.fixture(autouse=True)
def a_small_space(monkeypatch):
    """Few collectives, and buckets as the configuration has them."""
    monkeypatch.setattr(tuning, "COLLECTIVES", COLLECTIVES)
    monkeypatch.setattr(tuning, "BUCKETS", ())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def times(config, tmp_path_factory):
    """Everything timed: (plan, collective) -> ps, buckets left as they are."""
    place, found = tmp_path_factory.mktemp("all"), {}
    for plan in PLANS:
        for collective in COLLECTIVES:
            words = [f"plan={as_toml(plan)}", f"timing.collective={collective}", "training.steps=1"]
            done = run(load(config, words), place / f"{len(found)}.h5", execute=False)
            found[as_toml(plan), collective] = done.prepared.timed.timing.end_ps
    return found


def test_tuning_is_as_good_as_trying_everything(config, times):
    found = tune(config, plans=PLANS, trials=100)
    assert found.best.step_ps == min(times.values())
    for trial in found.trials:
        if trial.step_ps is not None:
            assert trial.step_ps == times[trial.choice.plan, trial.choice.collective] >= trial.bound_ps
            assert trial.where.total_ps == trial.step_ps
    assert found.baseline.choice.plan == "{ data = 6 }"
    passed = [trial for trial in found.trials if "bound" in trial.why]
    assert all(trial.bound_ps >= found.best.step_ps for trial in passed)


def test_bounds_are_below_every_time(config, times, tmp_path):
    words = ["plan={data=1}", "training.steps=1"]
    alone = open_run(run(load(config, words), tmp_path / "one.h5", execute=False).path)
    system = System.preset("dojo-tile")
    time = alone_time(alone.program(), system.device)
    assert time.work_ps > 0 and time.launch_ps > 0
    for plan in PLANS:
        bound = plan_bound_ps(plan, time)
        assert 0 < bound <= plan_estimate_ps(plan, time)
        assert all(ps >= bound for (name, _), ps in times.items() if name == as_toml(plan))


def test_the_sampler_takes_over_where_trials_are_few(config, monkeypatch):
    monkeypatch.setattr(tuning, "BUCKETS", (1000, 25_000_000))
    found = tune(config, plans=PLANS[:2], trials=5)
    timed = [trial for trial in found.trials if trial.step_ps is not None]
    assert len(timed) == 5 and len({trial.choice for trial in timed}) == 5
    again = tune(config, plans=PLANS[:2], trials=5)
    assert again.trials == found.trials


def test_what_does_not_fit_is_never_chosen(config):
    """With memory for a third of the parameters and their states, plain data parallelism is out of the question."""
    fits = tune(config, plans=[{"data": 6}, {"tensor": 2, "data": 3}, {"data": 99}], trials=3)
    refused = next(t for t in fits.trials if t.choice.plan == "{ data = 99 }")
    assert refused.step_ps is None and "99" in refused.why
    need = {t.choice.plan: t.memory_bytes for t in fits.trials}
    small, large = sorted(filter(None, set(need.values())))[:2]
    per_node = (small + large) // 2 // 354
    found = tune(config, overrides=[f"system.node.sram={per_node} B"], plans=[{"data": 6}, {"tensor": 2, "data": 3}])
    assert found.best.memory_bytes <= 354 * per_node
    assert any(t.step_ps is None for t in found.trials)
    with pytest.raises(InputError, match=r"none of .* plans can be timed; the first says"):
        tune(config, overrides=["system.node.sram=10 B"], plans=[{"data": 6}], trials=1)
    with pytest.raises(InputError, match="--trials 0"):
        tune(config, trials=0)


def test_plans_of_a_mesh_are_legal_distinct_and_use_it(config):
    mesh = flatten(System.preset("dojo-tray"))
    plans = plan_tables(mesh, 300, images=True, pipelines=True)
    assert len({as_toml(plan) for plan in plans}) == len(plans) > 50
    for plan in plans:
        try:
            placed = make_plan(plan, mesh)
        except PlanError as error:
            pytest.fail(f"{plan}: {error}")
        assert placed.n_positions <= 150
    kinds = {kind for plan in plans for kind in plan}
    assert kinds == {"data", "shard", "zero", "tensor", "spatial", "pipeline", "micro_batches"}
    assert {"data": 150} in plans and {"spatial": [5, 5], "data": 6} in plans
    plain = plan_tables(mesh, 300, images=False, pipelines=False)
    assert not any("spatial" in plan or "pipeline" in plan for plan in plain)


def test_the_command_leaves_a_configuration_that_runs(config, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tuning, "plan_tables", lambda *_args, **_named: PLANS[:2])
    words = ["tune", str(config), "--trials", "3", "-o", str(tmp_path / "out"), "--json"]
    assert cli.main(words) == 0
    printed = json.loads(capfd.readouterr().out)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "tuned.toml", "tune.txt", "tune.json", "tune.csv", "tune.png",
    }  # fmt: skip
    done = run(load(tmp_path / "out" / "tuned.toml"), tmp_path / "run.h5", execute=False)
    assert done.prepared.timed.timing.end_ps == printed["best"]["step_ps"]


def test_texts(config, tmp_path):
    found = tune(config, plans=PLANS[:2], trials=2)
    text = render(found)
    assert "times as fast as plain data parallelism" in text and "compute" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert int(rows[0]["step_ps"]) == found.best.step_ps and rows[0]["plan"] == found.best.choice.plan
    assert save(found, tmp_path)[-1].read_bytes()[:4] == b"\x89PNG"
