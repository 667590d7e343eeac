"""Pieces in place of chunks change nothing: dependencies and verdicts equal those of plain loops over every chunk."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import ALGORITHMS, KINDS, Schedule, build, collective_program, emit, verify_schedule
from meshemu.errors import ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.program import OpKind, Program, ProgramBuilder, verify
from meshemu.program.pieces import pieces, single_chunks

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def pairs(*columns: np.ndarray) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


@FEW
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), n_chunks=st.integers(1, 400), count=st.integers(0, 12))
def test_every_access_covers_whole_pieces_and_no_cut_is_idle(seed, n, n_chunks, count):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, n_chunks + 1, (2, count)), axis=0)
    who = rng.integers(0, n, count)
    cut = pieces(n, n_chunks, [(who, *ends)])
    start, length = cut.ranges((who, *ends))
    for i in range(count):
        inside = [cut.first_chunk[p] for p in range(start[i], start[i] + length[i])]
        assert all(cut.participant[start[i] : start[i] + length[i]] == who[i])
        assert inside == sorted({c for c in cut.first_chunk[cut.participant == who[i]] if ends[0, i] <= c < ends[1, i]})
        assert not length[i] or inside[0] == ends[0, i]
    used = {(p, c) for p in range(n) for c in (0, n_chunks)}
    used |= {(int(p), int(c)) for bound in ends for p, c in zip(who, bound, strict=True)}
    assert set(pairs(cut.participant, cut.first_chunk)) == used
    chunk = rng.integers(0, n_chunks + 1, n)
    held = cut.holding(np.arange(n), chunk)
    assert (cut.participant[held] == np.arange(n)).all() and (cut.first_chunk[held] <= chunk).all()
    after = cut.place[np.minimum(held + 1, cut.n_pieces - 1)]
    assert ((after > np.arange(n) * (n_chunks + 1) + chunk) | (chunk == n_chunks)).all()


def plain_dependencies(program: Program) -> set[tuple[int, int]]:
    """(op, on) of one collective whose ops stand in an order that is right, chunk by chunk."""
    p, found = program, set()
    writer: dict[tuple[int, int], int] = {}
    readers: dict[tuple[int, int], set[int]] = {}
    writes = {int(p.recv_op[m]): int(p.recv_op[m]) for m in range(p.n_messages)}
    for op in np.flatnonzero(p.kind == OpKind.REDUCE).tolist():
        recv = int(p.recv_op[p.message[op]])
        writes[recv] = op
        found.add((op, recv))
    for op in range(p.n_ops):
        cells = [(int(p.device[op]), c) for c in range(p.chunk_lo[op], p.chunk_hi[op])]
        if p.kind[op] == OpKind.SEND:
            found |= {(op, writer[cell]) for cell in cells if cell in writer}
            for cell in cells:
                readers.setdefault(cell, set()).add(op)
        elif op in writes.values():
            for cell in cells:
                found |= {(op, on) for on in readers.pop(cell, set())}
                found |= {(op, writer[cell])} if cell in writer else set()
                writer[cell] = op
    return found


GRIDS = [(3, 4, (), 100), (3, 3, (4,), 100), (4, 2, (), 5)]
CASES = [
    (algorithm, *grid)
    for algorithm in ALGORITHMS
    for grid in GRIDS
    if algorithm != "in_network" and not (algorithm == "rows_columns" and grid[2])
]  # of trees in the network ops are shared: tests/test_program_multicast.py


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm, rows, cols, absent, n_elements", CASES)
def test_dependencies_are_those_of_a_loop_over_chunks(kind, algorithm, rows, cols, absent, n_elements):
    schedule = build(kind, algorithm, rows, cols, absent=absent)
    builder = ProgramBuilder(schedule.n_participants)
    emit(
        builder, schedule, np.arange(schedule.n_participants), n_elements=n_elements, itemsize=4, label="x",
        number_format="fp32",
    )  # fmt: skip
    program = builder.build()
    waiting = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    assert set(pairs(waiting, program.dep)) == plain_dependencies(program)


def plain_verdict(schedule: Schedule) -> bool:
    """Whether the schedule is right, by lists of contributions per participant and chunk."""
    s, n = schedule, schedule.n_participants
    has = {
        "all_gather": lambda i, c: i == c,
        "broadcast": lambda i, _: i == s.root,
    }.get(s.kind, lambda *_: True)
    state = {(i, c): [i if has(i, c) else ("undefined", i)] for i in range(n) for c in range(s.n_chunks)}
    for phase in np.unique(s.phase):
        at = np.flatnonzero(s.phase == phase).tolist()
        sent = {t: {c: list(state[s.src[t], c]) for c in range(s.chunk_lo[t], s.chunk_hi[t])} for t in at}
        over = [(s.dst[t], c) for t in at if not s.reduce[t] for c in sent[t]]
        added = {(s.dst[t], c) for t in at if s.reduce[t] for c in sent[t]}
        if len(set(over)) < len(over) or added & set(over):
            return False
        for t in at:
            for c, what in sent[t].items():
                state[s.dst[t], c] = state[s.dst[t], c] + what if s.reduce[t] else what
    everyone = [list(range(n))] * s.n_chunks
    wanted = {
        "all_gather": [[c] for c in range(s.n_chunks)],
        "broadcast": [[s.root]] * s.n_chunks,
    }.get(s.kind, everyone)
    cells = {"reduce_scatter": lambda i, c: i == c, "reduce": lambda i, _: i == s.root}.get(s.kind, lambda *_: True)
    return all(sorted(map(str, state[at])) == sorted(map(str, wanted[at[1]])) for at in state if cells(*at))


@FEW
@given(
    kind=st.sampled_from(KINDS), algorithm=st.sampled_from(["ring", "rows_columns", "tree"]),
    shape=st.sampled_from([(1, 3), (2, 2), (2, 3), (3, 3)]), seed=st.integers(0, 10**6), faults=st.integers(0, 2),
)  # fmt: skip
def test_verdicts_are_those_of_lists_of_contributions(kind, algorithm, shape, seed, faults):
    schedule, rng = build(kind, algorithm, *shape), np.random.default_rng(seed)
    for _ in range(faults):
        at = int(rng.integers(len(schedule.phase)))
        name = str(rng.choice(["src", "dst", "chunk_lo", "chunk_hi", "reduce"]))
        column = getattr(schedule, name).copy()
        if name == "reduce":
            column[at] = ~column[at]
        else:
            column[at] = rng.integers(schedule.n_chunks + 1 if "chunk" in name else schedule.n_participants)
        schedule = dataclasses.replace(schedule, **{name: column})
    s = schedule
    fits = (s.src != s.dst).all() and (s.chunk_lo < s.chunk_hi).all() and (s.chunk_lo < s.n_chunks).all()
    sound = bool(fits) and plain_verdict(schedule)
    assert sound or faults
    if sound:
        verify_schedule(schedule)
    else:
        with pytest.raises(ScheduleError):
            verify_schedule(schedule)


def by_hand(*, again: bool) -> Schedule:
    """All-reduce of 3 participants in 2 chunks, which participant 2 sends and receives only both at once.

    The first time it receives them, chunk 1 lacks the contribution of participant 1; `again`: there is a second time.
    """
    rows = [
        (0, 1, 0, 0, 1, True), (1, 2, 0, 0, 2, True), (2, 0, 2, 0, 2, False), (3, 1, 0, 1, 2, True),
        (4, 0, 1, 0, 2, False), *([(5, 0, 2, 0, 2, False)] if again else []),
    ]  # fmt: skip
    *ends, reduce = (np.array(column) for column in zip(*rows, strict=True))
    columns = [column.astype(np.int32) for column in ends]
    return Schedule("all_reduce", "hand", (1, 3), np.arange(3, dtype=np.int32), -1, 2, *columns, reduce)


def test_what_differs_within_one_transfer_is_followed_chunk_by_chunk():
    verify_schedule(by_hand(again=True))
    with pytest.raises(
        ScheduleError, match=r"participant 2 ends with the contribution of participant 1 0 times .* on chunk 1"
    ):
        verify_schedule(by_hand(again=False))


def test_an_all_gather_in_which_nobody_owns_a_chunk():
    schedule = build("all_gather", "ring", 1, 3)
    with pytest.raises(ScheduleError, match="all_gather: chunk 3 belongs to none of 3 participants"):
        verify_schedule(dataclasses.replace(schedule, n_chunks=4))


def test_pieces_are_few():
    """On a grid of R x C with R C chunks, rows and columns touch about R + C pieces a device."""
    schedule = build("all_reduce", "rows_columns", 12, 10)
    src, lo, hi = (column.astype(np.int64) for column in (schedule.src, schedule.chunk_lo, schedule.chunk_hi))
    cut = pieces(120, 120, [(src, lo, hi)])
    assert cut.n_pieces <= 120 * (12 + 10 + 1)
    assert single_chunks(120, 120).n_pieces == 120 * 121


def test_a_program_that_was_verified_alone_is_checked_for_its_result(monkeypatch):
    """`collective_program` leaves the check of the schedule to `verify`, so that must find a wrong one."""
    mesh = flatten(System.grid(rows=2, cols=3, bandwidth="50 GB/s", latency="500 ns"))

    def broken(*arguments, verified, **more):
        assert not verified
        schedule = build(*arguments, **more)
        return dataclasses.replace(schedule, reduce=np.zeros_like(schedule.reduce))

    verify(collective_program("all_reduce", "ring", mesh, 600))
    monkeypatch.setattr("meshemu.collectives.whole_mesh.build", broken)
    with pytest.raises(ScheduleError, match="collective 0 'all_reduce ring'"):
        collective_program("all_reduce", "ring", mesh, 600)
