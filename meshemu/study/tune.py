"""`meshemu tune`: the plan, collectives and buckets with which a step is fastest within the memory of the devices.

First plans: those that an estimate says are fastest first, each timed by the engine, but for those whose analytic bound
is no better than the best time (so nothing is lost). Then, for the best plans, collectives and
sizes of buckets: all of them where trials suffice, else as a tree-structured Parzen estimator (optuna) asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meshemu.config import Config, load
from meshemu.config.schema import PlanShape
from meshemu.emulator.running import run, system_of
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.record.reader import open_run
from meshemu.study.captures import captures_of
from meshemu.study.run_key import model_key
from meshemu.study.study_file import as_toml
from meshemu.study.tuning_space import AloneTime, alone_time, plan_bound_ps, plan_estimate_ps, plan_tables
from meshemu.study.where import Where, where_of
from meshemu.workload.candidates import largest
from meshemu.workload.dependence import updated_buffers
from meshemu.workload.graph import Graph, Role

__all__ = ["Choice", "Trial", "Tuned", "tune"]

COLLECTIVES = ("auto", "ring", "rows_columns", "tree")
BUCKETS = (1_000_000, 5_000_000, 25_000_000, 1_000_000_000)
FINALISTS = 3


@dataclass(frozen=True)
class Choice:
    """What is chosen: the plan as one line of TOML, the collective algorithm, the size of a bucket of gradients."""

    plan: str
    collective: str
    bucket_bytes: int


@dataclass(frozen=True)
class Trial:
    """A choice that was considered. bound_ps: no time is less; step_ps: None if it was not timed, `why` says why."""

    choice: Choice
    bound_ps: int
    step_ps: int | None
    memory_bytes: int | None
    where: Where | None
    why: str


@dataclass(frozen=True, eq=False)
class Tuned:
    """trials: fastest first, then those not timed. baseline: plain data parallelism with what the configuration says
    otherwise; None where that is not possible. config: the configuration with the best choice.
    """

    title: str
    trials: tuple[Trial, ...]
    baseline: Trial | None
    config: Config

    @property
    def best(self) -> Trial:
        """The fastest."""
        return self.trials[0]


def tune(
    config: str | Path,
    *,
    overrides: Sequence[str] = (),
    trials: int = 60,
    plans: Sequence[dict[str, Any]] | None = None,
) -> Tuned:
    """Search for the fastest step of the configured model with its batch on its system; the maths stays the same.

    trials: how many choices are timed at most. plans: tables to choose among, None for `plan_tables`. Pipelines are
    tried only for models whose statistics do not follow from micro-batches. Raises InputError where nothing fits.
    """
    if trials < 1:
        raise InputError(f"--trials {trials}: must be at least 1")
    search = _Search(load(config, overrides))
    search.plans(plans, trials)
    search.options(trials)
    timed = sorted((t for t in search.found if t.step_ps is not None), key=lambda t: t.step_ps or 0)
    if not timed:
        why = search.found[0].why if search.found else "there is no plan"
        raise InputError(f"{config}: none of {len(search.found)} plans can be timed; the first says: {why}")
    rest = sorted((t for t in search.found if t.step_ps is None), key=lambda t: t.bound_ps)
    best = timed[0].choice
    return Tuned(str(config), (*timed, *rest), search.baseline, search.configured(best))


class _Search:
    """Times choices, each once, and remembers what it found."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._system: System = system_of(config)
        self._mesh = flatten(self._system)
        self._graph: Graph | None = None
        self._tables: dict[str, Any] = {}
        self._timed: dict[Choice, Trial] = {}
        self._passed: list[Trial] = []
        self._own = (config.timing.collective, config.timing.bucket_bytes)
        self._alone = self._alone_time()
        self._most = largest(self._mesh, "data", min(config.data.batch_size, self._system.n_alive))
        self.baseline: Trial | None = self.trial(self._choice({"data": self._most}))
        if self.baseline.step_ps is None:
            self.baseline = None

    @property
    def found(self) -> list[Trial]:
        """Everything that was considered."""
        return [*self._timed.values(), *self._passed]

    def plans(self, tables: Sequence[dict[str, Any]] | None, trials: int) -> None:
        """Time the plans that may be better than what is known, with half of the trials (all of them if named)."""
        own = [] if isinstance(self._config.plan, str) else [self._config.plan.model_dump(exclude_none=True)]
        known = self._all_plans() + own if tables is None else list(tables)
        where = None if self.baseline is None else self.baseline.where
        waits_ps = 0.0 if where is None else where.collectives_ps / sqrt(self._most)
        ordered = sorted(known, key=lambda table: plan_estimate_ps(table, self._alone, waits_ps))
        budget = trials if tables is not None else max(1, trials // 2)
        for table in ordered:
            choice, bound = self._choice(table), plan_bound_ps(table, self._alone)
            best = min((t.step_ps for t in self._timed.values() if t.step_ps is not None), default=None)
            if choice in self._timed:
                continue
            if best is not None and bound >= best:
                self._passed.append(Trial(choice, bound, None, None, None, "its bound is no better than the best time"))
            elif len(self._timed) >= budget:
                self._passed.append(Trial(choice, bound, None, None, None, "not tried: trials are used up"))
            else:
                self.trial(choice)

    def options(self, trials: int) -> None:
        """For the best plans, time other collectives and buckets with the trials that are left."""
        timed = sorted((t for t in self._timed.values() if t.step_ps is not None), key=lambda t: t.step_ps or 0)
        plans = list(dict.fromkeys(t.choice.plan for t in timed))[:FINALISTS]
        buckets = dict.fromkeys([self._own[1], *BUCKETS])
        choices = [Choice(p, c, b) for p in plans for c in COLLECTIVES for b in buckets]
        untimed = [choice for choice in choices if choice not in self._timed]
        left = trials - len(self._timed)
        if len(untimed) <= left:
            for choice in untimed:
                self.trial(choice)
        elif plans and left > 0:
            self._asked(plans, list(buckets), left)

    def trial(self, choice: Choice) -> Trial:
        """Time a choice, unless that is done."""
        if choice not in self._timed:
            self._timed[choice] = self._time(choice)
        return self._timed[choice]

    def configured(self, choice: Choice) -> Config:
        """The configuration with a choice."""
        plan = PlanShape.model_validate(self._tables[choice.plan])
        changes = {"collective": choice.collective, "bucket_bytes": choice.bucket_bytes}
        timing = self._config.timing.model_copy(update=changes)
        return self._config.model_copy(update={"plan": plan, "timing": timing})

    def _choice(self, table: dict[str, Any]) -> Choice:
        text = as_toml(table)
        self._tables[text] = table
        return Choice(text, *self._own)

    def _asked(self, plans: list[str], buckets: list[int], left: int) -> None:
        """Time what optuna's sampler asks for, starting from what is known."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=max(1, left // 3)))
        for plan in plans:
            study.enqueue_trial({"plan": plan, "collective": self._own[0], "bucket_bytes": self._own[1]})
        goal = len(self._timed) + left
        for _ in range(4 * left + len(plans)):  # the sampler may ask for the same again
            if len(self._timed) >= goal:
                return
            asked = study.ask()
            choice = Choice(
                asked.suggest_categorical("plan", plans),
                asked.suggest_categorical("collective", COLLECTIVES),
                asked.suggest_categorical("bucket_bytes", buckets),
            )
            step_ps = self.trial(choice).step_ps
            study.tell(asked, step_ps, state=None if step_ps is not None else optuna.trial.TrialState.FAIL)

    def _time(self, choice: Choice) -> Trial:
        bound = plan_bound_ps(self._tables[choice.plan], self._alone)
        try:
            with TemporaryDirectory(prefix="meshemu-") as folder:
                stored = open_run(self._run(self.configured(choice), Path(folder)))
                where, memory = where_of(stored), int(stored.column("/results/devices/peak_memory_bytes").max())
        except InputError as error:
            return Trial(choice, bound, None, None, None, str(error))
        device = self._system.device
        if device is not None and memory > device.sram_bytes:
            why = f"needs {memory:,} of {device.sram_bytes:,} bytes of memory"
            return Trial(choice, bound, None, memory, None, why)
        return Trial(choice, bound, where.total_ps, memory, where, "")

    def _run(self, config: Config, folder: Path) -> Path:
        capture = captures_of(model_key(config))

        def remembered(maths: Any, leaves: Sequence[Any]) -> Graph:
            graph: Graph = capture(maths, leaves)
            self._graph = self._graph or graph
            return graph

        training = config.training.model_copy(update={"steps": 1})
        alone = config.model_copy(update={"training": training})
        return run(alone, folder / "run.h5", execute=False, capture=remembered).path

    def _alone_time(self) -> AloneTime:
        """Of the step on one device, whether it fits or not; nothing is bounded where it cannot be built."""
        config = self._config.model_copy(update={"plan": PlanShape.model_validate({"data": 1})})
        memory = getattr(config, "memory", None)
        if memory is not None:
            config = config.model_copy(update={"memory": memory.model_copy(update={"when_full": "allow"})})
        try:
            with TemporaryDirectory(prefix="meshemu-") as folder:
                return alone_time(open_run(self._run(config, Path(folder))).program(), self._system.device)
        except InputError:
            return AloneTime(0, 0)

    def _all_plans(self) -> list[dict[str, Any]]:
        graph = self._graph
        batch = [] if graph is None else [i.node.meta["val"] for i in graph.inputs if i.role is Role.BATCH]
        whole = graph is not None and (self._config.training.micro_batches > 1 or not updated_buffers(graph))
        images = any(value.ndim >= 4 for value in batch)
        return plan_tables(self._mesh, self._config.data.batch_size, images=images, pipelines=whole)
