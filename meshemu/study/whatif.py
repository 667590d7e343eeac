"""`meshemu whatif`: a stored step timed again with each parameter of its machine scaled, ranked by effect, with the
edges of its mesh joined otherwise, and with something gone wrong.

Elasticity is d ln T / d ln p: -1 where the step gets 1 % faster by 1 % more of p, 0 where p does not matter. It is the
central difference over +-5 % in ln p; the differences to either side are given beside it, since the longest of several
things changes over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from math import isfinite, log
from pathlib import Path

from meshemu.analysis.critical_path import PARTS
from meshemu.analysis.verdict import bound_by
from meshemu.errors import InputError, RecordError
from meshemu.record.reader import open_run
from meshemu.study.capacity import Capacity, capacity_of
from meshemu.study.discrete import Discrete
from meshemu.study.events import events
from meshemu.study.machine import Machine, StoredStep, TimedMachine, open_step, timed
from meshemu.study.parameters import Parameter, chosen, parameters
from meshemu.study.pool import jobs_of, map_jobs
from meshemu.study.topology import topologies

__all__ = ["SCALES", "DiscreteRow", "Next", "PairRow", "ParameterRow", "Point", "WhatIf", "whatif"]

SCALES = (2.0, 0.5)
STEP = 1.05
"""Factor of the difference for elasticities."""

MOST_OPS = 200_000
"""Programs with more ops are shared by processes: timing them takes longer than starting those."""

Changes = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Point:
    """One timed machine. parts_ps: of its critical path, by name; bound_by: the largest of them in words."""

    time_ps: int
    parts_ps: dict[str, int]
    bound_by: str


@dataclass(frozen=True)
class ParameterRow:
    """What scaling one parameter does. points: by factor. elasticity_more, elasticity_less: the one-sided differences,
    of 5 % more and 5 % less.
    """

    name: str
    about: str
    points: dict[float, Point]
    elasticity: float
    elasticity_more: float
    elasticity_less: float


@dataclass(frozen=True)
class PairRow:
    """Two parameters improved together: times alone and together. interaction: ln of how much longer the step takes
    than if the effects multiplied; negative where each helps the other, positive where one makes the other idle.
    """

    names: tuple[str, str]
    factors: tuple[float, float]
    alone_ps: tuple[int, int]
    time_ps: int
    interaction: float


@dataclass(frozen=True)
class DiscreteRow:
    """A change that is made or not; point: None where the stored Program cannot run with it, `why` says why."""

    name: str
    about: str
    point: Point | None
    why: str


@dataclass(frozen=True)
class Next:
    """Where the bottleneck moves when the parameter that helps most is improved: elasticities then, by name."""

    name: str
    factor: float
    point: Point
    elasticities: dict[str, float]


@dataclass(frozen=True)
class WhatIf:
    """All of a study. rows: largest effect first; topology: other ways to join the mesh; events: what may go wrong;
    next: None where nothing helps; capacity: of SRAM, None where nothing is known of it.
    """

    path: str
    scales: tuple[float, ...]
    baseline: Point
    rows: tuple[ParameterRow, ...]
    topology: tuple[DiscreteRow, ...]
    events: tuple[DiscreteRow, ...]
    pairs: tuple[PairRow, ...]
    next: Next | None
    capacity: Capacity | None


def whatif(
    path: str | Path,
    *,
    scales: Sequence[float] = SCALES,
    names: Sequence[str] | None = None,
    pairs: bool = False,
    jobs: int | None = None,
) -> WhatIf:
    """Time the step stored in `path` with each of its machine's parameters times each of `scales`.

    names: of parameters; None for all (`parameters`) and for what is not scaled. pairs: also two at a time. jobs:
    processes; None: one, or one per core for a large Program. Raises InputError for scales that are not positive and
    for unknown names, RecordError for a file that cannot be studied.
    """
    factors = _checked(scales)
    stamp = _stamp(path)
    prepared = _prepared(*stamp)
    wanted = chosen(prepared.known, None if names is None else list(names))
    processes = jobs_of(jobs) if jobs is not None or prepared.step.program.n_ops > MOST_OPS else 1

    def points(wanted_changes: Iterable[Changes]) -> dict[Changes, Point]:
        changes = list(dict.fromkeys(wanted_changes))
        return dict(zip(changes, map_jobs(partial(_point, *stamp), changes, processes), strict=True))

    around = (STEP, 1 / STEP)
    single = points(((p.name, f),) for p in wanted for f in (*factors, *around))
    base = prepared.point(())
    rows = [_row(p, factors, base, single) for p in wanted]
    ranked = sorted(rows, key=lambda row: (-_effect(row, base), -abs(row.elasticity)))
    best = {row.name: min(factors, key=lambda f: (row.points[f].time_ps, abs(log(f)))) for row in rows}
    couples = list(combinations([row.name for row in ranked], 2)) if pairs else []
    together = points(tuple((name, best[name]) for name in couple) for couple in couples)
    first = min(ranked, key=lambda row: row.points[best[row.name]].time_ps)
    winner = (first.name, best[first.name])
    helps = single[(winner,)].time_ps < base.time_ps
    then = points((winner, (p.name, f)) for p in wanted for f in around) if helps else {}
    return WhatIf(
        path=str(path),
        scales=factors,
        baseline=base,
        rows=tuple(ranked),
        topology=() if names is not None else prepared.rows(topologies(prepared.step)),
        events=() if names is not None else prepared.events([f for f in factors if f < 1] or [0.5]),
        pairs=_pairs(couples, best, base, single, together),
        next=_next(winner, wanted, single[(winner,)], then) if helps else None,
        capacity=None if names is not None else capacity_of(open_run(path), prepared.step, prepared.baseline, factors),
    )


@dataclass(frozen=True, eq=False)
class _Prepared:
    step: StoredStep
    baseline: TimedMachine
    known: dict[str, Parameter]

    def point(self, changes: Changes) -> Point:
        machine = self.step.machine
        for name, factor in changes:
            machine = self.known[name].change(machine, factor)
        return self._timed(machine) if changes else self._told(self.baseline)

    def events(self, factors: Sequence[float]) -> tuple[DiscreteRow, ...]:
        return self.rows(events(self.step, self.baseline, factors))

    def rows(self, changes: Iterable[Discrete]) -> tuple[DiscreteRow, ...]:
        return tuple(map(self._row, changes))

    def _row(self, change: Discrete) -> DiscreteRow:
        if change.machine is None:
            return DiscreteRow(change.name, change.about, None, change.why)
        try:
            return DiscreteRow(change.name, change.about, self._timed(change.machine), "")
        except InputError as error:
            return DiscreteRow(change.name, change.about, None, str(error))

    def _timed(self, machine: Machine) -> Point:
        return self._told(timed(self.step, machine))

    def _told(self, done: TimedMachine) -> Point:
        path = done.path
        parts = {name: getattr(path, name) for name in (f"{part}_ps" for part in PARTS)}
        by_name = {name: getattr(path, name) for name in ("compute_ps_by_class", "interface_ps_by_unit")}
        totals = {"total_ps": path.total_ps, **by_name}
        words = bound_by({"critical_path": parts | totals, "router": self.step.options.router})
        return Point(done.time_ps, parts, words)


def _stamp(path: str | Path) -> tuple[str, int]:
    """The file and when it was changed: what a prepared step belongs to."""
    try:
        return str(path), Path(path).stat().st_mtime_ns
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=1)
def _prepared(path: str, _changed_ns: int) -> _Prepared:
    """Read once in every process of a study."""
    step = open_step(path)
    baseline = timed(step, step.machine)
    if baseline.time_ps == 0:
        raise RecordError(f"{path}: its step takes no virtual time, so that there is nothing to study")
    return _Prepared(step, baseline, parameters(step.machine))


def _point(path: str, changed_ns: int, changes: Changes) -> Point:
    return _prepared(path, changed_ns).point(changes)


def _checked(scales: Sequence[float]) -> tuple[float, ...]:
    for scale in scales:
        if not (isfinite(scale) and scale > 0) or scale == 1:
            raise InputError(f"--scale {scale:g}: must be a factor above 0 other than 1")
    if not scales:
        raise InputError("--scale: no factor is given")
    return tuple(dict.fromkeys(scales))


def _row(parameter: Parameter, factors: Sequence[float], base: Point, points: dict[Changes, Point]) -> ParameterRow:
    more, less = (log(points[((parameter.name, f),)].time_ps / base.time_ps) for f in (STEP, 1 / STEP))
    width = log(STEP)
    return ParameterRow(
        name=parameter.name,
        about=parameter.about,
        points={factor: points[((parameter.name, factor),)] for factor in factors},
        elasticity=(more - less) / (2 * width),
        elasticity_more=more / width,
        elasticity_less=-less / width,
    )


def _effect(row: ParameterRow, base: Point) -> float:
    """The largest change of ln T; rounded, so that parameters that do the same keep their order."""
    return round(max(abs(log(point.time_ps / base.time_ps)) for point in row.points.values()), 9)


def _pairs(
    couples: Sequence[tuple[str, str]],
    best: dict[str, float],
    base: Point,
    single: dict[Changes, Point],
    together: dict[Changes, Point],
) -> tuple[PairRow, ...]:
    """The pairs, strongest interaction first."""
    rows = []
    for one, other in couples:
        a, b = (single[((name, best[name]),)].time_ps for name in (one, other))
        both = together[((one, best[one]), (other, best[other]))].time_ps
        interaction = log(both * base.time_ps / (a * b))
        rows.append(PairRow((one, other), (best[one], best[other]), (a, b), both, interaction))
    return tuple(sorted(rows, key=lambda row: -abs(row.interaction)))


def _next(winner: tuple[str, float], wanted: Sequence[Parameter], point: Point, then: dict[Changes, Point]) -> Next:
    def elasticity(name: str) -> float:
        more, less = (then[(winner, (name, f))].time_ps for f in (STEP, 1 / STEP))
        return log(more / less) / (2 * log(STEP))

    found = {parameter.name: elasticity(parameter.name) for parameter in wanted}
    return Next(*winner, point, dict(sorted(found.items(), key=lambda item: -abs(item[1]))))
