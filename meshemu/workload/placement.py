"""Read a plan's specification and lay its axes out on the mesh as nested rectangles."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.config.spelling import suggestion
from meshemu.errors import PlanError
from meshemu.mesh import Mesh
from meshemu.workload.pipeline_order import ORDERS
from meshemu.workload.plan import PIPELINE, Axis, Plan

__all__ = ["make_plan"]

KINDS = (PIPELINE, "data", "shard", "tensor", "spatial")
"""What a specification may name, from the outermost axis to the innermost."""

CUTS = ("column", "row", "replicate")
"""How the weights of a module may be cut over "tensor": by what they put out, by what they take in, or not."""

OPTIONS = ("zero", "modules", "micro_batches", "order", "stages")
"""What may stand beside them."""

Extent = tuple[int, int]


def make_plan(spec: str | Mapping[str, Any], mesh: Mesh) -> Plan:
    """The plan that `spec` names: a kind for the whole mesh, or a table of kinds.

    "data", "spatial" ...; {"data": 25}; {"data": [2, 3], "spatial": [5, 5]}. A number of devices is laid out as the
    squarest rectangle that fits, innermost axis first; a pair gives its rows and columns. The rectangle of all axes
    lies in the north-west corner of the mesh. Beside "shard" a table may give {"zero": 1, 2 or 3}; beside "tensor",
    {"modules": {glob: "column", "row" or "replicate"}}; beside "pipeline", {"stages": [name of the module at which a
    stage begins, for all but the first]}, {"order": "1f1b" or "gpipe"} and {"micro_batches": n}.

    Raises PlanError for an unknown kind, for a plan that does not fit the mesh (with the equation), for one that
    covers a dead device (a single axis over all live devices leaves dead ones out), and for an option of no use.
    """
    entries: dict[str, Any] = {spec: None} if isinstance(spec, str) else dict(spec)
    zero, modules, flow = _zero(entries), _modules(entries), _flow(entries)
    plan = replace(_placed(spec, entries, mesh), zero=zero, modules=modules, **flow)
    if plan.stages and len(plan.stages) != plan.n_stages - 1:
        names = ", ".join(plan.stages)
        raise PlanError(
            f"plan.stages must name the first modules of all stages but the first: {plan.n_stages} stages need "
            f"{plan.n_stages - 1} names, not {len(plan.stages)} ({names})"
        )
    return plan


def _placed(spec: Any, entries: Mapping[str, Any], mesh: Mesh) -> Plan:
    if not entries or (isinstance(spec, str) and spec not in KINDS):
        raise PlanError(
            f"plan {spec!r} is unknown; a plan is one of {', '.join(KINDS)}, auto, or a table of several such as "
            "{data = 6, spatial = [5, 5]}"
        )
    for key in entries:
        if key not in KINDS:
            raise PlanError(f"plan.{key} is unknown: {suggestion(str(key), (*KINDS, *OPTIONS))}")
    kinds = [kind for kind in KINDS if kind in entries]
    if [*entries.values()] == [None]:
        return _whole_mesh(kinds[0], mesh)
    wanted = {kind: _extent(kind, entries[kind]) for kind in kinds}
    alive = np.flatnonzero(mesh.alive)
    if len(kinds) == 1 and wanted[kinds[0]] == len(alive):
        return _all_alive(kinds[0], mesh)
    return _nested(wanted, mesh)


def _zero(entries: dict[str, Any]) -> int:
    """Take the ZeRO level out of a specification; 3 unless it says otherwise."""
    level = entries.pop("zero", None)
    if level is None:
        return 3
    if level not in (1, 2, 3) or isinstance(level, bool):
        raise PlanError(f"plan.zero = {level!r} must be 1, 2 or 3")
    if "shard" not in entries:
        raise PlanError(f"plan.zero = {level} is of no use without the axis plan.shard")
    return int(level)


def _flow(entries: dict[str, Any]) -> dict[str, Any]:
    """Take what concerns the pipeline alone out of a specification."""
    given = {key: entries.pop(key, None) for key in ("micro_batches", "order", "stages")}
    flow = {key: value for key, value in given.items() if value is not None}
    for key, value in flow.items():
        if PIPELINE not in entries:
            raise PlanError(f"plan.{key} = {value!r} is of no use without the axis plan.{PIPELINE}")
    if "micro_batches" in flow and not _is_count(flow["micro_batches"]):
        raise PlanError(f"plan.micro_batches = {flow['micro_batches']!r} must be a positive integer")
    if flow.get("order", ORDERS[0]) not in ORDERS:
        raise PlanError(f"plan.order = {flow['order']!r} is not one of {', '.join(ORDERS)}")
    if "stages" in flow:
        names = flow["stages"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise PlanError(f"plan.stages must be a list of module names, not {names!r}")
        flow["stages"] = tuple(names)
    return flow


def _modules(entries: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Take the cuts of modules' weights out of a specification."""
    modules = entries.pop("modules", None)
    if not modules:
        return ()
    if "tensor" not in entries:
        raise PlanError("plan.modules is of no use without the axis plan.tensor")
    for glob, cut in modules.items():
        if cut not in CUTS:
            raise PlanError(f"plan.modules.{glob!r} = {cut!r} must be one of {', '.join(CUTS)}")
    return tuple(modules.items())


def _whole_mesh(kind: str, mesh: Mesh) -> Plan:
    if kind == "spatial":
        return _nested({kind: (mesh.rows, mesh.cols)}, mesh)
    return _all_alive(kind, mesh)


def _all_alive(kind: str, mesh: Mesh) -> Plan:
    """One axis over every live device, row by row; stages of a pipeline go to and fro, each next to the one before."""
    alive = np.flatnonzero(mesh.alive)
    if kind == PIPELINE:
        row, col = alive // mesh.cols, alive % mesh.cols
        alive = alive[np.lexsort((np.where(row % 2, -col, col), row))]
    absent = tuple(np.flatnonzero(~mesh.alive).tolist())
    return Plan((Axis(kind, len(alive), mesh.rows, mesh.cols),), tuple(alive.tolist()), absent)


def _extent(kind: str, value: Any) -> int | Extent:
    """A number of devices or (rows, cols)."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_count(n) for n in value):
        return value[0], value[1]
    if kind == "spatial":
        raise PlanError(f"plan.spatial must be two positive integers [rows, cols], not {value!r}")
    if not _is_count(value):
        raise PlanError(f"plan.{kind} must be a positive integer or [rows, cols], not {value!r}")
    return int(value)


def _nested(wanted: Mapping[str, int | Extent], mesh: Mesh) -> Plan:
    """The squarest nest that fits the mesh and covers live devices only."""
    _check_size(wanted, mesh)
    dead: int | None = None
    for nest in sorted(_nests(wanted, mesh), key=_squareness):
        axes = tuple(axis for kind, extent in zip(wanted, nest, strict=True) for axis in _axes(kind, extent))
        devices = _devices(axes, mesh)
        if mesh.alive[devices].all():
            return Plan(axes, tuple(devices.tolist()))
        dead = int(devices[~mesh.alive[devices]].min())
    text = _text(wanted)
    if dead is not None:
        raise PlanError(f"{text} covers device {dead}, which is dead ({mesh.place(dead)})")
    raise PlanError(
        f"{text} is no rows x cols rectangle of devices in the north-west corner of the {mesh.rows} x {mesh.cols} mesh"
    )


def _check_size(wanted: Mapping[str, int | Extent], mesh: Mesh) -> None:
    fixed = [extent for extent in wanted.values() if isinstance(extent, tuple)]
    rows, cols = (int(np.prod([extent[i] for extent in fixed])) for i in range(2))
    if rows > mesh.rows or cols > mesh.cols:
        raise PlanError(
            f"{_text(wanted)} is larger than the mesh of {mesh.rows} x {mesh.cols} devices: {rows} x {cols}"
        )
    counts = [n if isinstance(n, int) else n[0] * n[1] for n in wanted.values()]
    total, alive = int(np.prod(counts)), int(np.count_nonzero(mesh.alive))
    if total > (mesh.n_devices if fixed else alive):  # a fixed rectangle that covers a dead device is told so later
        equation = str(total) if len(counts) == 1 else f"{' x '.join(map(str, counts))} = {total}"
        raise PlanError(f"{_text(wanted)} is larger than the mesh: {equation} > {alive} live devices")


def _nests(wanted: Mapping[str, int | Extent], mesh: Mesh) -> Iterator[tuple[Extent, ...]]:
    """Every way to give each kind a rectangle so that all of them together fit the mesh."""
    choices = [
        [extent] if isinstance(extent, tuple) else [(r, extent // r) for r in range(1, extent + 1) if extent % r == 0]
        for extent in wanted.values()
    ]
    for nest in product(*choices):
        rows, cols = np.prod(np.asarray(nest, np.int64), axis=0)
        if rows <= mesh.rows and cols <= mesh.cols:
            yield nest


def _squareness(nest: tuple[Extent, ...]) -> list[Extent]:
    """Smaller is better: how far from square each block is, from the innermost out; ties prefer fewer rows."""
    key, rows, cols = [], 1, 1
    for r, c in reversed(nest):
        rows, cols = rows * r, cols * c
        key.append((abs(rows - cols), rows))
    return key


def _axes(kind: str, extent: Extent) -> list[Axis]:
    rows, cols = extent
    if kind == "spatial":
        return [Axis("h", rows, rows, 1), Axis("w", cols, 1, cols)]
    return [Axis(kind, rows * cols, rows, cols)]


def _devices(axes: tuple[Axis, ...], mesh: Mesh) -> NDArray[np.int64]:
    """Device id of every position, row-major over the axes; stages of a pipeline go to and fro."""
    row, col = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for axis in axes:
        own_row, own_col = np.divmod(np.arange(axis.size), axis.cols)
        if axis.name == PIPELINE:
            own_col = np.where(own_row % 2, axis.cols - 1 - own_col, own_col)
        row = (row[:, None] * axis.rows + own_row).ravel()
        col = (col[:, None] * axis.cols + own_col).ravel()
    return row * mesh.cols + col


def _text(wanted: Mapping[str, int | Extent]) -> str:
    parts = {kind: n if isinstance(n, int) else list(n) for kind, n in wanted.items()}
    if len(parts) == 1:
        kind, extent = next(iter(parts.items()))
        return f"plan.{kind} = {extent}"
    return "plan = {" + ", ".join(f"{kind} = {extent}" for kind, extent in parts.items()) + "}"


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1
