"""Layouts, the pieces of a fetch, and plans: index arithmetic alone."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import captured, classes, grid, images, partitioned
from torch import nn
from torch.nn import functional as F

from meshemu.errors import InputError, PlanError
from meshemu.mesh import flatten
from meshemu.workload.layout import Layout, Split, even_ranges, gathered_axes
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import Plan
from meshemu.workload.viewing import viewed_split
from meshemu.workload.windows import pieces


def plan_of(rows: int, cols: int) -> Plan:
    return make_plan("spatial", flatten(grid(rows, cols)))


@given(st.integers(0, 30), st.integers(1, 12))
def test_even_ranges_tile(size: int, parts: int) -> None:
    ranges = even_ranges(size, parts)
    lengths = [hi - lo for lo, hi in ranges]
    assert Split(0, ("h",), ranges).tiles(size)
    assert max(lengths) - min(lengths) <= 1
    assert all(abs(hi - size * (i + 1) / parts) <= 1 / 2 for i, (_, hi) in enumerate(ranges))


@pytest.mark.parametrize("ranges", [((0, 2), (3, 5)), ((0, 3), (2, 5)), ((0, 2), (2, 4)), ((1, 3), (3, 5))])
def test_gaps_overlaps_and_short_ranges_do_not_tile(ranges: Any) -> None:
    assert not Split(0, ("h",), ranges).tiles(5)


def test_a_layout_knows_its_blocks() -> None:
    layout = Layout((Split(3, ("w",), even_ranges(4, 3)), Split(2, ("h",), ((0, 5), (5, 5)))))
    assert [s.dim for s in layout.splits] == [2, 3]
    assert layout.axes == ("h", "w")
    plan = plan_of(2, 3)  # position = h * 3 + w
    assert layout.local_shape((7, 8, 5, 4), plan.at(1)) == (7, 8, 5, 2)
    assert layout.empty(plan.at(3))
    assert not layout.empty(plan.at(2))
    assert not Layout().empty(plan.at(3))


@pytest.mark.parametrize("splits", [("h", "h"), ("h", "w")])
def test_an_axis_or_a_dim_is_used_once(splits: tuple[str, str]) -> None:
    dims = (0, 1) if splits[0] == splits[1] else (0, 0)
    with pytest.raises(AssertionError, match="twice"):
        Layout(tuple(Split(d, (axis,), ((0, 1), (1, 2))) for d, axis in zip(dims, splits, strict=True)))


@st.composite
def fetches(draw: Any) -> tuple[tuple[int, int], int, int, Layout, Layout]:
    """(shape, rows, cols, a partition, any windows)."""
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    axes = {"h": rows, "w": cols}

    def partition(dim: int, axis: str) -> Split:
        cuts = sorted(draw(st.lists(st.integers(0, shape[dim]), min_size=axes[axis] - 1, max_size=axes[axis] - 1)))
        bounds = [0, *cuts, shape[dim]]
        return Split(dim, (axis,), tuple(pairwise(bounds)))

    def window(dim: int, axis: str) -> Split:
        starts = [draw(st.integers(-3, shape[dim] + 2)) for _ in range(axes[axis])]
        return Split(dim, (axis,), tuple((lo, lo + draw(st.integers(0, 6))) for lo in starts))

    def layout(split_of: Any) -> Layout:
        order = draw(st.sampled_from([("h", "w"), ("w", "h")]))
        return Layout(tuple(split_of(dim, axis) for dim, axis in enumerate(order) if draw(st.booleans())))

    return shape, rows, cols, layout(partition), layout(window)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(fetches())
def test_each_wanted_element_comes_once_from_a_holder(case: Any) -> None:
    shape, rows, cols, held, wanted = case
    plan = plan_of(rows, cols)
    boxes = pieces(shape, held, wanted, plan)
    count = np.zeros((plan.n_positions, *shape), int)
    for dst, src, lo, hi in zip(boxes.dst, boxes.src, boxes.lo, boxes.hi, strict=True):
        box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
        count[dst][box] += 1
        for split in held.splits:
            start, stop = split.at(plan.at(int(src)))
            assert start <= lo[split.dim] < hi[split.dim] <= stop
    for position in range(plan.n_positions):
        inside = np.ones(shape, int)
        for split in wanted.splits:
            index = np.arange(shape[split.dim])
            start, stop = split.at(plan.at(int(position)))
            along = ((index >= start) & (index < stop)).astype(int)
            inside *= along[:, None] if split.dim == 0 else along[None, :]
        np.testing.assert_array_equal(count[position], inside)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(fetches())
def test_who_holds_a_box_takes_its_own_and_rows_are_sorted(case: Any) -> None:
    shape, rows, cols, held, wanted = case
    plan = plan_of(rows, cols)
    boxes = pieces(shape, held, wanted, plan)
    assert [*zip(boxes.dst, boxes.src, strict=True)] == sorted(zip(boxes.dst, boxes.src, strict=True))
    assert (boxes.n_elements > 0).all()
    for dst, src, lo in zip(boxes.dst, boxes.src, boxes.lo, strict=True):
        own = [(lo[split.dim], *split.at(plan.at(int(dst)))) for split in held.splits]
        holds = all(start <= index < stop for index, start, stop in own)
        assert not holds or src == dst


def cut(*axes: str, ranges: Any, segments: int = 1, dim: int = 0) -> Split:
    return Split(dim, axes, ranges, segments)


HALVES = ((0, 6), (6, 12))
QUARTERS = ((0, 3), (3, 6), (6, 9), (9, 12))


@pytest.mark.parametrize(
    "blocks, whole, axes",
    [
        ([cut("h", ranges=HALVES)], [], ("h",)),
        ([cut("h", "w", ranges=QUARTERS)], [], ("h", "w")),
        ([cut("h", "w", ranges=QUARTERS)], [cut("h", ranges=HALVES)], ("w",)),
        ([cut("h", ranges=HALVES), cut("w", ranges=((0, 2), (2, 4)), dim=1)], [cut("h", ranges=HALVES)], ("w",)),
        ([cut("h", ranges=HALVES), cut("w", ranges=((0, 2), (2, 4)), dim=1)], [], ("h", "w")),
        ([cut("h", ranges=((0, 3), (3, 6)), segments=2)], [], ("h",)),
        ([cut("h", ranges=HALVES)], [cut("h", ranges=HALVES)], ()),  # nothing to pool
        ([cut("h", "w", ranges=QUARTERS)], [cut("w", ranges=HALVES)], ()),  # not in the order of the axes
        ([cut("h", "w", "data", ranges=even_ranges(12, 12))], [cut("w", "h", ranges=QUARTERS)], ()),  # nor here
        ([cut("h", ranges=HALVES)], [cut("h", ranges=((0, 8), (8, 12)))], ()),  # the same axis cut elsewhere
        ([cut("h", "w", ranges=QUARTERS)], [cut("h", ranges=((0, 5), (5, 12)))], ()),  # a block of two halves
        ([cut("h", "w", ranges=((0, 3), (3, 6)) * 2, segments=2)], [cut("h", ranges=HALVES)], ()),
        ([], [cut("h", ranges=HALVES)], ()),  # finer, not coarser
        ([cut("h", ranges=((0, 7), (5, 12)))], [], ()),  # windows
    ],
)
def test_axes_to_pool_over_are_those_that_only_the_blocks_are_cut_over(
    blocks: list[Split], whole: list[Split], axes: tuple[str, ...]
) -> None:
    assert gathered_axes((12, 4), Layout(tuple(blocks)), Layout(tuple(whole))) == axes


def test_a_plan_places_its_positions_row_by_row() -> None:
    mesh = flatten(grid(3, 4))
    plan = make_plan({"spatial": [2, 3]}, mesh)
    assert plan.devices == (0, 1, 2, 4, 5, 6)
    assert plan.coords["h"].tolist() == [0, 0, 0, 1, 1, 1]
    columns, shape, _ = plan.groups(("h",))
    assert columns.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert shape == (2, 1)
    assert plan.groups(("w",))[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert plan.groups(("w", "h"))[0].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert make_plan({"data": 6}, mesh).grid == (2, 3)


def test_axes_of_a_product_nest() -> None:
    """Spatial within a tile, data across tiles: each replica's devices are one block of the mesh."""
    plan = make_plan({"spatial": [2, 2], "data": 6}, flatten(grid(4, 6)))
    assert plan.names == ("data", "h", "w")
    assert plan.devices[:4] == (0, 1, 6, 7)  # replica 0
    assert plan.devices[4:8] == (2, 3, 8, 9)  # replica 1, to the east
    assert plan.devices[12:16] == (12, 13, 18, 19)  # replica 3, in the second row of blocks
    members, shape, _ = plan.groups(("data",))
    assert shape == (2, 3)
    assert np.asarray(plan.devices)[members[0]].tolist() == [0, 2, 4, 12, 14, 16]
    replicas = [np.asarray(plan.devices)[m].tolist() for m in plan.groups(("h", "w"))[0][:2]]
    assert replicas == [[0, 1, 6, 7], [2, 3, 8, 9]]
    everyone, shape, _ = plan.groups(plan.names)
    assert shape == (4, 6)
    assert np.asarray(plan.devices)[everyone[0]].tolist() == list(range(24))
    assert plan.index(("data", "w")).tolist() == (plan.coords["data"] * 2 + plan.coords["w"]).tolist()


@pytest.mark.parametrize("spec", [{"data": [1, 2], "shard": [1, 3]}, {"data": [2, 1], "shard": [3, 1]}], ids=str)
def test_members_of_a_group_are_in_the_order_of_the_mesh(spec: Any) -> None:
    plan = make_plan(spec, flatten(grid(6, 6)))
    (members,), _, _ = plan.groups(("data", "shard"))
    devices = np.asarray(plan.devices)[members]
    assert devices.tolist() == sorted(plan.devices)


def test_a_data_plan_leaves_dead_devices_out() -> None:
    mesh = flatten(grid(2, 3).override({"dead": [[0, 1]]}))
    plan = make_plan("data", mesh)
    assert plan.devices == (0, 2, 3, 4, 5)
    assert plan.absent == (1,)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("diagonal", "'diagonal' is unknown; a plan is one of"),
        ({"data": 2, "spatal": [1, 2]}, r"plan\.spatal is unknown: did you mean 'spatial'\?"),
        ({"pipeline": 2, "schedule": "gpipe"}, r"plan\.schedule is unknown: valid are pipeline, .*, order, stages"),
        ({"pipeline": 2, "zer": 2}, r"plan\.zer is unknown: did you mean 'zero'\?"),
        ({"data": 4, "spatial": [1, 2]}, r"larger than the mesh: 4 x 2 = 8 > 6 live devices"),
        ({"data": 3, "spatial": [2, 1], "tensor": 2}, "3 x 2 x 2 = 12 > 6"),
        ({"data": [3, 1], "spatial": [1, 2]}, "larger than the mesh of 2 x 3 devices: 3 x 2"),
        ({"data": [2, 0]}, "positive integer or"),
        ({}, "is unknown"),
        ({"spatial": [3, 3]}, r"plan\.spatial = \[3, 3\] is larger than the mesh of 2 x 3 devices"),
        ({"spatial": [2]}, r"two positive integers \[rows, cols\], not \[2\]"),
        ({"spatial": [2, 0]}, "two positive integers"),
        ({"data": 7}, r"plan\.data = 7 is larger than the mesh: 7 > 6 live devices"),
        ({"data": 0}, "positive integer or .*, not 0"),
        ({"data": True}, "positive integer or .*, not True"),
        ({"data": None, "spatial": [1, 2]}, "positive integer or .*, not None"),
        ({"data": 5}, r"plan\.data = 5 is no rows x cols rectangle"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(spec, flatten(grid(2, 3)))
    assert "\n" not in str(caught.value)
    assert issubclass(PlanError, InputError)


def test_a_spatial_plan_over_a_dead_device_is_refused() -> None:
    with pytest.raises(PlanError, match="covers device 4, which is dead"):
        make_plan("spatial", flatten(grid(2, 3).override({"dead": [[1, 1]]})))


def test_a_batch_smaller_than_the_plan_is_refused() -> None:
    graph = captured(nn.Linear(6, 5).double(), (images(3, 6), classes(3)), F.cross_entropy)
    with pytest.raises(PlanError, match="batch size 3 < 4 devices"):
        partitioned(graph, "data", 2, 2)


def held_by(split: Split, shape: tuple[int, ...], coordinate: int) -> set[int]:
    """Flat indices of what a coordinate holds of a tensor that is cut in one dim."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    lo, hi = split.ranges[coordinate]
    size = shape[split.dim] // split.segments
    inside = (np.arange(shape[split.dim]) % size >= lo) & (np.arange(shape[split.dim]) % size < hi)
    return set(np.compress(inside, index, axis=split.dim).ravel().tolist())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_view_keeps_a_cut_where_it_says_so(data: Any) -> None:
    """The same elements, whatever the shapes; and it does say so where whole leading digits are cut."""
    digits = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = sorted({0, len(digits), *data.draw(st.lists(st.integers(0, len(digits)), max_size=3))})
        return tuple(int(np.prod(digits[a:b])) for a, b in pairwise(cuts))

    before, after = grouped(), grouped()
    dim = data.draw(st.integers(0, len(before) - 1))
    segments = data.draw(st.sampled_from([n for n in range(1, before[dim] + 1) if before[dim] % n == 0]))
    size = before[dim] // segments
    cut = data.draw(st.integers(0, size))
    split = Split(dim, ("tensor",), ((0, cut), (cut, size)), segments)
    moved = viewed_split(split, before, after)
    if moved is None:
        assert after != before or 1 in before or size <= 1
        return
    assert moved.tiles(after[moved.dim])
    for coordinate in (0, 1):
        assert held_by(split, before, coordinate) == held_by(moved, after, coordinate)


def test_heads_of_a_fused_projection_are_cut_within_segments() -> None:
    fused = Split(2, ("tensor",), ((0, 8), (8, 16)), segments=3)
    heads = viewed_split(fused, (2, 5, 48), (2, 5, 3, 4, 4))
    assert heads == Split(3, ("tensor",), ((0, 2), (2, 4)))
    assert viewed_split(heads, (2, 5, 3, 4, 4), (2, 5, 48)) == fused
    merged = viewed_split(Split(1, ("tensor",), ((0, 2), (2, 4))), (3, 4, 5, 6), (12, 5, 6))
    assert merged == Split(0, ("tensor",), ((0, 2), (2, 4)), segments=3)


@pytest.mark.parametrize("other", [None, Split(0, ("w",), ((0, 4), (4, 6))), Split(1, ("w",), ((0, 3), (3, 4)))])
def test_pieces_of_what_is_cut_within_segments(other: Split | None) -> None:
    """Each wanted element of a (6, 4) tensor comes once, from where it lies, in unfolded indices."""
    plan, held = plan_of(2, 2), Layout((Split(0, ("h",), ((0, 1), (1, 3)), segments=2),))
    wanted = Layout(() if other is None else (other,)) if other is None or other.dim else Layout()
    boxes = pieces((6, 4), held, wanted, plan)
    assert boxes.lo.shape[1] == 3
    got = {position: set() for position in range(4)}  # type: ignore[var-annotated]
    for dst, src, lo, hi in zip(boxes.dst, boxes.src, boxes.lo, boxes.hi, strict=True):
        box = np.arange(24).reshape(2, 3, 4)[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))].ravel().tolist()
        assert set(box) <= held_by(held.splits[0], (6, 4), int(plan.coords["h"][src]))
        assert not got[int(dst)] & set(box)
        got[int(dst)] |= set(box)
    for position, elements in got.items():
        column = int(plan.coords["w"][position])
        full = held_by(wanted.splits[0], (6, 4), column) if wanted.splits else set(range(24))
        assert elements == full
