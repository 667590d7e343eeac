"""The report names what was made the bottleneck, whatever it is and wherever: a link, an op; and the fullest memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_step import stored_step

from meshemu.analysis.hot_spots import short_name
from meshemu.analysis.report import as_dict, render
from meshemu.collectives import collective_program
from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import flatten
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.record import Run, open_run
from meshemu.units import format_bytes

SPEC = DeviceSpec(
    name="test device", n_nodes=1, matrix_flops_per_s={"bf16": 10**12}, vector_flops_per_s={"fp32": 10**11},
    sram_bytes=2**20, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=1000, combine_ps=1000,
)  # fmt: skip
FEW = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def grid(rows: int, cols: int, **figures: object) -> System:
    return System.grid(rows=rows, cols=cols, bandwidth="10 GB/s", latency="20 ns", device=SPEC).override(figures)


def report_of(path: Path, program: Program, system: System, memory: MemoryUse | None = None) -> Run:
    path.unlink(missing_ok=True)
    return open_run(stored_step(path, program, system, memory=memory))


@FEW
@given(
    rows=st.integers(2, 4), cols=st.integers(2, 5), algorithm=st.sampled_from(["ring", "rows_columns"]),
    parts=st.sampled_from([10, 7, 25]), pick=st.integers(0, 10**6),
)  # fmt: skip
def test_any_slow_link_that_a_step_needs_is_named_first(
    rows: int, cols: int, algorithm: str, parts: int, pick: int, tmp_path: Path
) -> None:
    """Any link that carries a part of an all-reduce, at a tenth of its bandwidth and other fractions."""
    healthy = grid(rows, cols)
    mesh = flatten(healthy)
    program = collective_program("all_reduce", algorithm, mesh, 2**20, itemsize=4)
    busy = np.flatnonzero(report_of(tmp_path / "run.h5", program, healthy).links(-1)["bytes"].to_numpy())
    link = int(busy[pick % len(busy)])
    ends = [[int(mesh.row[end]), int(mesh.col[end])] for end in (mesh.link_src[link], mesh.link_dst[link])]
    content = as_dict(report_of(tmp_path / "run.h5", program, grid(rows, cols, slow_links=[[*ends, parts]])))
    name = short_name(mesh, link)
    assert f"Communication bounds the step, first of all one link, {name} (link), which alone" in content["verdict"]
    assert content["charged_links"][0]["link"] == link and content["advice"][0]["key"] == "slow link"
    assert f"Link {name} has" in content["advice"][0]["text"]


@FEW
@given(
    slow=st.integers(0, 4), device=st.integers(0, 5), factor=st.integers(20, 500), messages=st.integers(0, 6),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_op_that_computes_longest_is_named(
    slow: int, device: int, factor: int, messages: int, seed: int, tmp_path: Path
) -> None:
    """Five ops one after the other on six devices, one of them larger on one device; small messages beside them."""
    random, system = np.random.default_rng(seed), grid(2, 3)
    builder = ProgramBuilder(6)
    before = None
    for number in range(5):
        flops = random.integers(10**7, 2 * 10**7, 6)
        flops[device] *= factor if number == slow else 1
        ops = builder.compute(
            np.arange(6), label=f"layer {number}", op_class=f"class{number % 3}", flops=flops, read_bytes=8,
            write_bytes=8, number_format="bf16",
        )  # fmt: skip
        if before is not None:
            builder.depend(ops, before)
        before = ops
    if messages:
        src = random.integers(0, 6, messages)
        builder.messages(src, (src + 1) % 6, random.integers(1, 1000, messages), label="halo")
    content = as_dict(report_of(tmp_path / "run.h5", builder.build(), system))
    words = f"most of it class{slow % 3} ("
    assert content["verdict"].startswith("Compute bounds the step: ") and words in content["verdict"]
    assert f", first of all layer {slow} (" in content["verdict"]
    assert content["longest_op"]["label"] == f"layer {slow}"


@FEW
@given(seed=st.integers(0, 10**6), points=st.integers(1, 6))
def test_the_memory_section_is_of_the_fullest_device_when_it_holds_most(seed: int, points: int, tmp_path: Path) -> None:
    random, system = np.random.default_rng(seed), grid(2, 3)
    live = random.integers(0, 10**6, (points, len(MEMORY_CATEGORIES))) * random.integers(0, 2, len(MEMORY_CATEGORIES))
    live[random.integers(points)] += 1
    fullest, device = int(live.sum(axis=1).argmax()), int(random.integers(6))
    peak = random.integers(0, 2, (len(MEMORY_CATEGORIES), 6)) * 100
    peak[:, device] = live[fullest] + 200
    labels = ("", *(f"instruction {number} – ü" for number in range(1, points)))
    program = collective_program("all_reduce", "ring", flatten(system), 64, itemsize=4)
    run = report_of(tmp_path / "run.h5", program, system, MemoryUse(peak, live, labels))
    held = as_dict(run)["memory"]
    assert (held["point"], held["peak_bytes"]) == (labels[fullest], live[fullest].sum())
    sizes = {name: int(size) for name, size in zip(MEMORY_CATEGORIES, live[fullest], strict=True) if size}
    assert held["bytes_by_category"] == sizes
    assert list(held["bytes_by_category"].values()) == sorted(sizes.values(), reverse=True)
    place = run.mesh().place(device)
    section = next(part for part in render(run).split("\n\n") if part.startswith("Memory of the fullest device"))
    text = " ".join(section.split())
    at = f" at {labels[fullest]}" if labels[fullest] else ""
    assert f"{place}, {format_bytes(int(live[fullest].sum()))}{at}: " in text
    for name, size in sizes.items():
        assert f"{name} {format_bytes(size)}" in text


def test_without_known_memory_there_is_no_section(tmp_path: Path) -> None:
    program = collective_program("all_reduce", "ring", flatten(grid(1, 2)), 64, itemsize=4)
    run = report_of(tmp_path / "run.h5", program, grid(1, 2))
    assert as_dict(run)["memory"] is None and "Memory of" not in render(run)


@pytest.mark.parametrize("dead", [(), ((0, 1),)])
def test_a_slow_link_that_nothing_needs_is_not_named(dead: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    system = grid(3, 3, slow_links=[[[2, 1], [2, 2], 10]], dead=[list(place) for place in dead])
    builder = ProgramBuilder(9)
    builder.messages([0, 3], [3, 6], [10**5, 10**5], label="halo")
    content = as_dict(report_of(tmp_path / "run.h5", builder.build(), system))
    assert "r2c1" not in content["verdict"]
    assert [one for one in content["advice"] if one["key"] == "slow link"] == []
