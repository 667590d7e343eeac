"""What-if: the known bottleneck of a made-up step comes first, with the elasticity that arithmetic says."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from stored_step import stored_step

from meshemu import System, cli
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError, RecordError
from meshemu.hardware import DeviceSpec, Router
from meshemu.program.builder import ProgramBuilder
from meshemu.study.machine import open_step, timed
from meshemu.study.pool import map_jobs
from meshemu.study.whatif import whatif
from meshemu.study.whatif_report import render, save, to_csv, to_json

DEVICE = DeviceSpec(
    name="device", n_nodes=1, matrix_flops_per_s={"bf16": 10**13}, vector_flops_per_s={"bf16": 10**12},
    sram_bytes=2**20, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=100_000, combine_ps=300_000,
)  # fmt: skip
GRID = System.grid(rows=2, cols=3, bandwidth="100 GB/s", latency="200 ns", device=DEVICE)


def a_step(n_devices, *, op_class="mm", flops=0, read=0, write=0, message=0, route=(0, 1), reduces=0, ops=1):
    """Device route[0] computes, sends a message to route[1], which combines it; times add up."""
    builder = ProgramBuilder(n_devices)
    src, dst = route
    last = []
    for _ in range(ops):
        work = builder.compute(
            [src], label="work", op_class=op_class, number_format="bf16", flops=flops, read_bytes=read,
            write_bytes=write,
        )  # fmt: skip
        if last:
            builder.depend(work, last)
        last = work
    if message:
        number, send, received = builder.messages([src], [dst], message, label="move")
        builder.depend(send, last)
        last = received
        for _ in range(reduces):
            add = builder.reduce(
                [dst], label="add", op_class="reduce_sum", number_format="bf16", flops=1, read_bytes=2, write_bytes=1,
                message=number,
            )  # fmt: skip
            builder.depend(add, last)
            last = add
    return builder.build()


PS = 10**12
TILES = System.preset("dojo-tray")  # devices 4 and 5 are in different tiles
CASES = {
    "matrix": (GRID, a_step(6, flops=2 * 10**8, read=10**6), "matrix", -20e6 / 20.1e6),
    "vector": (GRID, a_step(6, op_class="add", flops=10**8, read=10**7), "vector", -100e6 / 100.1e6),
    "load": (GRID, a_step(6, flops=10**8, read=5 * 10**7, message=10**6), "load_bandwidth", -50e6 / (60.3e6)),
    "store": (GRID, a_step(6, write=5 * 10**6), "store_bandwidth", -5e6 / 5.1e6),
    "launch": (GRID, a_step(6, flops=10**5, ops=50), "op_launch", 0.1 / 0.11),
    "combine": (GRID, a_step(6, message=100, reduces=1, flops=1), "combine", 0.3 / (0.1 + 0.2 + 0.001 + 0.3)),
    "latency": (GRID, a_step(6, message=1000, route=(0, 5), flops=1), "link.latency", 0.6 / 0.71),
    "link": (GRID, a_step(6, message=10**6, route=(0, 5), flops=1), "link.bandwidth", -10e6 / 10.7e6),
    "tile link": (
        TILES, a_step(TILES.n_devices, message=9 * 10**6, route=(4, 5)), "tile_edge.bandwidth", -10e6 / 10.2e6,
    ),
    "die link": (
        TILES, a_step(TILES.n_devices, message=2 * 10**7, route=(0, 4)), "die_edge.bandwidth", -10e6 / 10.4e6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_bottleneck_comes_first_with_its_elasticity(name, tmp_path):
    system, program, parameter, elasticity = CASES[name]
    study = whatif(stored_step(tmp_path / "run.h5", program, system))
    first = study.rows[0]
    assert first.name == parameter
    assert first.elasticity == pytest.approx(elasticity, rel=0.05)
    assert first.elasticity == pytest.approx((first.elasticity_more + first.elasticity_less) / 2)
    assert study.next.name == parameter and study.next.point.time_ps < study.baseline.time_ps
    total = sum(study.baseline.parts_ps.values())
    assert total == study.baseline.time_ps


def test_the_bottleneck_moves_and_only_pairs_help_where_two_are_equal(tmp_path):
    """Loads and stores take the same time: faster loads alone change nothing, both together nearly halve the step."""
    program = a_step(6, read=5 * 10**6, write=5 * 10**6, flops=4 * 10**7)
    study = whatif(stored_step(tmp_path / "run.h5", program, GRID), pairs=True)
    row = {row.name: row for row in study.rows}
    assert row["load_bandwidth"].points[2.0] == study.baseline
    assert (row["load_bandwidth"].elasticity_more, row["load_bandwidth"].elasticity_less) == (
        0, pytest.approx(-0.98, abs=0.01),
    )  # fmt: skip
    strongest = study.pairs[0]
    assert set(strongest.names) == {"load_bandwidth", "store_bandwidth"}
    assert strongest.time_ps == 100_000 + 4_000_000 and strongest.interaction == pytest.approx(np.log(4.1 / 5.1))
    faster = whatif(stored_step(tmp_path / "other.h5", a_step(6, read=10**6, flops=8 * 10**6), GRID))
    assert faster.next.name == "load_bandwidth"
    assert next(iter(faster.next.elasticities.items())) == ("matrix", pytest.approx(-0.8 / 0.9, abs=0.02))
    asked = ["store_bandwidth", "load_bandwidth"]
    assert [row.name for row in whatif(faster.path, scales=[2.0], names=asked).rows] == asked[::-1]
    assert whatif(faster.path, scales=[0.5], names=asked).next is None, "nothing that was asked for helps"


def test_what_goes_wrong(tmp_path):
    """A message goes around a dead link; a device that only passes messages on may die, one that computes may not."""
    program = a_step(6, flops=10**7, message=10**4, route=(0, 2))
    study = whatif(stored_step(tmp_path / "run.h5", program, GRID))
    event = {row.name: row for row in study.events}
    base = study.baseline.time_ps
    assert base == 100_000 + 1_000_000 + 100_000 + 400_000
    assert event["dead_link"].point.time_ps == event["dead_device"].point.time_ps == base + 2 * 200_000
    assert "(0,1)" in event["dead_device"].about
    assert event["slow_link x 0.5"].point.time_ps == base + 100_000
    assert event["straggler x 0.5"].point.time_ps == base + 1_100_000
    pair = System.grid(rows=1, cols=2, bandwidth="100 GB/s", latency="200 ns", device=DEVICE)
    study = whatif(stored_step(tmp_path / "pair.h5", a_step(2, message=10), pair))
    event = {row.name: row for row in study.events}
    assert event["dead_link"].point is None and "message 0" in event["dead_link"].why
    assert event["dead_device"].point is None and "uses every device" in event["dead_device"].why


def test_a_router_stays_and_processes_change_nothing(tmp_path):
    router = Router(buffer_flits=4)
    config = '[network.router]\nbuffer_flits = 4\n'
    program = a_step(6, flops=10**6, message=10**4, route=(0, 5))
    path = stored_step(tmp_path / "run.h5", program, GRID, config, TimingOptions(router=router))
    assert open_step(path).options.router == router
    study = whatif(path, names=["link.bandwidth", "matrix"], scales=[3.0])
    assert study == whatif(path, names=["link.bandwidth", "matrix"], scales=[3.0], jobs=2)
    plain = whatif(stored_step(tmp_path / "plain.h5", program, GRID), names=["link.bandwidth"])
    assert study.baseline.time_ps > plain.baseline.time_ps
    assert list(study.rows[0].points) == [3.0] and not study.events


def test_baseline_is_the_recorded_time(tmp_path):
    from meshemu.record.reader import open_run

    path = stored_step(tmp_path / "run.h5", CASES["load"][1], GRID)
    step = open_step(path)
    assert timed(step, step.machine).time_ps == open_run(path).steps.time_ps.iloc[0]


def test_texts_say_the_same(tmp_path):
    study = whatif(stored_step(tmp_path / "run.h5", CASES["load"][1], GRID), pairs=True)
    written = save(study, tmp_path / "deep" / "out")
    assert [path.name for path in written] == ["whatif.txt", "whatif.json", "whatif.csv", "tornado.png"]
    assert written[-1].read_bytes()[:4] == b"\x89PNG"
    content = json.loads(to_json(study))
    assert content["rows"][0]["points"]["2.0"]["time_ps"] == study.rows[0].points[2.0].time_ps
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    made = [row.name for row in (*study.topology, *study.events) if row.point is not None]
    assert len(rows) == 2 * len(study.rows) + len(made)
    assert [row["parameter"] for row in rows if not row["factor"]] == made
    assert float(rows[0]["time_over_baseline"]) == study.rows[0].points[2.0].time_ps / study.baseline.time_ps
    text = render(study)
    assert "load_bandwidth" in text.split("Parameters")[1].splitlines()[2]
    assert "What may go wrong" in text and "Two at a time" in text and "elasticities then" in text


def test_what_is_refused(tmp_path):
    path = stored_step(tmp_path / "run.h5", CASES["load"][1], GRID)
    with pytest.raises(InputError, match=r"--scale -1: must be a factor above 0"):
        whatif(path, scales=[-1])
    with pytest.raises(InputError, match=r"--parameters gpu: not a parameter of this run; it has link\.bandwidth, "):
        whatif(path, names=["gpu"])
    with pytest.raises(InputError, match="matrix: named 2 times"):
        whatif(path, names=["matrix", "matrix"])
    with pytest.raises(InputError, match="--jobs 0: must be at least 1"):
        whatif(path, jobs=0)
    with pytest.raises(RecordError, match="has no ops"):
        whatif(stored_step(tmp_path / "empty.h5", ProgramBuilder(6).build(), GRID))
    with pytest.raises(RecordError, match=r"none.h5: cannot be read"):
        whatif(tmp_path / "none.h5")


def test_the_command_needs_neither_torch_nor_the_model(tmp_path):
    path = stored_step(tmp_path / "run.h5", CASES["link"][1], GRID)
    code = (
        "import sys; from meshemu.cli import parse_arguments; from meshemu.runtime.launch import detect_launch\n"
        f"a = parse_arguments(['whatif', {str(path)!r}, '--csv', '-o', {str(tmp_path)!r}])\n"
        "assert a.command(a, detect_launch({})) == 0\n"
        "assert not {'torch', 'meshemu.workload', 'optuna'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("parameter,factor,time_ps") and "tornado.png" in done.stderr


def test_bad_input_is_one_line(tmp_path, capfd):
    assert cli.main(["whatif", str(tmp_path / "none.h5")]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_pool_keeps_the_order_and_raises_what_its_work_raises():
    assert list(map_jobs(abs, [-3, 2, -1], 2)) == [3, 2, 1]
    with pytest.raises(TypeError):
        list(map_jobs(abs, ["a", "b"], 2))
