"""What-if of what is made or not: links around the mesh, the Z-plane; and the capacity question of SRAM."""

import json
from itertools import pairwise

import numpy as np
import pytest
from stored_step import stored_step

from meshemu import System
from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.emulator.retiming import retime
from meshemu.hardware import DeviceSpec
from meshemu.program.builder import ProgramBuilder
from meshemu.program.interfaces import to_device, to_memory
from meshemu.record.reader import open_run
from meshemu.study.capacity import capacity_of
from meshemu.study.capacity_text import capacity_text
from meshemu.study.events import events
from meshemu.study.machine import open_step, timed
from meshemu.study.topology import topologies
from meshemu.study.whatif import whatif
from meshemu.study.whatif_report import render, to_json, tornado

DEVICE = DeviceSpec(
    name="device", n_nodes=1, matrix_flops_per_s={"bf16": 10**13}, vector_flops_per_s={"bf16": 10**12},
    sram_bytes=10**6, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=100_000, combine_ps=300_000,
)  # fmt: skip
WORK = {"op_class": "mm", "number_format": "bf16", "flops": 10**7, "read_bytes": 0, "write_bytes": 0}
WORK_PS = 100_000 + 10**6


def grid(rows, cols, **changes):
    return System.grid(rows=rows, cols=cols, bandwidth="100 GB/s", latency="200 ns", device=DEVICE).override(changes)


def a_message(n_devices, src, dst, size, labels=("work",)):
    """Device src works once for each of labels, then sends to dst."""
    builder = ProgramBuilder(n_devices)
    ops = [builder.compute([src], label=label, **WORK) for label in labels]
    for before, after in pairwise(ops):
        builder.depend(after, before)
    _, send, _ = builder.messages([src], [dst], size, label="move")
    builder.depend(send, ops[-1])
    return builder.build()


def named(rows):
    return {row.name: row for row in rows}


def baseline_ps(path):
    return open_run(path).steps.time_ps.iloc[0]


def topology_of(path):
    """Time of the step with each other topology, or why there is none."""
    step = open_step(path)
    return {
        change.name: change.why if change.machine is None else timed(step, change.machine).time_ps
        for change in topologies(step)
    }


def event_of(path, name):
    step = open_step(path)
    return named(events(step, timed(step, step.machine), [0.5]))[name]


def test_the_gain_of_a_ring_is_what_arithmetic_says(tmp_path):
    """From end to end of six devices: 5 hops, or the one around."""
    path = stored_step(tmp_path / "run.h5", a_message(6, 0, 5, 10**5), grid(1, 6))
    found = topology_of(path)
    assert list(found) == ["wrap = rows", "wrap = columns", "wrap = both", "z_plane = true"]
    assert baseline_ps(path) == WORK_PS + 5 * 200_000 + 10**6
    assert found["wrap = rows"] == WORK_PS + 200_000 + 10**6
    assert found["wrap = columns"] == "wrap = columns: a column of 1 x 6 devices has 1 device, a ring takes 3"
    assert "no figure interface.per_edge" in found["z_plane = true"]
    torus = topology_of(stored_step(tmp_path / "torus.h5", a_message(9, 0, 8, 10**5), grid(3, 3)))
    one, both = WORK_PS + 10**6 + 3 * 200_000, WORK_PS + 10**6 + 2 * 200_000
    assert [torus[f"wrap = {wrap}"] for wrap in ("rows", "columns", "both")] == [one, one, both]


def test_a_run_with_rings_is_asked_what_they_are_worth(tmp_path):
    system = grid(1, 6, wrap="rows", **{"wrap_edge.latency": "300 ns"})
    path = stored_step(tmp_path / "run.h5", a_message(6, 0, 5, 10**5), system)
    around, along = WORK_PS + 300_000 + 10**6, WORK_PS + 5 * 200_000 + 10**6
    assert baseline_ps(path) == around and topology_of(path)["wrap = none"] == along
    row = whatif(path, names=["wrap_edge.latency"], scales=[0.5]).rows[0]
    assert row.points[0.5].time_ps == around - 150_000 and row.about == "latency of links around the mesh"
    dead = event_of(path, "dead_link")
    assert timed(open_step(path), dead.machine).time_ps == along, "the busiest link is the one around; it may die"


def test_the_gain_of_the_z_plane(tmp_path):
    """Over 29 dies, 5 tile edges among them: 3.4 us on the mesh, 1.7 us over Ethernet at 50 GB/s."""
    strip = System.preset("dojo-tray").override({"tiles": [1, 6], "dies": [1, 5]})
    program = a_message(30, 0, 29, 10_000)
    path = stored_step(tmp_path / "run.h5", program, strip)
    gain = 3_400_000 + 10_000 // 2 - (1_700_000 + 10_000 * 20)
    assert topology_of(path)["z_plane = true"] == baseline_ps(path) - gain
    joined = stored_step(tmp_path / "joined.h5", program, strip.override({"z_plane": True}))
    base = baseline_ps(joined)
    assert base == baseline_ps(path) - gain and topology_of(joined)["z_plane = false"] == baseline_ps(path)
    rows = named(whatif(joined, names=["ethernet.latency", "ethernet.bandwidth"]).rows)
    points = rows["ethernet.latency"].points
    assert points[0.5].time_ps == base - 650_000
    assert points[2.0].time_ps == base + 1_300_000, "3.2 us: still sooner than the mesh"
    assert rows["ethernet.bandwidth"].points[0.5].time_ps == base + 10_000 * 20
    event = event_of(joined, "dead_link")
    assert event.machine is None and "Z-plane" in event.why


def test_a_retimed_file_agrees_and_holds_the_links(tmp_path):
    path = stored_step(tmp_path / "run.h5", a_message(6, 0, 5, 10**5), grid(1, 6))
    retime(path, ["system.wrap=rows"], tmp_path / "torus.h5")
    assert baseline_ps(tmp_path / "torus.h5") == topology_of(path)["wrap = rows"]
    links = open_run(tmp_path / "torus.h5").links(0)
    around = links[links["class"] == "wrap_edge"]
    assert len(around) == 2 and around["bytes"].tolist() == [10**5, 0]
    assert set(zip(around["src"], around["dst"], strict=True)) == {(0, 5), (5, 0)}


def a_memory(n_devices, activations):
    peak = np.zeros((len(MEMORY_CATEGORIES), n_devices), np.int64)
    peak[0] = 100_000
    peak[MEMORY_CATEGORIES.index("activations")] = activations
    return MemoryUse(peak, peak[:, :1].T, ("beginning",))


def capacity(path, factors):
    step = open_step(path)
    return capacity_of(open_run(path), step, timed(step, step.machine), factors)


def test_the_capacity_question(tmp_path):
    """Devices hold 100 kB and 0, 100 kB ... 500 kB more, of 1 MB each."""
    memory = a_memory(6, np.arange(6) * 100_000)
    path = stored_step(
        tmp_path / "run.h5", a_message(6, 0, 5, 10), grid(1, 6), '[memory]\nwhen_full = "spill"\n', memory=memory
    )
    found = capacity(path, [2.0, 0.6, 0.5, 0.25])
    assert (found.size_bytes, found.peak_bytes, found.place) == (10**6, 600_000, "device (0,5)")
    assert [(size.size_bytes, size.devices_over) for size in found.sizes] == [
        (2 * 10**6, 0), (600_000, 0), (500_000, 1), (250_000, 4),
    ]  # fmt: skip
    assert found.least_factor == 0.6 and found.when_full == "spill" and found.made_again is None
    assert found.holds == dict.fromkeys(MEMORY_CATEGORIES, 0) | {"weights": 100_000, "activations": 500_000}
    text = capacity_text(found, 10**6)
    assert "Fits from x 0.6 on. memory.when_full = spill" in text and "only a run with that size tells" in text
    assert "1  does not fit" in text and "weights 100 kB + activations 500 kB" in text


def test_work_done_again_for_want_of_sram(tmp_path):
    """Of three ops in a row one makes something again: 1.1 us of the critical path."""
    labels = ("block_again:gelu", "block:gelu", "block:gelu_1_again")
    remark = "memory: 1 operators are carried out again in the backward pass"
    path = stored_step(
        tmp_path / "run.h5", a_message(6, 0, 5, 10, labels), grid(1, 6), memory=a_memory(6, 0), remarks=[remark]
    )
    found = capacity(path, [2.0])
    assert (found.made_again.ops, found.made_again.compute_ps, found.made_again.path_ps) == (1, WORK_PS, WORK_PS)
    assert found.made_again.remark == remark and found.when_full == "refuse"
    text = capacity_text(found, baseline_ps(path))
    assert "1.1 us (25.6 %) of the critical path, which more SRAM would save at most" in text and remark in text


def test_tensors_that_went_to_interface_processors(tmp_path):
    """8 kB out and back over a link of 800 GB/s and 200 ns: 420 ns between two ops."""
    strip = System.preset("dojo-tray").override({"tiles": [1, 2], "dies": [1, 5]})
    builder = ProgramBuilder(10)
    before, after = (builder.compute([0], label="work", **WORK) for _ in range(2))
    there = to_memory(builder, [0], [0], [8000], "spill", after=[before])
    builder.depend(after, to_device(builder, [0], [0], [8000], "fetch", after=[there]))
    path = stored_step(tmp_path / "run.h5", builder.build(), strip, memory=a_memory(10, 0))
    found = capacity(path, [2.0])
    assert found.spill_ps == 2 * (200_000 + 10_000)
    assert "Links of interface processors take 420 ns" in capacity_text(found, baseline_ps(path))


def test_nothing_is_said_where_nothing_is_known(tmp_path):
    assert capacity(stored_step(tmp_path / "run.h5", a_message(6, 0, 5, 10), grid(1, 6)), [2.0]) is None
    few = whatif(tmp_path / "run.h5", names=["matrix"])
    assert few.topology == few.events == () and few.capacity is None


def test_switches_have_no_other_topology(tmp_path):
    gpus = System.preset("a100-8")
    found = topology_of(stored_step(tmp_path / "run.h5", a_message(8, 0, 5, 10), gpus))
    assert len(found) == 4 and all("joined by switches" in why for why in found.values())


def test_texts_and_picture(tmp_path):
    path = stored_step(tmp_path / "run.h5", a_message(6, 0, 5, 10**5), grid(1, 6), memory=a_memory(6, 0))
    study = whatif(path)
    content = json.loads(to_json(study))
    assert content["topology"][0]["name"] == "wrap = rows" and content["capacity"]["peak_bytes"] == 100_000
    labels = [label.get_text() for label in tornado(study).axes[0].get_yticklabels()]
    made = [row.name for row in (*study.topology, *study.events) if row.point is not None]
    assert labels == [*reversed(made), *(row.name for row in reversed(study.rows))]
    shown = render(study)
    assert "Topology, one change at a time" in shown and "collectives keep the schedules" in shown
    assert "Size of SRAM" in shown and "Fits from x 0.1 on" in shown


@pytest.mark.parametrize("wrap", ["rows", "both"])
def test_pictures_of_links_around_the_mesh(tmp_path, wrap):
    from meshemu.analysis import heatmap
    from meshemu.analysis.page.wafer import wafer

    run = open_run(stored_step(tmp_path / "run.h5", a_message(9, 0, 8, 10**5), grid(3, 3, wrap=wrap)))
    figure = heatmap.picture(run)
    axes = figure.axes[0]
    (left, right), (lower, upper) = axes.get_xlim(), axes.get_ylim()
    mesh = run.mesh()
    outlines = heatmap.arrows(mesh, np.flatnonzero(mesh.on_grid), 0.175)
    assert left < outlines[..., 0].min() and outlines[..., 0].max() < right
    assert upper < outlines[..., 1].min() and outlines[..., 1].max() < lower
    assert np.ptp(outlines, axis=1).max() < 1, "no arrow spans the mesh"
    content = wafer(run)
    assert content["room"]["left"] > 0 and (content["room"]["lower"] > 0) == (wrap == "both")
