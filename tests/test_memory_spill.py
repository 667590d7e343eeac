"""Blocks that wait at interface processors: which leave, when, over which links, and that nothing else changes."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import captured
from torch import nn
from torch.nn import functional as F

from meshemu.config import parse
from meshemu.cost.op_classes import VIEWS
from meshemu.emulator.batches import loss_of
from meshemu.emulator.build_step import StepOptions, place_step, with_program
from meshemu.emulator.memory_policy import MemoryOptions, memory_options
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.spilling import spilling
from meshemu.emulator.timed_step import TimedStep, TimingOptions, time_step
from meshemu.errors import InputError, PlanError
from meshemu.execute.optimizer import bind_optimizer
from meshemu.execute.training import run_step
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.program.interfaces import DEVICE_TO_MEMORY, MEMORY_TO_DEVICE
from meshemu.program.ir import OpKind, Program
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.op_order import OpOrder
from meshemu.workload.placement import make_plan
from meshemu.workload.spill import Block, Idle, blocks_of, choose_spills, idle_times
from meshemu.workload.spill_emission import REQUEST_BYTES
from meshemu.workload.spmd import Compute, Value, inputs_of, outputs_of

NODES = 354
N = 1024
BLOCK = N // 2 * 16 * 4
"""Bytes of an activation on one of two devices."""


def model_of(n_layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(n_layers) for layer in (nn.Linear(16, 16), nn.GELU())])


class Branches(nn.Module):
    """Layers side by side, so that ops of a device are independent of those before them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = torch.tanh(one(x)) + torch.sigmoid(other(x))
        return x


def prepared(
    memory_bytes: int, when_full: str = "spill", *, plan: Any = None, ahead: int = 4, figures: Any = None,
    timing: TimingOptions | None = None, n_layers: int = 4, **options: Any,
) -> tuple[PreparedStep, nn.Module, Any]:
    """A step of linear layers with Adam on dies of about so much memory; device 0 is beside an interface processor."""
    model = model_of(n_layers)
    batch = torch.ones(N, 16), torch.ones(N, 16)
    system = System.preset("dojo-tile").override({"node.sram": memory_bytes // NODES, **(figures or {})})
    step = prepare(
        model, batch, lambda call, item: loss_of(call, item, F.mse_loss), system=system, plan=plan or {"data": 2},
        options=timing or TimingOptions(), comm=SingleComm(), optimizer=bind_optimizer(model, torch.optim.Adam),
        memory=memory_options({"when_full": when_full, "spill_ahead": ahead}), **options,
    )  # fmt: skip
    return step, model, batch


@cache
def plain() -> tuple[PreparedStep, nn.Module, Any]:
    return prepared(10**9)


@cache
def spilled(part: float = 0.7, ahead: int = 4) -> tuple[PreparedStep, nn.Module, Any]:
    return prepared(int(part * needed()), ahead=ahead)


def needed() -> int:
    return int(plain()[0].timed.peak_memory_bytes.max())


def ops_of(program: Program, start: str, kind: OpKind, device: int) -> np.ndarray:
    """Ops whose label begins so."""
    wanted = np.asarray([label.startswith(start) for label in program.labels])[program.label]
    return np.flatnonzero(wanted & (program.kind == kind) & (program.device == device))


def waiting_for(program: Program, ops: Any, on: int) -> list[int]:
    """Those of some ops that wait for another."""
    return [int(op) for op in ops if on in program.dep[program.dep_ptr[op] : program.dep_ptr[op + 1]]]


def test_it_fits_and_the_timeline_shows_what_left() -> None:
    before, after = plain()[0].timed.memory, spilled()[0].timed.memory
    assert before is not None
    assert after is not None
    assert after.most_bytes <= 0.7 * before.most_bytes
    saved = (before.live_bytes - after.live_bytes).sum(axis=1)
    assert saved[0] == saved[-1] == saved.min() == 0, "all is back in the end"
    assert set(saved.tolist()) == {0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK}
    assert "4 blocks, at most 131.1 kB of a device and 262.1 kB in all, wait" in spilled()[0].memory_remark
    assert plain()[0].memory_remark == ""


def test_no_number_changes() -> None:
    results = [run_step(step.executor(SingleComm()), model, batch, 0, 0) for step, model, batch in (plain(), spilled())]
    assert torch.equal(results[0].loss, results[1].loss)
    assert all(torch.equal(results[0].gradients[k], results[1].gradients[k]) for k in results[0].gradients)
    step, model, batch = spilled()
    for found in run_ranks(2, lambda comm: run_step(step.executor(comm), model, batch, 0, 0)):
        assert torch.equal(found.loss, results[0].loss)


def test_every_block_goes_and_comes_back_over_the_links() -> None:
    """Device 0 is beside its interface processor, device 1 one hop from it: so much more on that link, each way."""
    before, after = plain()[0].timed, spilled()[0].timed
    verify(after.program)
    more = after.timing.links.bytes - before.timing.links.bytes
    mesh = after.mesh
    out, back = ((mesh.link_src == src) & (mesh.link_dst == dst) for src, dst in ((1, 0), (0, 1)))
    assert more[out] == 4 * (BLOCK + REQUEST_BYTES)
    assert more[back] == 4 * BLOCK
    assert more.sum() == 8 * BLOCK + 4 * REQUEST_BYTES
    interface = after.program.kind == OpKind.INTERFACE
    classes = np.asarray(after.program.op_classes)[after.program.op_class]
    for op_class, amount in ((DEVICE_TO_MEMORY, "write_bytes"), (MEMORY_TO_DEVICE, "read_bytes")):
        ops = np.flatnonzero(interface & (classes == op_class))
        assert getattr(after.program, amount)[ops].tolist() == [BLOCK] * 8
        assert (after.program.device[ops] == 0).all()
        assert (after.program.interface[ops] == 15).all(), "the first along the west, after three edges of five"
        taken = (after.timing.ops.end_ps - after.timing.ops.start_ps)[ops]
        assert (taken == BLOCK * 10**12 // (800 * 10**9)).all(), "HBM is slower than the link"


@pytest.mark.parametrize("ahead", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_used_when_it_is_free(ahead: int, threads: int) -> None:
    """In virtual time: an operator starts when what was in its memory has left, a request when there is room."""
    slow = {"interface.memory_bandwidth": "1 GB/s", "die_edge.bandwidth": "5 GB/s", "node.sram": 10**9}
    system = System.preset("dojo-tile").override(slow)
    options, mesh = StepOptions({}, "ring", 1, compute_threads=threads), flatten(system)
    graph = captured(Branches(), (torch.ones(N, 16), torch.ones(N, 16)), F.mse_loss)
    whole = place_step(graph, make_plan({"data": 2}, mesh), mesh, system, options)
    system = system.override({"node.sram": int(0.8 * whole.memory.most_bytes) // NODES})
    placed, _ = spilling(whole, mesh, system, options, MemoryOptions("spill", ahead))
    program = with_program(placed, mesh, system, options).program
    verify(program)
    step = time_step(program, system, placed.memory.total_bytes, TimingOptions(compute_threads=threads), SingleComm())
    times = step.timing.ops
    assert placed.memory.most_bytes <= 0.8 * whole.memory.most_bytes
    order = OpOrder(placed.spmd, VIEWS).on(())
    computes = np.flatnonzero((program.kind == OpKind.COMPUTE) & (program.device == 1))
    op_at = dict(zip(order, computes.tolist(), strict=True))
    for one in [spill.idle for spill in placed.spilled.spills]:
        (left,) = ops_of(program, f"spill {one.block.label}", OpKind.SEND, 1)
        (asked,) = ops_of(program, f"ask to fetch {one.block.label}", OpKind.SEND, 1)
        (back,) = ops_of(program, f"fetch {one.block.label}", OpKind.RECV, 1)
        place = order.index(one.freed)
        for freed in order[place : place + threads]:
            assert times.start_ps[op_at[freed]] >= times.end_ps[left]
        if one.after in op_at:
            assert times.start_ps[left] >= times.end_ps[op_at[one.after]]
        asking = order.index(one.fetched)
        for earlier in order[max(asking - threads, 0) : asking]:
            assert times.start_ps[asked] >= times.end_ps[op_at[earlier]]
        if one.before in op_at:
            assert times.start_ps[op_at[one.before]] >= times.end_ps[back]
        stored = ops_of(program, f"spill {one.block.label}", OpKind.INTERFACE, 0)
        read = ops_of(program, f"fetch {one.block.label}", OpKind.INTERFACE, 0)
        assert len(stored) == len(read) == 4, "two blocks, and the flight of each"
        (arrived,) = ops_of(program, f"spill {one.block.label}", OpKind.RECV, 0)
        (heard,) = ops_of(program, f"ask to fetch {one.block.label}", OpKind.RECV, 0)
        (sent,) = ops_of(program, f"fetch {one.block.label}", OpKind.SEND, 0)
        (there,) = waiting_for(program, stored, int(*waiting_for(program, stored, arrived)))
        (reading,) = waiting_for(program, read, heard)
        assert reading in waiting_for(program, read, there)
        assert [sent] == waiting_for(program, [sent], int(*waiting_for(program, read, reading)))


def test_slow_transfers_take_time_and_earlier_ones_less() -> None:
    slow = {"interface.memory_bandwidth": "3 GB/s"}
    allowed = prepared(int(0.7 * needed()), "allow", figures=slow)[0].timed.timing.end_ps
    times = [
        prepared(int(0.7 * needed()), figures=slow, ahead=ahead)[0].timed.timing.end_ps for ahead in (1, 2)
    ]
    assert times[0] > times[1] > allowed
    assert allowed == plain()[0].timed.timing.end_ps


def test_any_number_of_ranks() -> None:
    step = spilled()[0]

    def timed(comm: Any) -> TimedStep:
        return time_step(step.timed.program, step.timed.system, np.zeros(25, np.int64), TimingOptions(), comm)

    for n_ranks in (2, 3, 4):
        for found in run_ranks(n_ranks, timed):
            assert np.array_equal(found.timing.ops.end_ps, step.timed.timing.ops.end_ps)
            assert np.array_equal(found.timing.links.busy_ps, step.timed.timing.links.busy_ps)


@pytest.mark.parametrize("plan", [{"pipeline": 2}, {"tensor": 2}, {"shard": 2}])
def test_other_plans(plan: Any) -> None:
    micro = {"micro_batches": 2} if "pipeline" in plan else {}
    full = prepared(10**9, plan=plan, **micro)[0].timed.peak_memory_bytes
    limit = int(0.85 * full.max())
    step, model, batch = prepared(limit, plan=plan, ahead=2, **micro)
    verify(step.timed.program)
    found = step.timed.peak_memory_bytes
    assert found.max() <= limit
    assert np.array_equal(found[full <= limit], full[full <= limit]), "who has room keeps what it has"
    wanted = run_step(prepared(10**9, plan=plan, **micro)[0].executor(SingleComm()), model, batch, 0, 0)
    got = run_step(step.executor(SingleComm()), model, batch, 0, 0)
    assert all(torch.equal(wanted.gradients[k], got.gradients[k]) for k in wanted.gradients)


def test_idle_times_by_hand() -> None:
    """Of every block all gaps between uses that leave room for `ahead` operators on either side, and no others."""
    spmd = spilled()[0].spmd
    order = OpOrder(spmd, VIEWS).on(())
    computing = [
        i for i, one in enumerate(spmd.instructions) if isinstance(one, Compute) and one.op_class not in VIEWS
    ]
    assert order == computing
    for block in blocks_of(spmd, VIEWS):
        touched = {
            i
            for i, one in enumerate(spmd.instructions)
            if {v.id for v in (*inputs_of(one), *outputs_of(one))} & set(block.values)
        }
        assert set(block.uses) - {-1} == touched
        for one in idle_times(spmd, [block], VIEWS, 3):
            between = [i for i in order if one.after < i < one.before]
            assert len(between) == one.n_ops
            assert (one.freed, one.fetched) == (between[2], [i for i in order if i < one.before][-3])
            assert one.freed < one.fetched
        gaps = zip(block.uses[:-1], block.uses[1:], strict=True)
        wide = [gap for gap in gaps if sum(gap[0] < i < gap[1] for i in order) >= 7]
        assert {(one.after, one.before) for one in idle_times(spmd, [block], VIEWS, 3)} >= set(wide)


def idle(number: int, freed: int, fetched: int, n_ops: int) -> Idle:
    block = Block(Value(number, (1,), torch.float32), (number,), (), str(number))
    return Idle(block, freed - 1, freed, fetched, fetched + 1, n_ops)


def test_the_greatest_product_of_bytes_and_time_leaves_first() -> None:
    live = np.array([[10, 10], [20, 10], [80, 40], [50, 10]], np.int64)
    candidates = [idle(0, 1, 3, 4), idle(1, 1, 2, 10), idle(2, 0, 2, 99), idle(3, 1, 3, 5)]
    size = [np.array(s, np.int64) for s in ([30, 30], [20, 20], [0, 9], [20, 20])]
    (only,) = choose_spills(live.copy(), size, candidates, 60)
    assert only.idle.block.label == "1", "20 x 10 operators is more than 30 x 4; nobody gains by number 2"
    assert only.where.tolist() == [True, False], "the second has room"
    changed = live.copy()
    both = choose_spills(changed, size, candidates, 25)
    assert [spill.idle.block.label for spill in both] == ["0", "1", "3"]
    assert changed[2].tolist() == [80 - 30 - 20 - 20, 40 - 20]
    assert [spill.where.tolist() for spill in both] == [[True, False], [True, True], [True, False]]


def test_what_does_not_help_leaves_it_full() -> None:
    live = np.array([[0], [50]], np.int64)
    assert choose_spills(live, [np.array([40])], [idle(0, 5, 9, 3)], 20) == []
    assert choose_spills(live, [], [], 20) == []
    assert live.tolist() == [[0], [50]]
    live = np.array([[0], [10], [50]], np.int64)
    assert choose_spills(live, [np.array([5])], [idle(0, 0, 1, 3)], 20) == [], "it is back when most is held"


@pytest.mark.parametrize("part", [0.7, 0.97], ids=["before capture", "after it"])
@pytest.mark.parametrize("figures", [None, {"interface.memory": "1 kB"}], ids=["room", "no room"])
def test_a_refusal_names_spilling_where_it_may_do(part: float, figures: Any) -> None:
    """Once the step is captured only if it does: then what interface processors hold is known."""
    with pytest.raises(PlanError, match=r"^memory: .*allow times it all the same\)$") as refused:
        prepared(int(part * needed()), "refuse", figures=figures)
    text = str(refused.value)
    assert ("at least" in text) == (part == 0.7)
    assert ("spill" in text) == (part == 0.7 or figures is None)


def test_a_refusal_is_one_where_no_device_is_beside_an_interface_processor() -> None:
    """Then spilling cannot be, and is not what the step is refused for."""
    edges = {"interface.per_edge": 1, "dead": [[2, 0], [2, 4]]}
    with pytest.raises(PlanError, match=r"^memory: .* needs .*; by estimate it fits with") as refused:
        prepared(int(0.97 * needed()), "refuse", figures=edges)
    assert "spill" not in str(refused.value)


def test_refusals() -> None:
    with pytest.raises(PlanError, match=r"^memory: tile 0, die \(0,0\) needs .*, although \d+ blocks, at most"):
        prepared(60_000)
    with pytest.raises(PlanError, match=r"processor 15, beside tile 0, die \(0,0\), needs 262.1 kB of 200 kB"):
        prepared(int(0.7 * needed()), figures={"interface.memory": "200 kB"})
    with pytest.raises(InputError, match=r"memory\.when_full = spill: no interface processors beside dies are known"):
        prepare(
            nn.Linear(2, 2), (torch.ones(2, 2),) * 2, lambda call, item: loss_of(call, item, F.mse_loss),
            system=System.preset("dojo-die", devices="die"), plan="data", options=TimingOptions(), comm=SingleComm(),
            memory=memory_options({"when_full": "spill"}),
        )  # fmt: skip
    for ahead in (0, 1.5, True):
        with pytest.raises(InputError, match=r"memory\.spill_ahead"):
            memory_options({"when_full": "spill", "spill_ahead": ahead})
    with pytest.raises(InputError, match="unknown key 'edges'; there are when_full, spill_ahead"):
        memory_options({"edges": ["west"]})
    assert memory_options(None, ("north",)).edges == ("north",)
    text = (
        'plan = "data"\n[model]\nname = "gpt"\n[data]\nname = "tokens"\nbatch_size = 2\n[training]\nsteps = 1\n'
        'optimizer = { name = "sgd", lr = 0.1 }\n[memory]\nwhen_full = "spill"\nspill_ahead = %s\n'
    )
    assert parse(text % 7, origin="f", directory=Path()).memory.spill_ahead == 7
    with pytest.raises(InputError, match=r"memory\.spill_ahead"):
        parse(text % 0, origin="f", directory=Path())
