"""Time the choices of a search by the engine, each once, and remember what came of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from meshemu.config import Config
from meshemu.config.schema import PlanShape
from meshemu.emulator.prepared_step import PreparedStep
from meshemu.emulator.running import options_of, system_of
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.study.captures import captures_of, timed_step
from meshemu.study.run_key import model_key
from meshemu.study.tuning_bounds import UNKNOWN, AloneTime, alone_time, plan_bound_ps
from meshemu.study.tuning_options import Choice
from meshemu.study.where import Where, where_of_step
from meshemu.workload.graph import Graph

__all__ = ["Trial", "Trials"]


@dataclass(frozen=True)
class Trial:
    """A choice that was considered. bound_ps: no time is less; step_ps: None if it was not timed, `why` says why.
    memory_remark: what was done for the step to fit into memory, "" if nothing had to be.
    """

    choice: Choice
    bound_ps: int
    step_ps: int | None = None
    memory_bytes: int | None = None
    where: Where | None = None
    memory_remark: str = ""
    why: str = ""

    @property
    def lacks_memory(self) -> bool:
        """Whether the step fits only because something was done about it, or not at all."""
        return bool(self.memory_remark) or "memory" in self.why


class Trials:
    """Trials of one configuration on its system. graph: of its step, None before a step was captured."""

    def __init__(self, config: Config) -> None:
        policy = "recompute" if config.memory.when_full == "refuse" else config.memory.when_full
        memory = config.memory.model_copy(update={"when_full": policy})
        training = config.training.model_copy(update={"steps": 1})
        self._config = config.model_copy(update={"memory": memory, "training": training})
        self._given = config
        self._tables: dict[Choice, dict[str, Any]] = {}
        self._known: dict[Choice, Trial] = {}
        self.system: System = system_of(config)
        self.graph: Graph | None = None
        self.alone = cache(self._alone)

    @property
    def known(self) -> list[Trial]:
        """Everything that was tried, in the order in which it was."""
        return list(self._known.values())

    @property
    def timed(self) -> list[Trial]:
        """What has a time, the fastest first; of equals, what was tried first."""
        return sorted((t for t in self._known.values() if t.step_ps is not None), key=lambda t: t.step_ps or 0)

    @property
    def best_ps(self) -> int | None:
        """The least time so far."""
        return next((trial.step_ps for trial in self.timed), None)

    def bound_ps(self, table: Mapping[str, Any]) -> int:
        """No step under a plan is faster."""
        return plan_bound_ps(table, self.alone(table.get("micro_batches", self._given.training.micro_batches)))

    def loose_bound_ps(self, table: Mapping[str, Any]) -> int:
        """The same, by the step as it is: in more micro-batches it has no less work and no fewer launches."""
        return plan_bound_ps(table, self.alone(self._given.training.micro_batches))

    def usual(self, table: Mapping[str, Any]) -> Choice:
        """A plan with what the configuration says otherwise."""
        return Choice.of(table, self._given.timing)

    def has(self, choice: Choice) -> bool:
        """Whether a choice was tried."""
        return choice in self._known

    def trial(self, choice: Choice, table: Mapping[str, Any]) -> Trial:
        """Time a choice, unless that is done. table: its plan."""
        if choice not in self._known:
            self._tables[choice] = dict(table)
            self._known[choice] = self._time(choice, table)
        return self._known[choice]

    def table(self, choice: Choice) -> dict[str, Any]:
        """The plan of a choice that was tried."""
        return self._tables[choice]

    def configured(self, trial: Trial) -> Config:
        """The configuration with the choice of a trial."""
        changes: dict[str, Any] = {
            "plan": PlanShape.model_validate(self._tables[trial.choice]),
            "timing": trial.choice.timing(self._given.timing),
        }
        if trial.memory_remark:
            changes["memory"] = self._config.memory
        return self._given.model_copy(update=changes)

    def _time(self, choice: Choice, table: Mapping[str, Any]) -> Trial:
        bound_ps = self.bound_ps(table)
        try:
            step = self._step(PlanShape.model_validate(dict(table)), choice)
        except InputError as error:
            return Trial(choice, bound_ps, why=str(error))
        needed, there = int(step.timed.peak_memory_bytes.max()), self.system.device
        if there is not None and needed > there.sram_bytes:
            why = f"needs {needed:,} of {there.sram_bytes:,} bytes of memory"
            return Trial(choice, bound_ps, memory_bytes=needed, why=why)
        where = where_of_step(step.timed, choice.timing(self._given.timing).routing)
        memory_remark = "" if self._config.memory.when_full == "allow" else step.memory_remark
        return Trial(choice, bound_ps, where.total_ps, needed, where, memory_remark)

    def _step(self, plan: PlanShape, choice: Choice) -> PreparedStep:
        timing = choice.timing(self._config.timing)
        return self._prepared(self._config.model_copy(update={"plan": plan, "timing": timing}))

    def _alone(self, micro_batches: int) -> AloneTime:
        """Of the step on one device, whether it fits or not; nothing is bounded where it cannot be built."""
        config = self._config.model_copy(
            update={
                "plan": PlanShape.model_validate({"data": 1}),
                "memory": self._config.memory.model_copy(update={"when_full": "allow"}),
                "training": self._config.training.model_copy(update={"micro_batches": micro_batches}),
            }
        )
        try:
            program = self._prepared(config).timed.program
        except InputError:
            return UNKNOWN
        return alone_time(program, self.system, options_of(config))

    def _prepared(self, config: Config) -> PreparedStep:
        capture = captures_of(model_key(config))

        def remembered(maths: Any, leaves: Sequence[Any]) -> Graph:
            graph: Graph = capture(maths, leaves)
            self.graph = self.graph or graph
            return graph

        return timed_step(config, remembered)
