"""The order of passes in a pipeline: legal, complete, as short and as frugal as its closed forms say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.workload.pipeline_order import ORDERS, Turn, stage_turns, turns

SHAPES = st.tuples(st.sampled_from(ORDERS), st.integers(1, 7), st.integers(1, 12))
FEW = settings(max_examples=60, derandomize=True, deadline=None)


def finish_times(order: str, n_stages: int, n_micro_batches: int, forward: int, backward: int) -> dict[Turn, int]:
    """When every turn ends if each stage takes its own in order and starts each as soon as it can."""
    end: dict[Turn, int] = {}
    free = [0] * n_stages
    for turn in turns(order, n_stages, n_micro_batches):
        stage, k = turn.stage, turn.micro_batch
        needed = [Turn(stage - 1, True, k)] if turn.forward else [Turn(stage, True, k), Turn(stage + 1, False, k)]
        ready = max((end[other] for other in needed if 0 <= other.stage < n_stages), default=0)
        end[turn] = free[stage] = max(ready, free[stage]) + (forward if turn.forward else backward)
    return end


@FEW
@given(SHAPES)
def test_every_pass_once_and_after_what_it_needs(shape: tuple[str, int, int]) -> None:
    order, n_stages, n = shape
    sequence = turns(order, n_stages, n)
    assert len(sequence) == len(set(sequence)) == 2 * n_stages * n
    place = {turn: i for i, turn in enumerate(sequence)}
    for stage in range(n_stages):
        mine = [turn for turn in sequence if turn.stage == stage]
        assert mine == stage_turns(order, stage, n_stages, n)
        for k in range(n):
            assert place[Turn(stage, True, k)] < place[Turn(stage, False, k)]
            if stage:
                assert place[Turn(stage - 1, True, k)] < place[Turn(stage, True, k)]
                assert place[Turn(stage, False, k)] < place[Turn(stage - 1, False, k)]
        for forward in (True, False):
            assert [t.micro_batch for t in mine if t.forward is forward] == list(range(n))


@FEW
@given(SHAPES, st.integers(1, 9), st.integers(1, 9))
def test_equal_stages_take_the_closed_form(shape: tuple[str, int, int], forward: int, backward: int) -> None:
    order, n_stages, n = shape
    end = finish_times(order, n_stages, n, forward, backward)
    assert max(end.values()) == (n + n_stages - 1) * (forward + backward)


@FEW
@given(SHAPES)
def test_micro_batches_kept_at_a_time(shape: tuple[str, int, int]) -> None:
    order, n_stages, n = shape
    for stage in range(n_stages):
        kept = most = 0
        for turn in stage_turns(order, stage, n_stages, n):
            kept += 1 if turn.forward else -1
            most = max(most, kept)
        assert kept == 0
        assert most == (n if order == "gpipe" else min(n, n_stages - stage))


def test_by_hand() -> None:
    short = ["".join(("FB"[not t.forward], str(t.micro_batch))) for t in stage_turns("1f1b", 1, 3, 4)]
    assert short == ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "B3"]
    assert turns("1f1b", 1, 2) == tuple(Turn(0, forward, k) for k in (0, 1) for forward in (True, False))
    assert [t.forward for t in stage_turns("gpipe", 0, 2, 2)] == [True, True, False, False]


def test_an_unknown_order() -> None:
    with pytest.raises(ValueError, match="'zigzag' is not one of 1f1b, gpipe"):
        turns("zigzag", 2, 2)
