"""`meshemu tune`: the plan, its placement, collectives and overlap with which a step is fastest within the memory.

First plans: those that an estimate says are fastest first, each timed by the engine, but for those whose analytic
bound is no better than the best time (so nothing is lost); the estimate learns from every time. Then, for the best
plans, what can be chosen besides (`tuning_options`): every combination where trials suffice, else one change at a time
to the best, and then what a tree-structured Parzen estimator (optuna) asks for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from meshemu.config import Config, load
from meshemu.config.schema import Timing
from meshemu.errors import InputError, PlanError
from meshemu.mesh import flatten
from meshemu.study.tuning_estimate import Estimates
from meshemu.study.tuning_model import options_for, plans_for
from meshemu.study.tuning_options import Options
from meshemu.study.tuning_space import extent, sharded
from meshemu.study.tuning_trials import Trial, Trials
from meshemu.workload.candidates import largest
from meshemu.workload.placement import make_plan

__all__ = ["Trial", "Tuned", "tune"]

FINALISTS = 3
OF_OPTIONS = 3
"""One in so many trials is of what can be chosen besides a plan."""
NO_BETTER = "its bound is no better than the best time"
USED_UP = "not tried: trials are used up"


@dataclass(frozen=True, eq=False)
class Tuned:
    """trials: fastest first, then those not timed. baseline: plain data parallelism with what the configuration says
    otherwise; None where that is not possible. given: what the configuration says of timing; config: the configuration
    with the best choice.
    """

    title: str
    trials: tuple[Trial, ...]
    baseline: Trial | None
    given: Timing
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

    trials: how many choices are timed at most. plans: tables to choose among, None for `plan_tables` and the plan of
    the configuration. Pipelines are tried only for models whose statistics do not follow from micro-batches. Where
    memory.when_full = "refuse", steps that do not fit into memory recompute activations; what needs more memory than
    there is never wins. Raises InputError where nothing fits.
    """
    if trials < 1:
        raise InputError(f"--trials {trials}: must be at least 1")
    settings = load(config, overrides)
    search = _Search(settings)
    search.plans(plans, trials)
    search.options(trials)
    timed = search.trials.timed
    if not timed:
        found = search.considered
        why = found[0].why if found else "there is no plan"
        raise InputError(f"{config}: none of {len(found)} plans can be timed; the first says: {why}")
    rest = sorted((t for t in search.considered if t.step_ps is None), key=lambda t: t.bound_ps)
    best = search.trials.configured(timed[0])
    return Tuned(str(config), (*timed, *rest), search.baseline, settings.timing, best)


class _Search:
    """What was considered so far, and what to time next."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.trials = Trials(config)
        self._mesh = flatten(self.trials.system)
        self._passed: list[Trial] = []
        most = largest(self._mesh, "data", min(config.data.batch_size, self.trials.system.n_alive))
        tried = self._try({"data": most})
        self.baseline = None if tried.step_ps is None else tried
        self._assumed_ps = 0.0 if tried.where is None else tried.where.collectives_ps / sqrt(most)

    @property
    def considered(self) -> list[Trial]:
        """Everything that was."""
        return [*self.trials.known, *self._passed]

    def plans(self, tables: Sequence[dict[str, Any]] | None, trials: int) -> None:
        """Time the plans that may be better than what is known, with most of the trials (all of them if named).

        One that lacks memory is also tried with its parameters sharded.
        """
        own = [] if isinstance(self._config.plan, str) else [self._config.plan.model_dump(exclude_none=True)]
        known = plans_for(self._config, self._mesh, self.trials.graph) if tables is None else []
        given = [table for table in (own if tables is None else tables) if self._possible(table)]
        budget = trials if tables is not None else trials - trials // OF_OPTIONS
        for table in self._by_estimate([*given, *known]):
            choice = self.trials.usual(table)
            if self.trials.has(choice):
                continue
            if self._left(budget) <= 0:
                bound_ps, why = self.trials.loose_bound_ps(table), USED_UP
            else:
                bound_ps, why = self.trials.bound_ps(table), ""
            if self._hopeless(bound_ps):
                why = NO_BETTER
            if why:
                self._passed.append(Trial(choice, bound_ps, why=why))
            elif self._try(table).lacks_memory and _replicas(table) > 1 and self._left(budget) > 0:
                self._try(sharded(table, 3))

    def options(self, trials: int) -> None:
        """Time what else can be chosen with the trials that are left: for all plans, if they suffice, or the best."""
        timed = [self.trials.table(trial.choice) for trial in self.trials.timed]
        plans = [
            options_for(self._config, self.trials.system, self.trials.graph, table)
            for table in timed
            if not self._hopeless(self.trials.bound_ps(table))
        ]
        for some in (plans, plans[:FINALISTS]):
            if sum(one.count - 1 for one in some) <= self._left(trials):
                for one in some:
                    for numbers in one.all():
                        self._try_option(one, numbers)
                return
        if self._left(trials) > 0:
            self._asked(plans[:FINALISTS], trials)

    def _asked(self, plans: Sequence[Options], trials: int) -> None:
        """Time what optuna's sampler asks for, after single changes of the best plan."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        for number, options in enumerate(plans):
            study.enqueue_trial({"plan": number, **_named(number, dict.fromkeys(options.values, 0))})
        for numbers in plans[0].single_changes():
            study.enqueue_trial({"plan": 0, **_named(0, numbers)})
        for _ in range(4 * trials + len(plans)):  # the sampler may ask for the same again
            if self._left(trials) <= 0:
                return
            asked = study.ask()
            number = asked.suggest_categorical("plan", range(len(plans)))
            options = plans[number]
            numbers = {
                key: asked.suggest_categorical(f"{number} {key}", range(len(values)))
                for key, values in options.values.items()
            }
            step_ps = self._try_option(options, numbers).step_ps
            study.tell(asked, step_ps, state=None if step_ps is not None else optuna.trial.TrialState.FAIL)

    def _possible(self, table: Mapping[str, Any]) -> bool:
        """Whether the mesh has room for a plan that was named; why it has not is noted."""
        try:
            make_plan(table, self._mesh)
        except PlanError as error:
            self._passed.append(Trial(self.trials.usual(table), 0, why=str(error)))
            return False
        return True

    def _left(self, trials: int) -> int:
        return trials - len(self.trials.known)

    def _by_estimate(self, tables: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each table once, the one that looks fastest by what is known at that time first."""
        estimates = Estimates(tables, self.trials.alone(self._config.training.micro_batches))
        open_tables = np.ones(len(tables), np.bool_)
        while open_tables.any():
            timed = [(self.trials.table(t.choice), t.step_ps) for t in self.trials.timed if t.step_ps is not None]
            guess_ps = np.where(open_tables, estimates.ps(timed, self._assumed_ps), np.inf)
            chosen = int(guess_ps.argmin())
            open_tables[chosen] = False
            yield tables[chosen]

    def _try(self, table: Mapping[str, Any]) -> Trial:
        return self.trials.trial(self.trials.usual(table), table)

    def _try_option(self, options: Options, numbers: Mapping[str, int]) -> Trial:
        return self.trials.trial(*options.choice(numbers, self._config.timing))

    def _hopeless(self, bound_ps: int) -> bool:
        return self.trials.best_ps is not None and bound_ps >= self.trials.best_ps


def _replicas(table: Mapping[str, Any]) -> int:
    """Along the axis `data`, whose parameters are whole."""
    return extent(table.get("data", 1))


def _named(number: int, numbers: Mapping[str, int]) -> dict[str, int]:
    return {f"{number} {key}": value for key, value in numbers.items()}
