"""The data flow of a schedule gives what the schedule gives, bit for bit, whichever ranks its participants are on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_under_test import grid
from numpy.typing import NDArray

from meshemu.collectives import Schedule, build, even_bounds
from meshemu.execute.blocks import Host
from meshemu.execute.collective import CollectiveTask
from meshemu.execute.dataflow import Flow, make_flow
from meshemu.mesh import flatten
from meshemu.runtime.local import SingleComm
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.placement import make_plan
from meshemu.workload.spmd import Collective

Floats = NDArray[np.float32]
GRIDS = [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (1, 5), (4, 4)]
ALGORITHMS = ["ring", "rows_columns", "tree"]


def by_the_schedule(schedule: Schedule, bounds: Sequence[int], buffers: Floats) -> Floats:
    """Every participant's buffer after all transfers, one at a time: what the words of Schedule say, literally."""
    state = buffers.copy()
    for phase in np.unique(schedule.phase):
        before = state.copy()
        for t in np.flatnonzero(schedule.phase == phase):
            rows = slice(bounds[schedule.chunk_lo[t]], bounds[schedule.chunk_hi[t]])
            data = before[schedule.src[t], rows]
            target = state[schedule.dst[t], rows]
            target[:] = target + data if schedule.reduce[t] else data
    return state


def by_the_flow(flows: Sequence[Flow], pieces: Sequence[int], buffers: Floats) -> list[dict[int, Floats]]:
    """Nodes of every rank at the end; a merge that names a node to write into does write into it."""
    nodes: list[dict[int, Floats]] = []
    for flow in flows:
        rows = {n: slice(*pieces[piece : piece + 2]) for n, piece in flow.pieces.items()}
        nodes.append({n: buffers[member, rows[n]] for n, member in flow.terms.items()})
    for phase in range(len(flows[0].phases)):
        sent = {
            (rank, peer): [[nodes[rank][n].copy() for n in message] for message in messages]
            for rank, flow in enumerate(flows)
            for peer, messages in flow.phases[phase].sends.items()
        }
        for rank, flow in enumerate(flows):
            for peer, messages in flow.phases[phase].receives.items():
                for message, data in zip(messages, sent.pop((peer, rank)), strict=True):
                    nodes[rank].update(zip(message, data, strict=True))
        assert not sent, "every message is received"
        for own, flow in zip(nodes, flows, strict=True):
            for merge in flow.phases[phase].merges:
                total = own[merge.left] + own[merge.right]
                if merge.into is None:
                    own[merge.node] = total
                else:
                    assert merge.into in (merge.left, merge.right) and merge.into not in flow.terms
                    own[merge.node] = own.pop(merge.into)
                    own[merge.node][:] = total
            for node in flow.phases[phase].dead:
                del own[node]
    return nodes


@given(
    st.sampled_from(GRIDS), st.sampled_from(ALGORITHMS), st.integers(1, 4), st.integers(0, 3), st.integers(0, 40),
    st.integers(0, 2**16),
)  # fmt: skip
def test_all_reduce_on_any_ranks(
    grid: tuple[int, int], algorithm: str, n_ranks: int, n_cuts: int, n_rows: int, seed: int
) -> None:
    schedule = build("all_reduce", algorithm, *grid)
    generator, n = np.random.default_rng(seed), schedule.n_participants
    bounds = even_bounds(schedule.n_chunks, n_rows).tolist()
    pieces = sorted({*bounds, *generator.integers(0, n_rows + 1, n_cuts).tolist()})
    ranks = generator.integers(0, n_ranks, n)
    buffers = generator.standard_normal((n, n_rows)).astype(np.float32)
    expected = by_the_schedule(schedule, bounds, buffers)
    flows = []
    for rank in range(n_ranks):
        first = np.flatnonzero(ranks == rank)[:1].tolist()
        wanted = [(member, piece) for member in first for piece in range(len(pieces) - 1)]
        flows.append(make_flow(schedule, bounds, pieces, ranks, rank, wanted))
    for flow in flows:
        arrived = [n for phase in flow.phases for messages in phase.receives.values() for m in messages for n in m]
        assert len(arrived) == len(set(arrived)) and not set(arrived) & set(flow.terms), "a node comes to a rank once"
    untouched = buffers.copy()
    nodes = by_the_flow(flows, pieces, buffers)
    assert np.array_equal(buffers, untouched), "a participant's own term is never written to"
    for flow, own in zip(flows, nodes, strict=True):
        for (member, piece), node in flow.results.items():
            rows = slice(*pieces[piece : piece + 2])
            assert own[node].tobytes() == expected[member, rows].tobytes()
        assert set(own) - set(flow.terms) <= set(flow.results.values()), "nothing is left over but the results"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("grid", [(2, 3), (5, 5)])
def test_a_sum_on_one_rank_is_made_once(grid: tuple[int, int], algorithm: str) -> None:
    """n - 1 additions a piece and no copy; in a ring, all in the memory of the result."""
    schedule = build("all_reduce", algorithm, *grid)
    bounds = even_bounds(schedule.n_chunks, 1000).tolist()
    pieces = sorted({*bounds, 17, 333})
    wanted = [(0, piece) for piece in range(len(pieces) - 1)]
    flow = make_flow(schedule, bounds, pieces, np.zeros(schedule.n_participants, np.int64), 0, wanted)
    merges = [merge for phase in flow.phases for merge in phase.merges]
    assert len(merges) == (schedule.n_participants - 1) * len(wanted)
    assert sorted(flow.places.values()) == wanted
    if algorithm == "ring":
        assert sum(merge.into is None for merge in merges) == len(wanted)


def test_what_a_rank_has_been_sent_is_not_sent_again() -> None:
    """Of a ring over 2 + 2 participants on two ranks: all partial sums, and then each sum to the rank without it."""
    schedule = build("all_reduce", "ring", 1, 4)
    bounds = even_bounds(schedule.n_chunks, 4).tolist()
    ranks, crossing = np.array([0, 0, 1, 1]), 0
    for rank in range(2):
        wanted = [(2 * rank, piece) for piece in range(4)]
        flow = make_flow(schedule, bounds, bounds, ranks, rank, wanted)
        crossing += sum(len(message) for phase in flow.phases for m in phase.sends.values() for message in m)
    between = ranks[schedule.src] != ranks[schedule.dst]
    assert crossing == int((between & schedule.reduce).sum()) + schedule.n_chunks < int(between.sum())


def test_rows_are_cut_by_no_transfer() -> None:
    """A chunk that is two pieces travels as one message of two nodes."""
    schedule = build("all_reduce", "ring", 1, 2)
    bounds = even_bounds(schedule.n_chunks, 8).tolist()
    flow: Any = make_flow(schedule, bounds, sorted({*bounds, 1}), np.array([0, 1]), 0, [(0, 0)])
    lengths = [len(message) for phase in flow.phases for messages in phase.sends.values() for message in messages]
    assert max(lengths) == 2 and len(lengths) == int((schedule.src == 0).sum())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_what_is_rounded_on_the_way_has_numbers_of_its_own(kind: str, algorithm: str) -> None:
    """No two elements that are sent have the same number, sender and phase: of these their random bits are made."""
    plan = make_plan({"shard": 6}, flatten(grid(2, 3)))
    low = Lowering(plan)
    terms = low.value((12,), torch.float32, Layout(partial=("shard",)))
    if kind == "all_reduce":
        low.all_reduce([terms], "sum")
    else:
        low.reduce_scatter([terms], [Layout((Split(0, ("shard",), even_ranges(12, 6)),))], ("shard",), "sum")
    (instruction,) = low.instructions
    assert isinstance(instruction, Collective)
    host = Host(plan, 0, np.zeros(6, np.int64))
    sent: list[tuple[int, int, int]] = []

    def carrier(piece: torch.Tensor, start: int, sender: int, phase: int) -> torch.Tensor:
        sent.extend((start + i, sender, phase) for i in range(piece.numel()))
        return piece.clone()

    blocks = {host.key(("shard",), position): torch.ones(12) for position in range(6)}
    schedule = build(kind, algorithm, 2, 3)
    task = CollectiveTask(instruction, schedule, host, SingleComm())
    (total,) = task.run([blocks], carrier)  # type: ignore[arg-type]
    assert all((block == 6).all() for block in total.values())
    assert len(set(sent)) == len(sent) >= 5 * 12
