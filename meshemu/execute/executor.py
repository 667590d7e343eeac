"""Run one partitioned step with real tensors on the devices of this rank, exchanging with the other ranks."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, cut
from meshemu.execute.carrying import Carrier
from meshemu.execute.collective import CollectiveTask
from meshemu.execute.compute import ComputeTask, step_seed
from meshemu.execute.feeding import samples_read
from meshemu.execute.fetch import FetchTask, PushAddTask
from meshemu.execute.hand_over import HandOver
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.formats.tracking import tracked_keys
from meshemu.workload.spmd import Collective, Compute, Fetch, Instruction, PushAdd, Spmd, Value, last_uses

__all__ = ["Executor", "StepResult"]

Task = ComputeTask | FetchTask | PushAddTask | CollectiveTask


@dataclass(frozen=True)
class StepResult:
    """loss, gradient_norm: scalars, None if the step has none. Others by name. The same bits on every rank."""

    loss: torch.Tensor | None
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]
    gradient_norm: torch.Tensor | None


class Executor:
    """Interprets the instructions of an Spmd; tasks are prepared once and run every step.

    schedules: index of a Collective instruction -> the schedule that is timed for it. maxima: those that sliding biases
    of number formats follow; a step that meets one for the first time is gone through once before, to learn it.
    samples: indices along dim 0 of a batch that its devices read; what lies at others does not count.
    spent_s: processor time of this thread by kind of work, over all steps so far: an op class, "fetch", "push_add", or
    what a collective does.
    """

    def __init__(
        self,
        spmd: Spmd,
        host: Host,
        schedules: Mapping[int, Schedule],
        comm: Comm,
        maxima: Maxima | None = None,
    ) -> None:
        self._spmd = spmd
        self._host = host
        self._comm = comm
        self._maxima = maxima or Maxima()
        self._tracked = tracked_keys(spmd)
        self._tasks = [
            _prepare(instruction, schedules.get(i), host, comm) for i, instruction in enumerate(spmd.instructions)
        ]
        self._kinds = [_kind(instruction) for instruction in spmd.instructions]
        self._last_use = last_uses(spmd)
        self.samples = samples_read(spmd, host)
        self.spent_s: dict[str, float] = defaultdict(float)
        self._hand_over = HandOver(spmd.results, host, comm)

    @property
    def maxima(self) -> Maxima:
        """The running maxima that biases follow: state of the run, beside parameters and optimizer."""
        return self._maxima

    def run(self, inputs: Mapping[str, torch.Tensor], *, seed: int, step: int) -> StepResult:
        """One step. inputs: whole tensors by graph input name, the same on every rank where its devices read them."""
        if any(self._maxima.running(key) is None for key in self._tracked):
            self._carry_out(inputs, seed, step)
        return self._results(self._carry_out(inputs, seed, step))

    def _carry_out(self, inputs: Mapping[str, torch.Tensor], seed: int, step: int) -> dict[int, torch.Tensor]:
        """All instructions; value id -> whole tensor of every result."""
        environment: dict[int, Blocks] = {}
        for name, value in self._spmd.inputs.items():
            environment[value.id] = cut(self._whole(name, inputs), value, self._host)
        for name, value in self._spmd.constants.items():
            environment[value.id] = cut(self._spmd.constant_tensors[name].detach(), value, self._host)
        with torch.no_grad():
            before = time.thread_time()
            for i, task in enumerate(self._tasks):
                _run(task, environment, seed, step, self._maxima)
                for value_id in self._last_use.get(i, ()):
                    del environment[value_id]
                now = time.thread_time()
                self.spent_s[self._kinds[i]] += now - before
                before = now
        if self._tracked:
            self._maxima.end_step(self._comm)
        return self._hand_over.run(environment)

    def _results(self, whole: Mapping[int, torch.Tensor]) -> StepResult:
        spmd = self._spmd

        def scalar(value: Value | None) -> torch.Tensor | None:
            return None if value is None else whole[value.id].clone()

        def named(values: Mapping[str, Value]) -> dict[str, torch.Tensor]:
            return {name: whole[value.id] for name, value in values.items()}

        return StepResult(
            scalar(spmd.loss),
            named(spmd.gradients),
            named(spmd.buffers),
            named(spmd.metrics),
            scalar(spmd.gradient_norm),
        )

    def _whole(self, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        part = self._spmd.parts.get(name)
        if part is None:
            return inputs[name].detach()
        return inputs[part.name].detach().narrow(part.dim, part.lo, part.hi - part.lo)


def _prepare(instruction: Instruction, schedule: Schedule | None, host: Host, comm: Comm) -> Task:
    match instruction:
        case Compute():
            return ComputeTask(instruction, host)
        case Fetch():
            return FetchTask(instruction, host, comm)
        case PushAdd():
            return PushAddTask(instruction, host, comm)
        case Collective():
            if schedule is None:
                raise AssertionError(f"no schedule for {instruction.label}")
            return CollectiveTask(instruction, schedule, host, comm)


def _kind(instruction: Instruction) -> str:
    """What an instruction does, in one word."""
    match instruction:
        case Compute():
            return instruction.op_class
        case Fetch():
            return "fetch"
        case PushAdd():
            return "push_add"
        case Collective():
            return instruction.kind


def _run(task: Task, environment: dict[int, Blocks], seed: int, step: int, maxima: Maxima) -> None:
    match task:
        case ComputeTask():
            task.run(environment, seed, step, maxima)
        case FetchTask() | PushAddTask():
            environment[task.instruction.output.id] = task.run(environment[task.instruction.source.id])
        case CollectiveTask():
            carried = task.instruction.carried
            carrier = None if carried is None else Carrier(carried, step_seed(seed, step, carried.salt), maxima)
            results = task.run([environment[v.id] for v in task.instruction.sources], carrier)
            for value, blocks in zip(task.instruction.outputs, results, strict=True):
                environment[value.id] = blocks
