"""Peak memory by liveness, on examples small enough to count by hand."""

from dataclasses import replace

import torch
from models_under_test import captured, classes, grid, images, partitioned
from torch.nn import functional as F

from meshemu.cost.op_classes import VIEWS
from meshemu.mesh import flatten
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.placement import make_plan
from meshemu.workload.spmd import Compute, Instruction, Spmd, Value, last_uses

CUT = Layout((Split(0, ("data",), even_ranges(3, 2)),))


def compute(op_class: str, inputs: tuple[Value, ...], output: Value) -> Instruction:
    return Compute(torch.relu, inputs, {}, inputs, (output,), op_class, op_class)


def by_hand() -> Spmd:
    """w (10) stays; x (3 x 4, cut in rows) -> a -> its view v -> b -> loss; all fp32."""
    w = Value(0, (10,), torch.float32)
    x, a = Value(1, (3, 4), torch.float32, CUT), Value(2, (3, 8), torch.float32, CUT)
    v, b = Value(3, (3, 2, 4), torch.float32, CUT), Value(4, (3, 5), torch.float32, CUT)
    loss = Value(5, (), torch.float32)
    steps = (compute("mm", (x, w), a), compute("view", (a,), v), compute("mm", (v,), b), compute("sum", (b,), loss))
    return Spmd(steps, {"w": w, "batch.0": x}, {}, {}, loss, {"w": w}, {})


def test_the_last_use_of_each_value() -> None:
    assert last_uses(by_hand()) == {0: [1], 1: [2], 2: [3], 3: [4]}


def test_peak_counted_by_hand() -> None:
    """Two samples on device 0, one on device 1; per sample: x 16 B, a 32 B (its view none), b 20 B.

    x and a: 48 B; a by its view and b: 52 B a sample, the peak.
    """
    plan = make_plan({"data": 2}, flatten(grid(1, 3)))
    resident = 40
    for states in (0, 2):
        peak = MemoryWalk(by_hand(), plan, {"w": states}, VIEWS).use(3).total_bytes
        assert peak.tolist() == [resident * (1 + states) + 2 * 52, resident * (1 + states) + 52, 0]


def test_positions_are_devices_of_the_plan() -> None:
    """Position 0, with two of the three samples, is device 2 here, and the timeline is its own."""
    plan = replace(make_plan({"data": 2}, flatten(grid(1, 3))), devices=(2, 0))
    use = MemoryWalk(by_hand(), plan, {}, VIEWS).use(3)
    assert use.total_bytes.tolist() == [40 + 52, 0, 40 + 2 * 52]
    assert use.busiest == 2
    assert use.live_bytes.sum(axis=1).tolist() == [40 + 32, 40 + 96, 40 + 64, 40 + 104, 40 + 40 + 4]


def test_what_two_threads_may_hold() -> None:
    """What an operator reads is held until the next one has run: x, a and b at once, and b at the end."""
    plan = make_plan({"data": 2}, flatten(grid(1, 3)))
    use = MemoryWalk(by_hand(), plan, {}, VIEWS, compute_threads=2).use(3)
    assert use.live_bytes.sum(axis=1).tolist() == [40 + 32, 40 + 96, 40 + 96, 40 + 136, 40 + 104 + 4]


def test_a_cut_batch_needs_less_and_state_is_held_by_all() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    graph = captured(model, (images(64, 16).float(), classes(64, n=4)), F.cross_entropy)
    peaks = {}
    for n in (1, 4):
        step = partitioned(graph, "data", 1, n)
        peaks[n] = MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(n).total_bytes
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert (peaks[4] < peaks[1]).all()
    assert (peaks[4] > parameters).all()
    step = partitioned(graph, "data", 1, 4)
    states = dict.fromkeys(step.spmd.gradients, 2)
    assert (MemoryWalk(step.spmd, step.plan, states, VIEWS).use(4).total_bytes - peaks[4] == 2 * parameters).all()
