"""The plans that `meshemu tune` considers for a mesh and a batch: what is cut into how many parts, and where."""

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import PlanError
from meshemu.mesh import Mesh
from meshemu.workload.candidates import inner_block
from meshemu.workload.placement import make_plan

__all__ = ["AXES", "extent", "n_devices", "placements", "plan_tables", "sharded"]

AXES = ("pipeline", "data", "shard", "tensor", "spatial")
"""What a plan's table may cut, from the outermost axis to the innermost."""

MOST_TENSOR = 25
MOST_STAGES = 8
MOST_PLACEMENTS = 16
THINNED = 0.8
"""A number of replicas is left out that is not below so much of the next larger one: it would hardly differ."""

Table = dict[str, Any]
Lying = NDArray[np.int64]
"""int64[n + 1], number of blocks -> least rows + columns of blocks of a live rectangle in the north-west corner that
they fill; NOWHERE where they fill none.
"""
NOWHERE = 1 << 40


def extent(value: Any) -> int:
    """Devices along an axis: a number, or the product of [rows, cols]."""
    return value if isinstance(value, int) else prod(value)


def n_devices(table: Mapping[str, Any]) -> int:
    """Devices that take part in a plan."""
    return prod(extent(table[kind]) for kind in AXES if kind in table)


def plan_tables(
    mesh: Mesh, batch_size: int, *, images: bool, pipelines: bool, micro_batches: int = 1
) -> list[Table]:
    """Plans as tables that fit the mesh and the batch, without repetition; placements are left to `make_plan`.

    Replicas (of each number of samples a device, the squarest), times tensor or spatial cuts, times pipeline stages
    with about once, twice and four times as many micro-batches. What `sharded` makes of them is left out. images:
    whether there are any to cut. pipelines: whether they compute the same. micro_batches: those of the step, if more
    than 1.
    """
    found: dict[str, Table] = {}
    n_alive = int(np.count_nonzero(mesh.alive))
    for inner in _inner(mesh, n_alive, images=images):
        lying = _lying(mesh, tuple(inner.get("spatial", (1, 1))))
        for stages in range(1, (MOST_STAGES if pipelines else 1) + 1):
            for count in _micro_batches(stages, batch_size, micro_batches):
                flow = {} if stages == 1 else {"pipeline": stages, "micro_batches": count}
                for table in _replicated({**flow, **inner}, lying, n_alive, batch_size // count):
                    found.setdefault(repr(sorted(table.items())), table)
    return list(found.values())


def sharded(table: Mapping[str, Any], zero: int | None) -> Table:
    """The plan with the parameters of its replicas sharded at this ZeRO level, or whole (None)."""
    kind = "data" if zero is None else "shard"
    renamed = {kind if name in ("data", "shard") else name: value for name, value in table.items() if name != "zero"}
    return renamed if zero is None else {**renamed, "zero": zero}


def placements(table: Mapping[str, Any], mesh: Mesh) -> list[Table]:
    """The same plan laid out otherwise: with rows and columns for each axis that has a number, where that fits.

    The layouts that are least far across come first, at most MOST_PLACEMENTS; that of `make_plan` is not among them.
    """
    kinds = [kind for kind in AXES if kind in table]
    usual = _shapes(table, mesh)
    found: dict[tuple[tuple[int, int], ...], Table] = {}
    for shapes in product(*(_rectangles(table[kind]) for kind in kinds)):
        rows, cols = (prod(side) for side in zip(*shapes, strict=True))
        if shapes != usual and rows <= mesh.rows and cols <= mesh.cols and mesh.alive.reshape(
            mesh.rows, mesh.cols
        )[:rows, :cols].all():
            found[shapes] = {**table, **{kind: list(shape) for kind, shape in zip(kinds, shapes, strict=True)}}
    return [found[shapes] for shapes in sorted(found, key=_across)][:MOST_PLACEMENTS]


def _shapes(table: Mapping[str, Any], mesh: Mesh) -> tuple[tuple[int, int], ...]:
    """(rows, cols) of each axis as `make_plan` lays it out; () where it does not."""
    try:
        axes = make_plan(table, mesh).axes
    except PlanError:
        return ()
    shapes = [(axis.rows, axis.cols) for axis in axes if axis.name not in ("h", "w")]
    return (*shapes, tuple(table["spatial"])) if "spatial" in table else tuple(shapes)


def _across(shapes: tuple[tuple[int, int], ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Hops between the farthest members of a group, added up over the axes; the innermost are given last."""
    hops, rows, cols = 0, 1, 1
    for own_rows, own_cols in reversed(shapes):
        hops += (own_rows - 1) * rows + (own_cols - 1) * cols
        rows, cols = rows * own_rows, cols * own_cols
    return hops, shapes


def _rectangles(value: Any) -> list[tuple[int, int]]:
    if not isinstance(value, int):
        return [(value[0], value[1])]
    return [(rows, value // rows) for rows in range(1, value + 1) if value % rows == 0]


def _lying(mesh: Mesh, block: tuple[int, int]) -> Lying:
    """How so many blocks can lie: a divisor of a product is a product of divisors, so any rectangle is a nest."""
    alive = mesh.alive.reshape(mesh.rows, mesh.cols)
    room = np.logical_and.accumulate(np.logical_and.accumulate(alive, axis=0), axis=1)
    rows, cols = (index + 1 for index in np.nonzero(room[block[0] - 1 :: block[0], block[1] - 1 :: block[1]]))
    across = np.full(mesh.n_devices + 1, NOWHERE, np.int64)
    np.minimum.at(across, rows * cols, rows + cols)
    return across


def _inner(mesh: Mesh, n_alive: int, *, images: bool) -> Iterator[Table]:
    """Cuts within a replica: none; features over numbers that divide the mesh and over powers of 2; images."""
    yield {}
    for size in range(2, min(MOST_TENSOR, n_alive) + 1):
        if n_alive % size == 0 or size & (size - 1) == 0:
            yield {"tensor": size}
    rows, cols = inner_block(mesh)
    for block in dict.fromkeys([(rows, cols), (1, cols), (rows, 1), (2, 2), (1, 2), (mesh.rows, mesh.cols)]):
        if images and prod(block) > 1:
            yield {"spatial": list(block)}


def _micro_batches(stages: int, batch_size: int, given: int) -> list[int]:
    """How many micro-batches may pass through so many stages: the next divisors of the batch from 1, 2 and 4 each."""
    if stages == 1:
        return [1]
    if given > 1:
        return [given]
    divisors = [n for n in range(2, batch_size + 1) if batch_size % n == 0]
    nearest = (next((n for n in divisors if n >= times * stages), None) for times in (1, 2, 4))
    return list(dict.fromkeys(n for n in nearest if n is not None and n <= 8 * stages))


def _replicated(inner: Table, lying: Lying, n_alive: int, samples: int) -> Iterator[Table]:
    """Plans with replicas for so many samples a pass, and the one without; last of the uncut ones, one device alone."""
    others = n_devices({kind: n for kind, n in inner.items() if kind != "spatial"})
    # One axis over all that is alive may leave out what is dead.
    whole = len(inner) == 1 and "spatial" not in inner and others == n_alive
    if inner and others < len(lying) and (lying[others] < NOWHERE or whole):
        yield dict(inner)
    counts = _counts(lying[::others][: samples + 1], samples)
    if not inner and 1 < n_alive <= samples and n_alive not in counts:
        counts = [n_alive, *counts]
    for count in _thinned(counts) if inner else [*counts, 1]:
        yield {**inner, "data": count}


def _counts(lying: Lying, samples: int) -> list[int]:
    """Numbers of replicas, the most first: for each number of samples a replica, that which lies squarest."""
    fitting = [n for n in range(2, len(lying)) if lying[n] < NOWHERE]
    best: dict[int, tuple[int, int]] = {}
    for n in fitting:
        share = -(-samples // n)
        best[share] = min(best.get(share, (NOWHERE, n)), (int(lying[n]), n))
    return sorted({n for _, n in best.values()} | set(fitting[-1:]), reverse=True)


def _thinned(counts: list[int]) -> list[int]:
    kept: list[int] = []
    for n in counts:
        if not kept or n <= THINNED * kept[-1]:
            kept.append(n)
    return kept
