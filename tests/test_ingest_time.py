"""Batches that come in over PCIe and interface processors: closed forms, contention, any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meshemu.analysis.summary import as_dict
from meshemu.analysis.verdict import verdict
from meshemu.config import parse
from meshemu.cost.ingest import ingest_label, ingest_ops, release_ps
from meshemu.emulator.batches import loss_of
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.retiming import retime
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import flatten
from meshemu.mesh.interfaces import checked_edges, interface_devices
from meshemu.network import time_program
from meshemu.program.builder import ProgramBuilder
from meshemu.program.verify import verify
from meshemu.record.reader import open_run
from meshemu.record.step_record import TrainingRecord
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.ingest import needed_bytes, pieces_of_batch

TILE = System.preset("dojo-tile")
PCIE, LINK, LATENCY_PS = 32_000_000_000, 800_000_000_000, 200_000  # B/s; the link is not faster than HBM
HOP_PS, MESH = 100_000, 2_000_000_000_000


def ps(size_bytes: int, bytes_per_s: int) -> int:
    return -(-size_bytes * 10**12 // bytes_per_s)


def prepared(plan: Any, x: Any, y: Any, edges: Any, system: System = TILE, comm: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    return prepare(
        model, (x, y), lambda call, item: loss_of(call, item, F.cross_entropy), system=system, plan=plan,
        options=TimingOptions(**options), comm=comm or SingleComm(), ingest_edges=edges,
    )  # fmt: skip


def samples(n: int, pixels: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n, 3, pixels, pixels), torch.zeros(n, dtype=torch.long)


def arrival_ps(step: PreparedStep) -> int:
    timed = step.timed
    return int(timed.timing.ops.end_ps[ingest_ops(timed.program)].max())


def test_a_lone_piece() -> None:
    """PCIe, then the interface processor's link; then, for another device, the links of the mesh."""
    system = TILE.override({"interface.per_edge": 1})
    builder = ProgramBuilder(25)
    size = 1_000_003
    nothing = {"flops": 0, "read_bytes": 0, "write_bytes": 0}
    builder.compute([10], label=ingest_label(0, 0, size), op_class="empty", number_format="fp32", **nothing)
    _, send, receive = builder.messages([10], [12], size, label=ingest_label(0, 0, size))
    program = builder.build()
    verify(program)
    release = release_ps(program, system)
    there = ps(size, PCIE) + ps(size, LINK) + LATENCY_PS
    assert release.tolist() == [there, there + ps(size, LINK), 0]  # one copy after the other over the link
    mesh = flatten(system)
    timing = time_program(program, mesh, np.zeros(3, np.int64), packet_bytes=size, release_ps=release)
    assert timing.ops.start_ps[0] == timing.ops.end_ps[0] == there
    assert timing.ops.start_ps[send] == release[1]
    assert timing.ops.end_ps[receive] == release[1] + ps(size, MESH) + 2 * HOP_PS


def test_queues_of_interface_processors() -> None:
    """Pieces of one follow one another on PCIe; another one has a PCIe of its own; a slow link makes a queue."""
    builder = ProgramBuilder(25)
    for interface, piece, size in ((0, 0, 4000), (0, 1, 8000), (1, 0, 4000)):
        builder.messages([5 * interface], [12], size, label=ingest_label(interface, piece, size))
    program = builder.build()
    sends = program.send_op
    quick = release_ps(program, TILE)[sends]
    assert quick.tolist() == [
        ps(4000, PCIE) + ps(4000, LINK) + LATENCY_PS,
        ps(12000, PCIE) + ps(8000, LINK) + LATENCY_PS,
        ps(4000, PCIE) + ps(4000, LINK) + LATENCY_PS,
    ]
    slow = release_ps(program, TILE.override({"interface.link_bandwidth": "1 GB/s"}))[sends]
    assert slow[1] == ps(4000, PCIE) + 12_000_000 + LATENCY_PS
    host = release_ps(program, TILE.override({"interface.host_bandwidth": "8 GB/s"}))[sends]
    assert host[0] == 500_000 + ps(4000, LINK) + LATENCY_PS


def test_released_ops_wait_for_their_dependencies_too() -> None:
    builder = ProgramBuilder(25)
    work = {"op_class": "relu", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
    first, second, _ = (int(builder.compute([0], label="x", **work)[0]) for _ in range(3))
    builder.depend([second], [first])
    program, mesh = builder.build(), flatten(TILE)
    timing = time_program(program, mesh, [100, 100, 100], release_ps=[0, 50, 1000])
    assert timing.ops.start_ps.tolist() == [0, 100, 1000]
    timing = time_program(program, mesh, [100, 100, 100], release_ps=[0, 500, 50])
    assert timing.ops.start_ps[[first, second]].tolist() == [0, 500]
    with pytest.raises(InputError, match="op 1: release_ps = -1"):
        time_program(program, mesh, [1, 1, 1], release_ps=[0, -1, 0])
    with pytest.raises(InputError, match="release_ps has shape"):
        time_program(program, mesh, [1, 1, 1], release_ps=[0, 0])


def test_the_step_lasts_as_long_as_the_longer_of_both() -> None:
    x, y = samples(50)
    alone = prepared({"data": 25}, x, y, ())
    quick = prepared({"data": 25}, x, y, ("west", "east"), TILE.override({"interface.pcie_bandwidth": "800 GB/s",
                                                                        "interface.host_bandwidth": "800 GB/s"}))
    slow = prepared({"data": 25}, x, y, ("west",))
    assert not ingest_ops(alone.timed.program).any()
    assert quick.timed.summary.ingest_ps == 0
    assert quick.timed.summary.time_ps >= alone.timed.summary.time_ps  # its messages may be in the way
    summary = slow.timed.summary
    assert summary.time_ps == arrival_ps(slow)
    assert summary.ingest_ps == summary.time_ps - slow.timed.timing.ops.end_ps[~ingest_ops(slow.timed.program)].max()
    assert summary.time_ps == summary.compute_ps + summary.ingest_ps + summary.exposed_comm_ps
    batch_bytes = 50 * (3 * 64 * 64 * 4 + 8)
    assert summary.time_ps > ps(batch_bytes // 5, PCIE)  # five interface processors at a tile's edge
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
    wanted = ps(size, PCIE) + ps(pieces[-1], LINK) + LATENCY_PS + over_mesh
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
    local = {(p.interface, p.number) for p in pieces if interfaces[p.interface] in p.devices}
    copies = sum(p.size_bytes * (len(p.devices) - ((p.interface, p.number) in local)) for p in pieces)
    assert program.size_bytes[sent].sum() == copies


def test_any_number_of_ranks_gives_the_same(tmp_path: Path) -> None:
    x, y = samples(20, 16)
    one = prepared({"data": [2, 5]}, x, y, ("west", "east")).timed.timing
    for n in (2, 4):
        for step in run_ranks(n, lambda comm: prepared({"data": [2, 5]}, x, y, ("west", "east"), comm=comm)):
            timing = step.timed.timing
            assert np.array_equal(timing.ops.end_ps, one.ops.end_ps)
            assert np.array_equal(timing.links.busy_ps, one.links.busy_ps)


def test_routers_carry_it_too() -> None:
    x, y = samples(10, 8)
    step = prepared({"data": 5}, x, y, ("east",), router=Router(), packet_bytes=256)
    assert arrival_ps(step) > release_ps(step.timed.program, TILE).max()


def test_recorded_and_timed_again_with_other_figures(tmp_path: Path) -> None:
    x, y = samples(50, 32)
    step = prepared({"data": 25}, x, y, ("west",))
    files = [tmp_path / name for name in ("a.h5", "same.h5", "slow.h5", "slower.h5")]
    recorder = Recorder.open(files[0], step.timed, SingleComm(), Layout(config_text="", n_steps=1), overwrite=False)
    recorder.step(0, TrainingRecord(), wall_s=0.0)
    recorder.finish({})
    retime(files[0], [], files[1])
    retime(files[0], ["system.interface.pcie_bandwidth=4 GB/s"], files[2])
    retime(files[0], ["system.interface.pcie_bandwidth=2 GB/s"], files[3])
    first, same, slow, slower = (open_run(file).steps.iloc[0] for file in files)
    assert first["ingest_ps"] == same["ingest_ps"] == step.timed.summary.ingest_ps
    of_each = 50 * (3 * 32 * 32 * 4 + 8) // 5
    assert slower["time_ps"] - slow["time_ps"] == pytest.approx(ps(of_each, 4 * 10**9), rel=0.01)
    assert slow["time_ps"] - slow["ingest_ps"] >= step.timed.summary.compute_ps
    assert verdict(as_dict(open_run(files[2]))).startswith("Input data bounds the step: ")
    assert "Input data" not in verdict(as_dict(open_run(files[0])))


def test_where_interface_processors_are() -> None:
    mesh = flatten(TILE)
    assert interface_devices(mesh, ("west", "south"), 5).tolist() == [0, 5, 10, 15, 20, 20, 21, 22, 23, 24]
    assert interface_devices(mesh, ("east",), 1).tolist() == [14]
    assert interface_devices(mesh, ("north",), 2).tolist() == [1, 3]
    tray = System.preset("dojo-tray")
    assert len(interface_devices(flatten(tray), ("west", "east"), 5)) == 20  # published: 20 to a tray
    dead = flatten(TILE.override({"dead": [[1, 0]]}))
    assert interface_devices(dead, ("west",), 5).tolist() == [0, 10, 15, 20]
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
