"""Tuning: as good as trying everything, never a plan that does not fit, and a configuration that runs."""

import csv
import io
import json
from itertools import product

import pytest
from small_gpt import SMALL_GPT

from meshemu import cli
from meshemu.config import load
from meshemu.emulator.running import run, system_of
from meshemu.errors import InputError, PlanError
from meshemu.mesh import flatten
from meshemu.study import tuning_options
from meshemu.study.captures import timed_step
from meshemu.study.study_file import as_toml
from meshemu.study.tune import tune
from meshemu.study.tune_report import render, save, to_csv
from meshemu.workload.placement import make_plan

CONFIG = (
    """
plan = "data"
[system]
preset = "dojo-tile"
dies = [3, 4]"""
    + SMALL_GPT
    + """batch_size = 12
[training]
steps = 1
optimizer = { name = "sgd", lr = 0.1 }
"""
)
PLANS = [{"data": 2, "tensor": 2}, {"pipeline": 2, "micro_batches": 2}]
COLLECTIVES = ("auto", "ring")


@pytest.fixture(autouse=True)
def a_small_space(monkeypatch):
    """Few collectives, and one order, route and size of buckets."""
    monkeypatch.setattr("meshemu.study.tuning_model.COLLECTIVES", COLLECTIVES)
    monkeypatch.setattr("meshemu.study.tuning_cuts.MOST_CUTS", 2)
    for name, values in {"ROUTINGS": (), "PARTS_OF_GRADIENTS": (), "ORDERS": ("1f1b",), "PREFETCH": ()}.items():
        monkeypatch.setattr(tuning_options, name, values)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "small.toml"
    path.write_text(CONFIG)
    return path


def layouts_of(table, mesh):
    """Every way to lay the axes out with rows and columns, by trying all."""
    shapes = [[[r, n // r] for r in range(1, n + 1) if n % r == 0] for n in table.values()]
    for chosen in product(*shapes):
        spec = dict(zip(table, chosen, strict=True))
        try:
            yield spec, make_plan(spec, mesh).devices
        except PlanError:
            continue


def test_tuning_is_as_good_as_trying_everything(tmp_path):
    """All layouts of all plans times collectives, and cuts of the pipeline: nothing is faster than what is found.

    Combinations are slow, so that a pipeline may be faster than replicas and its layouts are tried.
    """
    config = tmp_path / "slow.toml"
    config.write_text(CONFIG.replace("dies = [3, 4]", 'dies = [3, 4]\ncombine = "5 us"'))
    mesh, times = flatten(system_of(load(config))), {}

    def time_ps(table, collective):
        changed = load(config, [f"plan={as_toml(table)}", f"timing.collective={collective}"])
        return timed_step(changed).timed.timing.end_ps

    for spec, _ in layouts_of(PLANS[0], mesh):
        for collective in COLLECTIVES:
            times[as_toml(spec), collective] = time_ps(spec, collective)
    for spec, _ in layouts_of({"pipeline": 2}, mesh):
        times[as_toml(spec), "auto"] = time_ps({**spec, "micro_batches": 2}, "auto")
    times["cut at the last norm", "auto"] = time_ps({**PLANS[1], "stages": ["norm"]}, "auto")
    assert len(times) == 3 * 2 + 2 + 1

    found = tune(config, plans=PLANS, trials=1000)
    assert found.best.step_ps <= min(times.values())
    for trial in found.trials:
        assert (trial.step_ps is None) == bool(trial.why)
        if trial.step_ps is not None:
            assert trial.where.total_ps == trial.step_ps >= trial.bound_ps
        elif "bound" in trial.why:
            assert trial.bound_ps >= found.best.step_ps
    tried = {(t.choice.plan, t.choice.collective): t.step_ps for t in found.trials if t.step_ps is not None}
    own = "{ data = 2, tensor = 2 }"  # as `make_plan` lays it out, in rows and columns one of those that were timed
    for (plan, collective), step_ps in times.items():
        if "data" in plan:
            assert tried.get((plan, collective), tried[own, collective]) == step_ps
    assert any("[2, 1]" in plan and "pipeline" in plan for plan, _ in tried)
    assert any("stages" in plan for plan, _ in tried)
    assert found.baseline.choice.plan == "{ data = 12 }"


def test_the_sampler_takes_over_where_trials_are_few(config, monkeypatch):
    monkeypatch.setattr(tuning_options, "PARTS_OF_GRADIENTS", (2, 4))
    found = tune(config, plans=[{"data": 4}], trials=6)
    timed = [trial.choice for trial in found.trials if trial.step_ps is not None]
    assert len(timed) == len(set(timed)) == 6
    changed = {
        name
        for choice in timed
        for name in ("plan", "collective", "bucket_bytes")
        if getattr(choice, name) != getattr(found.baseline.choice, name)
    }
    assert changed == {"plan", "collective", "bucket_bytes"}
    assert tune(config, plans=[{"data": 4}], trials=6).trials == found.trials


def test_what_does_not_fit_is_never_chosen_and_activations_are_made_again_where_that_helps(config):
    plans = [{"data": 2}, {"data": 99}]
    fits = tune(config, plans=plans, trials=3)
    refused = next(t for t in fits.trials if t.choice.plan == "{ data = 99 }")
    assert refused.step_ps is None and "99" in refused.why
    usual = next(t for t in fits.trials if t.choice.plan == "{ data = 2 }")
    assert not usual.memory_remark and fits.config.memory.when_full == "refuse"

    tight = [f"system.node.sram={(usual.memory_bytes - 1) // 354} B", "data.batch_size=12"]
    again = tune(config, overrides=tight, plans=plans[:1], trials=3)
    small, shard = (
        next(t for t in again.trials if t.choice.plan.startswith(f"{{ {kind} = 2")) for kind in ("data", "shard")
    )
    assert small.memory_remark and small.memory_bytes < usual.memory_bytes and small.step_ps > usual.step_ps
    assert shard.choice.plan == "{ shard = 2, zero = 3 }" and shard.step_ps is not None
    with pytest.raises(InputError, match=r"none of 2 plans .* needs [\d,]+ of [\d,]+ bytes of memory"):
        tune(config, overrides=[*tight, "memory.when_full=allow"], plans=plans[:1], trials=2)
    with pytest.raises(InputError, match=r"none of .* plans can be timed; the first says"):
        tune(config, overrides=["system.node.sram=10 B"], plans=[{"data": 6}], trials=1)
    with pytest.raises(InputError, match="--trials 0"):
        tune(config, trials=0)


def test_a_small_model_is_left_on_one_device_which_leaves_nothing_else_to_choose(config):
    slow = ["system.die_edge.latency=100 us"]  # so that nothing is worth sending
    found = tune(config, overrides=slow, trials=20)
    assert found.best.choice.plan == "{ data = 1 }"
    assert found.config.plan.model_dump(exclude_none=True) == {"data": 1}
    assert sum(trial.choice.plan == "{ data = 1 }" for trial in found.trials) == 1

    memory = next(trial.memory_bytes for trial in found.trials if trial.choice.plan == "{ data = 1 }")
    tight = tune(config, overrides=[*slow, f"system.node.sram={memory // 700} B"], trials=6)
    assert not any("shard = 1" in trial.choice.plan for trial in tight.trials)


def test_the_command_leaves_a_configuration_that_runs(config, tmp_path, capfd):
    words = ["tune", str(config), "--trials", "3", "-o", str(tmp_path / "out"), "--json"]
    assert cli.main(words) == 0
    printed = json.loads(capfd.readouterr().out)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "tuned.toml", "tune.txt", "tune.json", "tune.csv", "tune.png",
    }  # fmt: skip
    done = run(load(tmp_path / "out" / "tuned.toml"), tmp_path / "run.h5", execute=False)
    assert done.prepared.timed.timing.end_ps == printed["best"]["step_ps"]
    assert sum(trial["step_ps"] is not None for trial in printed["trials"]) == 3 < len(printed["trials"])


def test_texts_say_why_the_best_wins(config, tmp_path):
    found = tune(config, plans=[{"data": 2}], trials=2)
    text = render(found)
    assert "times as fast as plain data parallelism" in text
    assert f"{(found.best.step_ps - found.baseline.step_ps) / 1e6:+,.2f} us" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert int(rows[0]["step_ps"]) == found.best.step_ps and rows[0]["plan"] == found.best.choice.plan
    assert save(found, tmp_path)[-1].read_bytes()[:4] == b"\x89PNG"
