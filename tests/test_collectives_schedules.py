"""Every builder does what its kind says, on every shape; and the checker notices when a schedule does not."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import ALGORITHMS, KINDS, Schedule, build, dilation, ring_order, verify_schedule
from meshemu.errors import InputError, ScheduleError

ROOTED = ("broadcast", "reduce")


def xy_links(order: np.ndarray, cols: int) -> Counter[tuple[int, int]]:
    """How many ring edges use each directed link under XY routing."""
    used: Counter[tuple[int, int]] = Counter()
    for here, there in zip(order.tolist(), np.roll(order, -1).tolist(), strict=True):
        while here != there:
            east = there % cols - here % cols
            step = int(np.sign(east)) if east else int(np.sign(there - here)) * cols
            used[here, here + step] += 1
            here += step
    return used


@pytest.mark.parametrize("rows", range(1, 12))
def test_ring_order_visits_everyone_without_congestion(rows: int) -> None:
    for cols in range(1, 12):
        order = ring_order(rows, cols)
        assert sorted(order.tolist()) == list(range(rows * cols))
        assert max(xy_links(order, cols).values(), default=0) == (rows * cols > 1)
        if min(rows, cols) > 1:
            assert dilation(order, cols) == 1 + rows * cols % 2
            lengths = sum(xy_links(order, cols).values())
            assert lengths == rows * cols + rows * cols % 2, "exactly one edge of two hops if both sizes are odd"
        else:
            assert dilation(order, cols) == min(rows * cols - 1, 2) or rows > 1


def test_ring_order_examples() -> None:
    assert ring_order(1, 7).tolist() == [0, 2, 4, 6, 5, 3, 1]
    assert ring_order(3, 3).tolist() == [0, 1, 4, 3, 6, 7, 8, 5, 2]
    assert ring_order(3, 3, absent=[4, 8]).tolist() == [0, 1, 3, 6, 7, 5, 2]
    assert dilation(ring_order(3, 3, absent=[4, 8]), 3) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_schedules_up_to_7x7(kind: str, algorithm: str) -> None:
    for rows in range(1, 8):
        for cols in range(1, 8):
            schedule = build(kind, algorithm, rows, cols)
            assert replayed(schedule), f"{rows} x {cols}"


@pytest.mark.parametrize("kind", ROOTED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_root_and_number_of_chunks(kind: str, algorithm: str) -> None:
    for rows, cols in ((1, 1), (1, 4), (3, 1), (2, 2), (3, 3), (3, 4)):
        for root in range(rows * cols):
            for n_chunks in (1, 2, 5):
                schedule = build(kind, algorithm, rows, cols, root=root, n_chunks=n_chunks)
                assert schedule.root == root and schedule.n_chunks == n_chunks
                assert len(schedule.src) == (rows * cols - 1) * n_chunks
                assert replayed(schedule)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_absent_positions(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    positions = st.integers(0, rows * cols - 1)
    absent = data.draw(st.sets(positions, max_size=max(0, rows * cols - 1)))
    kind = data.draw(st.sampled_from(KINDS))
    ring = build(kind, "ring", rows, cols, absent=absent)
    assert ring.position.tolist() == [p for p in range(rows * cols) if p not in absent]
    assert replayed(ring)
    if absent:
        with pytest.raises(InputError, match=rf"position {min(absent)} .* is absent"):
            build(kind, "rows_columns", rows, cols, absent=absent)
    try:
        tree = build(kind, "tree", rows, cols, absent=absent)
    except InputError as error:
        assert "cut" in str(error)
        return
    assert replayed(tree)
    row, col = np.divmod(tree.position, cols)
    hops = np.abs(row[tree.src] - row[tree.dst]) + np.abs(col[tree.src] - col[tree.dst])
    assert (hops == 1).all(), "a tree is made of grid neighbours"


def test_tree_refuses_a_grid_in_two_parts() -> None:
    with pytest.raises(InputError, match=r"cut \(row 0, column 2\) off from \(row 0, column 0\)"):
        build("broadcast", "tree", 1, 3, absent=[1])


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (3, 3), (4, 5), (1, 6)])
def test_all_reduce_moves_as_few_bytes_as_possible(rows: int, cols: int) -> None:
    n = rows * cols
    for algorithm in ("ring", "rows_columns"):
        schedule = build("all_reduce", algorithm, rows, cols)
        sent = np.bincount(schedule.src, weights=schedule.chunk_hi - schedule.chunk_lo, minlength=n)
        assert (sent == 2 * (n - 1)).all(), "2 (n - 1) / n of the buffer out of every device"
    ring, lines = (build("all_reduce", name, rows, cols) for name in ("ring", "rows_columns"))
    assert len(ring.src) == 2 * n * (n - 1) and ring.phase[-1] == 2 * (n - 1) - 1
    assert len(lines.src) == 2 * n * (rows + cols - 2) and lines.phase[-1] == 2 * (rows + cols - 2) - 1


def test_tree_all_reduce_goes_to_the_middle_and_back() -> None:
    schedule = build("all_reduce", "tree", 5, 5)
    assert len(schedule.src) == 2 * 24 and schedule.phase[-1] == 7 and schedule.n_chunks == 1
    up = schedule.reduce
    assert set(schedule.dst[up & (schedule.phase == 3)].tolist()) == {12}
    assert (schedule.src[up] // 5 == schedule.dst[up] // 5).sum() == 20, "rows first"
    pipelined = build("all_reduce", "tree", 5, 5, n_chunks=6)
    assert pipelined.phase[-1] == 7 + 5, "chunks overlap, reduction and broadcast too"


FIELDS = ("phase", "src", "dst", "chunk_lo", "chunk_hi", "reduce", "tree")


def fields(schedule: Schedule) -> dict[str, np.ndarray]:
    return {name: getattr(schedule, name) for name in FIELDS if getattr(schedule, name) is not None}


def without(schedule: Schedule, index: int) -> Schedule:
    return dataclasses.replace(schedule, **{name: np.delete(at, index) for name, at in fields(schedule).items()})


def twice(schedule: Schedule, index: int) -> Schedule:
    return dataclasses.replace(
        schedule, **{name: np.insert(at, index, at[index]) for name, at in fields(schedule).items()}
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_lost_or_repeated_transfer_is_noticed(kind: str, algorithm: str) -> None:
    schedule = build(kind, algorithm, 3, 3)
    for index in range(len(schedule.src)):
        with pytest.raises(ScheduleError, match="participant"):
            verify_schedule(without(schedule, index))
        with pytest.raises(ScheduleError, match="participant"):
            verify_schedule(twice(schedule, index))


def test_the_message_names_participant_chunk_contribution_and_phase() -> None:
    schedule = build("all_reduce", "ring", 1, 3)
    index = int(np.flatnonzero((schedule.phase == 0) & (schedule.src == 0))[0])
    with pytest.raises(ScheduleError) as caught:
        verify_schedule(without(schedule, index))
    assert str(caught.value) == (
        "all_reduce: participant 0 ends with the contribution of participant 0 0 times instead of 1 on chunk 1; "
        "last written by the transfer of chunks 1:2 from participant 1 to participant 0 in phase 2"
    )
    swapped = dataclasses.replace(schedule, phase=schedule.phase[::-1].copy())
    with pytest.raises(ScheduleError, match="not sorted by phase"):
        verify_schedule(swapped)
    with pytest.raises(ScheduleError, match="does not fit 3 participants"):
        verify_schedule(dataclasses.replace(schedule, dst=schedule.dst + 1))


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="'all_sum'; known: all_reduce, reduce_scatter"):
        build("all_sum", "ring", 2, 2)
    with pytest.raises(InputError, match="'star'; known: ring, rows_columns, tree"):
        build("all_reduce", "star", 2, 2)
    with pytest.raises(InputError, match="one per participant = 4, not 3"):
        build("all_reduce", "ring", 2, 2, n_chunks=3)
    with pytest.raises(InputError, match="at least 1, not 0"):
        build("broadcast", "ring", 2, 2, n_chunks=0)
    with pytest.raises(InputError, match="root 4 of broadcast"):
        build("broadcast", "ring", 2, 2, root=4)
    with pytest.raises(InputError, match="all_reduce has no root"):
        build("all_reduce", "ring", 2, 2, root=0)
    with pytest.raises(InputError, match="at least 1 x 1, not 0 x 2"):
        build("all_reduce", "ring", 0, 2)
    with pytest.raises(InputError, match="absent position 4 lies outside"):
        build("all_reduce", "ring", 2, 2, absent=[4])
    with pytest.raises(InputError, match="no participant"):
        build("all_reduce", "ring", 1, 1, absent=[0])


def replayed(schedule: Schedule) -> bool:
    """An independent replay on Counters, one transfer at a time."""
    n = schedule.n_participants
    state = [[Counter([i] if holds(schedule, i, c) else [f"junk {i}"]) for c in range(schedule.n_chunks)]
             for i in range(n)]
    for phase in np.unique(schedule.phase).tolist():
        rows = np.flatnonzero(schedule.phase == phase)
        moved = [
            (dst, chunk, reduce, state[src][chunk].copy())
            for src, dst, lo, hi, reduce in zip(
                *(getattr(schedule, name)[rows].tolist() for name in FIELDS[1:6]), strict=True
            )
            for chunk in range(lo, hi)
        ]
        for dst, chunk, reduce, value in moved:
            state[dst][chunk] = state[dst][chunk] + value if reduce else value
    everyone = Counter(range(n))
    for i in range(n):
        for c in range(schedule.n_chunks):
            wanted = {
                "all_reduce": everyone, "reduce_scatter": everyone if i == c else None, "all_gather": Counter([c]),
                "broadcast": Counter([schedule.root]), "reduce": everyone if i == schedule.root else None,
            }[schedule.kind]  # fmt: skip
            if wanted is not None and state[i][c] != wanted:
                return False
    return True


def holds(schedule: Schedule, participant: int, chunk: int) -> bool:
    """Whether a participant has defined data at the start."""
    if schedule.kind == "all_gather":
        return participant == chunk
    return schedule.kind != "broadcast" or participant == schedule.root
