"""The report says what the file holds, and its verdict follows the numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import SPEC, Case, make_case

from meshemu.analysis import metrics
from meshemu.analysis.report import as_dict, render
from meshemu.errors import RecordError
from meshemu.record import Run, open_run


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(dead=(5,))


@pytest.fixture(scope="module")
def run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(case.write(tmp_path_factory.mktemp("run") / "run.h5"))


def test_compute_rate_is_work_at_peak_over_time(case: Case, run: Run) -> None:
    rate = metrics.compute_rate(run, 0)
    program, time_s = case.program, case.time_ps / 1e12
    bf16 = int(program.flops[program.kind == 0].sum()) - 5
    fp32 = int(program.flops.sum()) - bf16
    assert (rate.number_format, rate.peak_flops_per_s) == ("bf16", 11 * SPEC.matrix_flops_per_s["bf16"])
    assert rate.achieved_flops_per_s == pytest.approx((bf16 + fp32) / time_s)
    least_s = bf16 / 11 / SPEC.matrix_flops_per_s["bf16"] + fp32 / 11 / SPEC.vector_flops_per_s["fp32"]
    assert rate.fraction_of_peak == pytest.approx(least_s / time_s)


def test_rankings_and_sums(case: Case, run: Run) -> None:
    busiest = metrics.busiest_links(run, count=3)
    best = np.argsort(-case.links.busy_ps, kind="stable")[:3]
    assert busiest.index.tolist() == best.tolist()
    assert busiest["utilisation"].iloc[0] == case.links.busy_ps.max() / (case.time_ps + 2)
    classes = metrics.link_classes(run)
    assert classes.loc["link", "bytes"] == case.links.bytes.sum() and classes.loc["link", "links"] == case.mesh.n_links
    ops = metrics.op_classes(run).set_index("op_class")
    assert ops.loc["conv", "device_ps"] == case.duration_ps[:11].sum() and ops.loc["conv", "ops"] == 11
    assert ops.loc["reduce_sum", "kind"] == "REDUCE" and ops.loc["reduce_sum", "busiest_device_ps"] == 10 * 1000
    (reduce,) = metrics.collectives(run).to_dict("records")
    assert (reduce["kind"], reduce["messages"], reduce["traffic_bytes"]) == ("reduce", 10, 640)
    member = case.program.collective >= 0
    sends = case.program.kind == 1
    assert reduce["start_ps"] == case.ops.start_ps[sends].min() and reduce["end_ps"] == case.ops.end_ps[member].max()


def test_union_of_intervals() -> None:
    start, end = np.array([5.0, 0, 1, 20]), np.array([8.0, 4, 3, 21])
    assert metrics.union_ps(start, end) == 4 + 3 + 1
    assert metrics.union_ps(np.array([0.0, 2]), np.array([10.0, 3])) == 10
    assert metrics.union_ps(np.zeros(0), np.zeros(0)) == 0


def test_dictionary_is_plain_json(run: Run) -> None:
    content = as_dict(run)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["last_step"]["step"] == 2 and content["last_step"]["accuracy"] is None
    assert content["critical_path"]["total_ps"] == content["first_step"]["time_ps"]
    assert content["system"] == {
        "name": "grid", "devices": "device", "rows": 3, "cols": 4, "n_devices": 12, "n_alive": 11, "n_links": 26,
    }


def test_text_holds_the_figures(case: Case, run: Run) -> None:
    text = render(run)
    assert max(map(len, text.splitlines())) <= 120
    assert "NOT complete" not in text and "3 of 3 steps" in text
    for words in (
        "Compute bounds the step", "1 dead", "reduce tree", "gradients 0", "op_launch: 1 us", "Critical path of step 0",
        case.mesh.link_name(int(case.links.busy_ps.argmax())), "1.117 us", "0.666667", "11 TFLOP/s",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (make_case(1, 2, compute_ps=10, message_bytes=10**6), "first of all one link, r0c1 -> r0c0 west (link), which"),
        (make_case(1, 20, compute_ps=10, message_bytes=1), "first of all link latency"),
        (make_case(2, 2, compute_ps=10**8), "Compute bounds the step: 99"),
    ],
)
def test_verdict_follows_the_critical_path(tmp_path: Path, case: Case, words: str) -> None:
    assert words in as_dict(open_run(case.write(tmp_path / "run.h5")))["verdict"]


def test_little_to_report(case: Case, tmp_path: Path) -> None:
    """No steps yet; steps without op times; a mesh without compute figures."""
    with case.writer(tmp_path / "empty.h5", assumptions=()) as writer:
        writer.write_ops(case.ops)
    empty = render(open_run(tmp_path / "empty.h5"))
    assert "No step was completed" in empty and "NOT complete, 0 of 3 steps" in empty and "Busiest" not in empty
    with case.writer(tmp_path / "bare.h5") as writer:
        writer.append_step(case.step(0))
    bare = render(open_run(tmp_path / "bare.h5"))
    assert "1 of 3 steps are recorded" in bare and "Critical path" not in bare and "Busiest links" in bare
    plain = make_case(device=None)
    text = render(open_run(plain.write(tmp_path / "plain.h5")))
    assert "of unknown peak" in text
    with pytest.raises(RecordError, match="is not TOML"):
        render(open_run(case.write(tmp_path / "odd.h5", config_text="not = = toml")))
