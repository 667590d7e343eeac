"""Steps whose path depends on values: each is captured along the path that its own values decide.

Every rank first runs the forward pass of the step in plain PyTorch, for the decisions that it takes on values, and
captures the step with those answers. Decisions that were taken before lead to the step that was built for them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields

from meshemu.comm import Comm
from meshemu.emulator.prepared_step import PreparedStep
from meshemu.emulator.recording import CAPTURED
from meshemu.emulator.timed_step import TimedStep
from meshemu.errors import CheckError, DataDependentError
from meshemu.execute.deciding import decide
from meshemu.execute.executor import StepResult
from meshemu.execute.training import StepRunner, Tensor
from meshemu.workload.capture import capture_maths, decision_inputs
from meshemu.workload.decisions import Decision
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.graph import Graph
from meshemu.workload.graph_digest import graph_digest
from meshemu.workload.plan import Plan
from meshemu.workload.step_maths import StepMaths

__all__ = ["PreparedSteps", "Recaptured"]

KEPT = 16
"""How many captured steps are kept, the most recently used ones."""


@dataclass(frozen=True, eq=False)
class _Ready:
    prepared: PreparedStep
    executor: StepRunner


class Recaptured:
    """Prepares and runs the steps of a model one by one.

    prepare(graph, plan) partitions and times a captured step; plan is None only for the first one, if it is to be
    chosen, and stays what it is from there on.
    """

    def __init__(
        self, maths: StepMaths, prepare: Callable[[Graph, Plan | None], PreparedStep], plan: Plan | None, comm: Comm
    ) -> None:
        self._maths = maths
        self._prepare = prepare
        self._plan = plan
        self._comm = comm
        self._backward_asks = False
        self._by_decisions: OrderedDict[Hashable, _Ready] = OrderedDict()
        self._by_graph: OrderedDict[Hashable, _Ready] = OrderedDict()
        self._last: _Ready | None = None

    @property
    def last(self) -> PreparedStep:
        """The step that was prepared or run last."""
        if self._last is None:
            raise AssertionError("no step has been prepared")
        return self._last.prepared

    def prepare(self, inputs: Mapping[str, Tensor], *, seed: int, step: int) -> PreparedStep:
        """The step along the path that `inputs`, whole tensors by graph input name, decide. Raises as `run`."""
        return self._along(inputs, seed, step)[1].prepared

    @property
    def maxima(self) -> Maxima:
        """None: values that formats round are not decided on."""
        return Maxima()

    @property
    def samples(self) -> None:
        """All samples are read: a step decides on values of the whole batch."""

    def run(self, inputs: Mapping[str, Tensor], *, seed: int, step: int) -> StepResult:
        """One step, as `Executor.run`.

        Raises:
            CaptureError: the step fails in plain PyTorch, or along this path it cannot be captured.
            InputError: as `partition`, along this path.
            CheckError: ranks decide differently.
        """
        decisions, ready = self._along(inputs, seed, step)
        return ready.executor.run({**inputs, **decision_inputs(decisions)}, seed=seed, step=step)

    def _along(self, inputs: Mapping[str, Tensor], seed: int, step: int) -> tuple[tuple[Decision, ...], _Ready]:
        """What the step decides, and the step that was built for it."""
        decisions = self._decisions(inputs, seed, step)
        try:
            return decisions, self._ready(inputs, decisions)
        except DataDependentError:
            if self._backward_asks:
                raise
            self._backward_asks = True  # from now on, the backward pass is run for its decisions too
            return self._along(inputs, seed, step)

    def _ready(self, inputs: Mapping[str, Tensor], decisions: tuple[Decision, ...]) -> _Ready:
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in self._leaves(inputs))
        key = shapes, tuple(decision.key for decision in decisions)
        if key not in self._by_decisions:
            _keep(self._by_decisions, key, self._captured(inputs, decisions))
        self._by_decisions.move_to_end(key)
        self._last = self._by_decisions[key]
        return self._last

    def _captured(self, inputs: Mapping[str, Tensor], decisions: tuple[Decision, ...]) -> _Ready:
        """The step with these answers; of graphs that are alike, one is partitioned and timed."""
        graph = capture_maths(self._maths, self._leaves(inputs), decisions)
        digest = graph_digest(graph)
        if digest not in self._by_graph:
            prepared = self._prepare(graph, self._plan)
            self._plan = prepared.plan
            _keep(self._by_graph, digest, _Ready(prepared, prepared.executor(self._comm)))
        self._by_graph.move_to_end(digest)
        return self._by_graph[digest]

    def _decisions(self, inputs: Mapping[str, Tensor], seed: int, step: int) -> tuple[Decision, ...]:
        """What the step decides, the same on every rank."""
        decisions = decide(self._maths, inputs, seed=seed, step=step, backward=self._backward_asks)
        digest = hashlib.sha256(b"".join(decision.content for decision in decisions)).digest()
        number = int.from_bytes(digest[:7], "little")
        if self._comm.min(number) != self._comm.max(number):
            raise CheckError(
                f"ranks decide differently on values in step {step}: their hosts round differently; use hosts alike"
            )
        return decisions

    def _leaves(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [inputs[f"batch.{i}"] for i in range(self._maths.spec.num_leaves)]


@dataclass(frozen=True, eq=False)
class PreparedSteps(PreparedStep):
    """The first of the steps that `steps` prepares one by one. question: why they are."""

    steps: Recaptured
    question: str

    @classmethod
    def following(cls, first: PreparedStep, steps: Recaptured, question: str) -> "PreparedSteps":
        """The steps that begin with `first`."""
        known = {field.name: getattr(first, field.name) for field in fields(first)}
        return cls(**known, steps=steps, question=question)

    @property
    def last_timed(self) -> TimedStep:
        """The step that was prepared or run last."""
        return self.steps.last.timed

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of the first step, and that others may differ."""
        again = (
            f"{CAPTURED} {self.question}; every step is captured along the path that its values decide, and has a time "
            "of its own; the Program and its ops are those of the first step"
        )
        return (*super().remarks, again)

    def executor(self, comm: Comm) -> StepRunner:
        """Runs every step along its own path; `comm` is that of `steps`."""
        return self.steps


def _keep(kept: OrderedDict[Hashable, _Ready], key: Hashable, ready: _Ready) -> None:
    kept[key] = ready
    if len(kept) > KEPT:
        kept.popitem(last=False)
