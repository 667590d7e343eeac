"""Batches that come in over PCIe and interface processors: closed forms, contention, any number of ranks."""

import dataclasses
import re
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from meshemu.analysis.critical_path import PARTS, critical_path
from meshemu.analysis.ingest import IngestWait, remedy
from meshemu.analysis.path_strip import part_names, path_strip
from meshemu.analysis.perfetto import trace
from meshemu.analysis.report import render
from meshemu.analysis.summary import as_dict
from meshemu.analysis.verdict import bound_by
from meshemu.config import parse
from meshemu.cost import durations_ps
from meshemu.cost.interfaces import InterfaceRates, interfaces_of
from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.emulator import auto_plan
from meshemu.emulator.batches import loss_of
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.retiming import retime
from meshemu.emulator.timed_step import TimedStep, TimingOptions, time_step
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import flatten
from meshemu.mesh.interfaces import EDGES, checked_edges, interface_devices, interface_numbers
from meshemu.network import Timing, time_program
from meshemu.network.oracle import reference_program
from meshemu.program import Program, ProgramBuilder, from_host, ingest_ops, to_device, to_memory, verify
from meshemu.program.interfaces import HOST_TO_MEMORY, LINK_LATENCY, MEMORY_TO_DEVICE, interface_ops
from meshemu.record.reader import open_run
from meshemu.record.schema import COLUMNS
from meshemu.record.step_record import TrainingRecord
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.units import format_time
from meshemu.workload.ingest import Piece, add_ingest, needed_bytes, pieces_of_batch

TILE = System.preset("dojo-tile")
PCIE, LINK, LATENCY_PS = 32_000_000_000, 800_000_000_000, 200_000  # B/s; the link is not faster than HBM
HOP_PS, MESH = 100_000, 2_000_000_000_000


def ps(size_bytes: int, bytes_per_s: int) -> int:
    return -(-size_bytes * 10**12 // bytes_per_s)


def prepared(
    plan: Any, x: Any, y: Any, edges: Any, system: System = TILE, comm: Any = None, model: Any = None, **options: Any
) -> Any:
    torch.manual_seed(0)
    return prepare(
        model or nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4)), (x, y),
        lambda call, item: loss_of(call, item, F.cross_entropy), system=system, plan=plan,
        options=TimingOptions(**options), comm=comm or SingleComm(), ingest_edges=edges,
    )  # fmt: skip


def samples(n: int, pixels: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n, 3, pixels, pixels), torch.zeros(n, dtype=torch.long)


def recorded(step: TimedStep, path: Path) -> Path:
    recorder = Recorder.open(path, step, SingleComm(), Layout(config_text="", n_steps=1), overwrite=False)
    recorder.step(0, TrainingRecord(), wall_s=0.0)
    recorder.finish({})
    return path


def arrival_ps(step: PreparedStep) -> int:
    timed = step.timed
    return int(timed.timing.ops.end_ps[ingest_ops(timed.program)].max())


def timed(program: Program, system: System, comm: Any = None, **options: Any) -> Timing:
    durations = durations_ps(program, system.device, interfaces=interfaces_of(system))
    return time_program(program, flatten(system), durations, comm=comm, **options)


def bring(*pieces: tuple[int, int, int, tuple[int, ...]], n_devices: int = 25) -> Program:
    """A Program of ingest alone: (interface processor, device beside it, bytes, devices that need them) each."""
    builder = ProgramBuilder(n_devices)
    beside = np.zeros(max(piece[0] for piece in pieces) + 1, np.int64)
    for interface, edge, _, _ in pieces:
        beside[interface] = edge
    named = [Piece(interface, size, devices) for interface, _, size, devices in pieces]
    add_ingest(builder, named, beside, np.arange(len(beside)))
    program = builder.build()
    verify(program)
    return program


def test_a_lone_piece() -> None:
    """PCIe, then the interface processor's link; then, for another device, the links of the mesh."""
    size = 1_000_003
    program = bring((0, 10, size, (10, 12)))
    timing = timed(program, TILE, packet_bytes=size)
    there = ps(size, PCIE) + ps(size, LINK) + LATENCY_PS
    flights = np.flatnonzero(program.op_class == program.op_classes.index(LINK_LATENCY))
    assert timing.ops.end_ps[flights].tolist() == [there, there + ps(size, LINK)]  # one copy after the other
    assert timing.ops.start_ps[program.send_op].tolist() == [there + ps(size, LINK)]
    assert timing.end_ps == there + ps(size, LINK) + ps(size, MESH) + 2 * HOP_PS
    assert timing.ops.start_ps[0] == 0 and timing.ops.end_ps[0] == ps(size, PCIE)


def test_queues_of_interface_processors() -> None:
    """Pieces of one follow one another on PCIe; another one has a PCIe of its own; a slow link makes a queue."""
    program = bring((0, 0, 4000, (12,)), (0, 0, 8000, (12,)), (1, 5, 4000, (12,)))

    def sent(**figures: str) -> list[int]:
        system = TILE.override({f"interface.{name}": value for name, value in figures.items()})
        return timed(program, system).ops.start_ps[program.send_op].tolist()

    assert sent() == [
        ps(4000, PCIE) + ps(4000, LINK) + LATENCY_PS,
        ps(12000, PCIE) + ps(8000, LINK) + LATENCY_PS,
        ps(4000, PCIE) + ps(4000, LINK) + LATENCY_PS,
    ]
    assert sent(link_bandwidth="1 GB/s")[1] == ps(4000, PCIE) + 12_000_000 + LATENCY_PS
    assert sent(host_bandwidth="8 GB/s")[0] == 500_000 + ps(4000, LINK) + LATENCY_PS
    assert sent(pcie_bandwidth="4 GB/s")[0] == 1_000_000 + ps(4000, LINK) + LATENCY_PS
    assert sent(memory_bandwidth="2 GB/s")[0] == 2 * 2_000_000 + LATENCY_PS  # in and out
    assert sent(link_latency="1 us")[0] == ps(4000, PCIE) + ps(4000, LINK) + 1_000_000


PIECES = st.tuples(
    st.integers(0, 3), st.integers(1, 10**7), st.lists(st.integers(0, 24), min_size=1, max_size=4, unique=True)
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(PIECES, min_size=1, max_size=8), st.integers(1, 10**12), st.integers(1, 10**12))
def test_the_closed_form_of_a_queue(pieces: Any, host: int, link: int) -> None:
    """As docs/ingest.md has it: m_k over PCIe, d_j over the link, for any pieces; the reference says the same."""
    system = TILE.override({"interface.host_bandwidth": host, "interface.pcie_bandwidth": 10**12,
                            "interface.memory_bandwidth": 10**12, "interface.link_bandwidth": link})  # fmt: skip
    beside = (0, 4, 20, 10)
    program = bring(*((n, beside[n], size, tuple(sorted(devices))) for n, size, devices in pieces))
    wanted, memory, line = [], dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    for n, size, devices in pieces:
        memory[n] += ps(size, host)
        for _ in devices:
            line[n] = max(line[n], memory[n]) + ps(size, link)
            wanted.append(line[n] + LATENCY_PS)
    durations = durations_ps(program, None, interfaces=interfaces_of(system))
    times = time_program(program, flatten(system), durations, packet_bytes=10**7).ops
    flights = program.op_class == program.op_classes.index(LINK_LATENCY)
    assert times.end_ps[flights].tolist() == wanted
    slow = reference_program(program, flatten(system), durations, packet_bytes=10**7).ops
    assert np.array_equal(slow.start_ps, times.start_ps) and np.array_equal(slow.end_ps, times.end_ps)


def test_what_goes_back_to_memory_queues_on_its_own_way() -> None:
    """Spilled bytes and batches share no unit: the link has one each way; what is stored waits for its maker."""
    builder = ProgramBuilder(25)
    work = {"op_class": "relu", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
    made = builder.compute([3], label="x", **work)
    away = to_memory(builder, [3, 3], 0, 8000, "spill", [made])
    back = to_device(builder, [3], 0, 8000, "fetch", [away[:1]])
    there = from_host(builder, [3], 0, 32_000, "batch")
    to_device(builder, [3], 0, 32_000, "batch", [there])
    program = builder.build()
    verify(program)
    timing = timed(program, TILE)
    ready = int(timing.ops.end_ps[made[0]])
    assert timing.ops.end_ps[away].tolist() == [ready + k * ps(8000, LINK) + LATENCY_PS for k in (1, 2)]
    assert timing.ops.end_ps[back].tolist() == [ready + 2 * ps(8000, LINK) + 2 * LATENCY_PS]
    assert timing.ops.end_ps[there].tolist() == [ps(32_000, PCIE)]
    path = critical_path(program, flatten(TILE), timing.ops.start_ps, timing.ops.end_ps)
    assert path.ingest_ps == path.total_ps == ps(32_000, PCIE) + ps(32_000, LINK) + LATENCY_PS
    own = dataclasses.replace(timing.ops, end_ps=np.where(ingest_ops(program), 0, timing.ops.end_ps))
    path = critical_path(program, flatten(TILE), own.start_ps, own.end_ps)
    assert (path.spill_ps, path.compute_ps) == (2 * ps(8000, LINK) + 2 * LATENCY_PS, ready)
    assert path.interface_ps_by_unit == {
        "latency of the link of interface processor 0": 2 * LATENCY_PS,
        "link of interface processor 0 from the mesh": ps(8000, LINK),
        "link of interface processor 0 to the mesh": ps(8000, LINK),
    }


def test_a_system_without_interface_processors_cannot_time_it() -> None:
    program = bring((3, 10, 100, (10,)))
    for system in (System.preset("a100-8"), System.preset("dojo-tile", devices="node")):
        assert interfaces_of(system) is None
    with pytest.raises(InputError, match=r"op 0 \(interface .*batch of the next step.* needs interface processor 3"):
        durations_ps(program, TILE.device)


def test_the_step_lasts_as_long_as_the_longer_of_both() -> None:
    x, y = samples(10, 16)
    batch_bytes = 10 * (3 * 16 * 16 * 4 + 8)
    alone = prepared({"data": 5}, x, y, ())
    quick, slow = (
        prepared({"data": 5}, x, y, ("west",), TILE.override({"interface.pcie_bandwidth": rate}))
        for rate in ("32 GB/s", "0.5 GB/s")
    )
    assert not ingest_ops(alone.timed.program).any()
    assert quick.timed.summary.ingest_ps == 0
    assert quick.timed.summary.time_ps >= alone.timed.summary.time_ps  # its messages may be in the way
    summary = slow.timed.summary
    assert summary.time_ps == arrival_ps(slow)
    assert summary.ingest_ps == summary.time_ps - slow.timed.timing.ops.end_ps[~ingest_ops(slow.timed.program)].max()
    assert summary.time_ps == summary.compute_ps + summary.ingest_ps + summary.exposed_comm_ps
    assert summary.time_ps > ps(batch_bytes // 5, 500_000_000)  # five interface processors at a tile's edge
    (note,) = [a.sentence for a in slow.timed.assumptions if a.key == "ingest"]
    assert "the step waits" in note
    verify(slow.timed.program)


def test_one_device_beside_its_interface_processor() -> None:
    """All pieces come in over one PCIe: the last is there when PCIe has brought all, and the link the last of them."""
    x, y = samples(1)
    step = prepared({"data": 1}, x, y, ("north",), TILE.override({"interface.per_edge": 1}))
    size = 3 * 64 * 64 * 4 + 8
    pieces = [size * (i + 1) // 4 - size * i // 4 for i in range(4)]
    over_mesh = 2 * HOP_PS + ps(pieces[-1], MESH)  # beside the middle of the edge: two hops to device 0
    wanted = sum(ps(piece, PCIE) for piece in pieces) + ps(pieces[-1], LINK) + LATENCY_PS + over_mesh
    assert arrival_ps(step) == wanted
    own = step.timed.timing.ops.end_ps[~ingest_ops(step.timed.program)].max()
    assert step.timed.summary.time_ps == max(wanted, own)


@pytest.mark.parametrize(
    ("plan", "total"),
    [
        ({"data": 25}, 50 * (3 * 64 * 64 * 4 + 8)),
        ({"spatial": [5, 5]}, 50 * (3 * 64 * 64 * 4 + 8)),
        ({"tensor": 25}, 50 * (3 * 64 * 64 * 4 + 8)),
    ],
)
def test_every_byte_is_brought_once_and_to_all_who_need_it(plan: Any, total: int) -> None:
    x, y = samples(50)
    step = prepared(plan, x, y, ("west", "east"))
    needed = needed_bytes(step.spmd, step.plan)
    assert sum(needed.values()) == total  # PCIe carries each block once, whoever holds copies of it
    mesh = flatten(TILE)
    interfaces = interface_devices(mesh, ("west", "east"), 5)
    pieces = pieces_of_batch(needed, interfaces, mesh)
    brought: dict[tuple[int, ...], int] = {}
    load = np.zeros(10, np.int64)
    for piece in pieces:
        brought[piece.devices] = brought.get(piece.devices, 0) + piece.size_bytes
        load[piece.interface] += piece.size_bytes
    assert brought == needed
    assert load.max() - load.min() <= max(piece.size_bytes for piece in pieces)
    program = step.timed.program
    sent = ingest_ops(program)[program.send_op]
    copies = sum(p.size_bytes * (len(p.devices) - (interfaces[p.interface] in p.devices)) for p in pieces)
    assert program.size_bytes[sent].sum() == copies
    hosts = interface_ops(program, HOST_TO_MEMORY)
    assert program.write_bytes[hosts].tolist() == [piece.size_bytes for piece in pieces]
    assert program.interface[hosts].tolist() == interface_numbers(mesh, ("west", "east"), 5)[
        [piece.interface for piece in pieces]
    ].tolist()
    crossing = interface_ops(program, MEMORY_TO_DEVICE)
    assert program.read_bytes[crossing].sum() == sum(p.size_bytes * len(p.devices) for p in pieces)


def test_pieces_go_to_the_least_loaded_and_of_these_to_the_nearest() -> None:
    corners = np.array([0, 4, 20, 24])
    pieces = pieces_of_batch({(0,): 40, (23,): 40}, corners, flatten(TILE))
    assert [piece.interface for piece in pieces] == [0, 1, 2, 3, 0, 1, 2, 3, 3, 2, 1, 0, 3, 2, 1, 0]
    assert [piece.size_bytes for piece in pieces] == [5] * 16


def test_stages_of_a_pipeline_need_what_they_read() -> None:
    x, y = samples(4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 4))
    step = prepared({"pipeline": 2, "micro_batches": 2}, x, y, ("west",), model=model)
    first, last = step.plan.devices
    assert needed_bytes(step.spmd, step.plan) == {(first,): 4 * 48 * 4, (last,): 4 * 8}


def test_any_number_of_ranks_gives_the_same() -> None:
    """Ingest of a step; and, made by hand, what comes in, goes out and is fetched again, with messages between."""
    x, y = samples(20, 8)
    one = prepared({"data": [2, 5]}, x, y, ("west", "east")).timed
    builder = ProgramBuilder(25)
    beside = [0, 4, 20, 24, 2, 10]
    for n, edge in enumerate(beside):
        there = from_host(builder, [edge] * 3, n, [1000 + n, 70_000, 3 * n + 1], "batch")
        arrived = to_device(builder, [edge] * 3, n, [1000 + n, 70_000, 3 * n + 1], "batch", [there])
        _, send, home = builder.messages([edge] * 3, [12, 7, beside[n - 1]], 50_000 + n, label="on")
        builder.depend(send, arrived)
        away = to_memory(builder, [beside[n - 1]], (n - 1) % 6, 9000, "spill", [home[2:]])
        to_device(builder, [beside[n - 1]], (n - 1) % 6, 9000, "fetch", [away])
    program = builder.build()
    verify(program)
    by_hand = timed(program, TILE)

    def again(comm: Any) -> tuple[Timing, Timing]:
        step = prepared({"data": [2, 5]}, x, y, ("west", "east"), comm=comm)
        return step.timed.timing, timed(program, TILE, comm)

    for n in (2, 3, 4):
        for times in run_ranks(n, again):
            for timing, wanted in zip(times, (one.timing, by_hand), strict=True):
                assert np.array_equal(timing.ops.start_ps, wanted.ops.start_ps)
                assert np.array_equal(timing.ops.end_ps, wanted.ops.end_ps)
                assert np.array_equal(timing.links.busy_ps, wanted.links.busy_ps)


def test_a_plan_for_many_devices_is_not_chosen_as_if_its_batch_were_there(monkeypatch: Any) -> None:
    """Where a step is too large to be timed for the choice, its busiest PCIe still counts."""
    monkeypatch.setattr(auto_plan, "MOST_MESSAGES", 0)
    program = bring((0, 0, 10**6, (0, 12)), (0, 0, 10**6, (12,)), (1, 5, 10**6, (12,)))
    step: Any = SimpleNamespace(program=program)
    time_ps = auto_plan._time_ps(step, flatten(TILE), TILE, TimingOptions(), SingleComm())
    assert time_ps == 2 * ps(10**6, PCIE)


def test_routers_carry_it_too() -> None:
    x, y = samples(10, 8)
    step = prepared({"data": 5}, x, y, ("east",), router=Router(), packet_bytes=256)
    at_edge = interface_ops(step.timed.program, LINK_LATENCY)
    assert arrival_ps(step) > step.timed.timing.ops.end_ps[at_edge].max()


def test_recorded_and_timed_again_with_other_figures(tmp_path: Path) -> None:
    x, y = samples(10, 16)
    step = prepared({"data": 5}, x, y, ("west",))
    files = [tmp_path / name for name in ("a.h5", "same.h5", "slow.h5", "slower.h5")]
    recorded(step.timed, files[0])
    retime(files[0], [], files[1])
    retime(files[0], ["system.interface.pcie_bandwidth=500 MB/s"], files[2])
    retime(files[0], ["system.interface.pcie_bandwidth=250 MB/s"], files[3])
    first, same, slow, slower = (open_run(file).steps.iloc[0] for file in files)
    assert first["ingest_ps"] == same["ingest_ps"] == step.timed.summary.ingest_ps == 0
    of_each = 10 * (3 * 16 * 16 * 4 + 8) // 5
    assert slower["time_ps"] - slow["time_ps"] == pytest.approx(ps(of_each, 500_000_000), rel=0.01)
    assert slow["time_ps"] - slow["ingest_ps"] == first["time_ps"]
    assert "Ingest" not in as_dict(open_run(files[0]))["verdict"]


def test_the_report_names_the_unit_and_the_rate_that_would_hide_it(tmp_path: Path) -> None:
    """With the advised rate the step is as long as its own work; with a little less it still waits."""
    x, y = samples(100, 32)
    rates = {"interface.pcie_bandwidth": "4 GB/s", "interface.host_bandwidth": "100 GB/s"}
    step = prepared({"data": 5}, x, y, ("west",), TILE.override(rates))
    stored = recorded(step.timed, tmp_path / "run.h5")
    report = as_dict(open_run(stored))
    path, summary = report["critical_path"], step.timed.summary
    piece = 20 * (3 * 32 * 32 * 4 + 8) // 4
    assert path["ingest_ps"] == 4 * ps(piece, 4 * 10**9) + ps(piece, LINK) + LATENCY_PS and path["waiting_ps"] == 0
    unit, pcie_ps = next(iter(path["interface_ps_by_unit"].items()))
    assert pcie_ps == 4 * ps(piece, 4 * 10**9) and unit.startswith("PCIe of interface processor ")
    assert sum(path[f"{part}_ps"] for part in PARTS) == path["total_ps"] == summary.time_ps
    bound = f"Ingest bounds the step: {unit}, {format_time(pcie_ps)} of {format_time(summary.time_ps)}. "
    assert report["verdict"].startswith(bound) and bound_by(report) == f"ingest ({unit})"
    assert unit in render(open_run(stored))
    assert next(part["kind"] for part in report["parts"]) == "ingest"
    strip = path_strip(open_run(stored))
    assert {part: strip.total_ps(part) for part in PARTS} == {part: path[f"{part}_ps"] for part in PARTS}
    assert list(part_names(open_run(stored))) == [part for part in PARTS if part != "spill"]
    slices = [event for event in trace(open_run(stored))["traceEvents"] if event.get("cat") == "INTERFACE"]
    assert sum(event["args"]["class"] == HOST_TO_MEMORY for event in slices) == 20
    assert {event["args"]["interface"] for event in slices} == set(range(15, 20))  # after those at the other edges
    (advice,) = (one for one in report["advice"] if one["key"] == "ingest")
    assert advice["saving_ps"] == summary.ingest_ps
    words = r": (\S+) GB/s in place of interface.pcie_bandwidth = 4 GB/s would hide it, as would (\d+) interface "
    found = re.search(words + r"processors in place of 5, or (\S+) % of the bytes", advice["text"])
    assert found is not None
    rate, number, share = map(float, found.groups())
    times = pcie_ps / (pcie_ps - summary.ingest_ps)
    assert (rate, share) == (pytest.approx(4 * times, rel=0.01), pytest.approx(100 / times, rel=0.01))
    assert number == ceil(5 * times)
    for factor, waits in ((1.02, False), (0.95, True)):
        retime(stored, [f"system.interface.pcie_bandwidth={rate * factor} GB/s"], tmp_path / f"{waits}.h5")
        assert bool(open_run(tmp_path / f"{waits}.h5").steps.ingest_ps.iloc[0]) == waits


def test_the_remedy_is_arithmetic() -> None:
    """60 us of PCIe on the path and 20 us too many: 1.5 times the rate, and only figures below that are in the way."""
    rates = InterfaceRates(
        host_bytes_per_s=5 * 10**9, pcie_bytes_per_s=4 * 10**9, memory_bytes_per_s=7 * 10**9, link_bytes_per_s=10**9,
        link_latency_ps=0,
    )  # fmt: skip
    wait = IngestWait(20_000_000, HOST_TO_MEMORY, 60_000_000, 5, rates)
    assert remedy(wait) == (
        "6 GB/s in place of interface.host_bandwidth = 5 GB/s and interface.pcie_bandwidth = 4 GB/s would hide it, as "
        "would 8 interface processors in place of 5, or 66.7 % of the bytes"
    )
    link = dataclasses.replace(wait, op_class=MEMORY_TO_DEVICE, waits_ps=59_000_000)
    assert remedy(link).startswith("60 GB/s in place of interface.link_bandwidth = 1 GB/s and interface.memory_")
    for hopeless in ({"waits_ps": 60_000_000}, {"rates": None}, {"op_class": LINK_LATENCY}, {"op_class": ""}):
        assert remedy(dataclasses.replace(wait, **hopeless)).startswith("more interface processors, or smaller samples")


def test_what_cannot_be_hidden_by_a_rate_is_said_otherwise(tmp_path: Path) -> None:
    """Where the link's latency takes longer than the step, no bandwidth helps."""
    x, y = samples(5, 4)
    step = prepared({"data": 5}, x, y, ("west",), TILE.override({"interface.link_latency": "1 ms"}))
    report = as_dict(open_run(recorded(step.timed, tmp_path / "run.h5")))
    (advice,) = (one["text"] for one in report["advice"] if one["key"] == "ingest")
    assert advice.endswith("for input data: more interface processors, or smaller samples, would save up to that.")
    assert report["verdict"].startswith("Ingest bounds the step: latency of the link of interface processor ")


def test_files_of_an_earlier_layout(tmp_path: Path) -> None:
    """They lack the column, and can be read; ingest that only labels told of is not timed as if there were none."""
    for name in ("halo", "ingest interface 0 piece 0 (9 B)"):
        builder = ProgramBuilder(25)
        builder.messages([10], [12], 9, label=name)
        timed_step = time_step(builder.build(), TILE, np.zeros(25, np.int64), TimingOptions(), SingleComm())
        path = recorded(timed_step, tmp_path / name.split()[0])
        with h5py.File(path, "r+") as file:
            for column in COLUMNS:
                if column.since > 2:
                    del file[column.path]
            del file.attrs["head_crc32"]
            file.attrs["schema_version"] = np.int32(2)
        assert (open_run(path).program().interface == -1).all()
    retime(tmp_path / "halo", [], tmp_path / "again")
    assert open_run(tmp_path / "again").steps.time_ps.iloc[0] == open_run(tmp_path / "halo").steps.time_ps.iloc[0] > 0
    with pytest.raises(InputError, match="schema_version is 2, and only from 4 on can the ingest of a"):
        retime(tmp_path / "ingest", [], tmp_path / "never")


@pytest.mark.parametrize(
    "plan", [{"data": 4}, {"spatial": [1, 5]}, {"data": 2, "tensor": 2}], ids=repr
)
def test_memory_has_room_for_the_next_batch(plan: Any) -> None:
    """What devices hold of the batch in use, they hold of the next one too, from its start to its end."""
    x, y = samples(6, 8)
    alone, bringing = (prepared(plan, x, y, edges) for edges in ((), ("west",)))
    wanted = np.zeros(25, np.int64)
    for group, size_bytes in needed_bytes(bringing.spmd, bringing.plan).items():
        wanted[list(group)] += size_bytes
    batch = MEMORY_CATEGORIES.index("batch")
    before, after = alone.timed.memory, bringing.timed.memory
    assert before is not None and after is not None and wanted.any()
    assert np.array_equal(after.total_bytes, before.total_bytes + wanted)
    assert np.array_equal(after.peak_bytes[batch], before.peak_bytes[batch] + wanted)
    assert np.array_equal(after.live_bytes[0, batch], 2 * before.live_bytes[0, batch])
    assert (after.live_bytes[:, batch] >= wanted[after.busiest]).all()


def test_what_no_operator_reads_stays_with_the_host() -> None:
    """A loss without targets: they are neither brought nor given room."""
    x, y = samples(4, 4)
    steps = [
        prepare(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), (x, y), lambda call, item: call(item[0]).square().mean(),
            system=TILE, plan={"data": 4}, options=TimingOptions(), comm=SingleComm(), ingest_edges=edges,
        )
        for edges in ((), ("west",))
    ]  # fmt: skip
    plain, bringing = (step.timed.memory for step in steps)
    assert plain is not None and bringing is not None
    assert needed_bytes(steps[1].spmd, steps[1].plan) == {(device,): 48 * 4 for device in steps[1].plan.devices}
    assert bringing.most_bytes - plain.most_bytes == 48 * 4


def test_where_interface_processors_are() -> None:
    mesh = flatten(TILE)
    assert interface_devices(mesh, ("west", "south"), 5).tolist() == [0, 5, 10, 15, 20, 20, 21, 22, 23, 24]
    assert interface_devices(mesh, ("east",), 1).tolist() == [14]
    assert interface_devices(mesh, ("north",), 2).tolist() == [1, 3]
    tray = System.preset("dojo-tray")
    assert len(interface_devices(flatten(tray), ("west", "east"), 5)) == 20  # published: 20 to a tray
    dead = flatten(TILE.override({"dead": [[1, 0]]}))
    assert interface_devices(dead, ("west",), 5).tolist() == [0, 10, 15, 20]
    assert interface_numbers(dead, ("west", "east"), 5).tolist() == [15, 17, 18, 19, 5, 6, 7, 8, 9]
    assert interface_numbers(mesh, ("south", "north"), 2).tolist() == [4, 5, 0, 1]
    assert len(set(interface_numbers(mesh, EDGES, 5).tolist())) == 20
    tiles = flatten(System.preset("dojo-tray", devices="tile"))
    assert interface_devices(tiles, ("west",), 5).tolist() == [0] * 5 + [3] * 5
    with pytest.raises(InputError, match="no live device is beside"):
        interface_devices(flatten(TILE.override({"dead": [[2, 4]]})), ("east",), 1)


def test_refusals() -> None:
    x, y = samples(2, 4)
    for system, words in (
        (System.preset("a100-8"), "no interface processors are known of a100-8"),
        (System.preset("dojo-tile", devices="node"), "set system.devices = 'die'"),
    ):
        with pytest.raises(InputError, match=words):
            prepared({"data": 2}, x, y, ("west",), system)
    for edges, words in ((("wes",), "'wes' is not one of north"), (("east", "east"), "named twice")):
        with pytest.raises(InputError, match=words):
            checked_edges(edges)
    text = (
        'plan = "data"\n[model]\nname = "gpt"\n[data]\nname = "tokens"\nbatch_size = 2\n[training]\nsteps = 1\n'
        'optimizer = { name = "sgd", lr = 0.1 }\n[ingest]\nenabled = true\nedges = '
    )
    assert parse(text + '["north"]', origin="f", directory=Path()).ingest.edges == ("north",)
    for wrong in ('["up"]', '["east", "east"]', "[]"):
        with pytest.raises(InputError, match="ingest"):
            parse(text + wrong, origin="f", directory=Path())
