"""Run one partitioned step with real tensors on the devices of this rank, exchanging with the other ranks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, cut
from meshemu.execute.collective import CollectiveTask
from meshemu.execute.compute import ComputeTask
from meshemu.execute.fetch import FetchTask, PushAddTask
from meshemu.execute.hand_over import HandOver
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

    schedules: index of a Collective instruction -> the schedule that is timed for it.
    """

    def __init__(self, spmd: Spmd, host: Host, schedules: Mapping[int, Schedule], comm: Comm) -> None:
        self._spmd = spmd
        self._host = host
        self._tasks = [
            _prepare(instruction, schedules.get(i), host, comm) for i, instruction in enumerate(spmd.instructions)
        ]
        self._last_use = last_uses(spmd)
        self._hand_over = HandOver(spmd.results, host, comm)

    def run(self, inputs: Mapping[str, torch.Tensor], *, seed: int, step: int) -> StepResult:
        """One step. inputs: whole tensors by graph input name, the same on every rank."""
        environment: dict[int, Blocks] = {}
        for name, value in self._spmd.inputs.items():
            environment[value.id] = cut(self._whole(name, inputs), value, self._host)
        for name, value in self._spmd.constants.items():
            environment[value.id] = cut(self._spmd.constant_tensors[name].detach(), value, self._host)
        with torch.no_grad():
            for i, task in enumerate(self._tasks):
                _run(task, environment, seed, step)
                for value_id in self._last_use.get(i, ()):
                    del environment[value_id]
        whole = self._hand_over.run(environment)
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


def _run(task: Task, environment: dict[int, Blocks], seed: int, step: int) -> None:
    match task:
        case ComputeTask():
            task.run(environment, seed, step)
        case FetchTask() | PushAddTask():
            environment[task.instruction.output.id] = task.run(environment[task.instruction.source.id])
        case CollectiveTask():
            results = task.run([environment[v.id] for v in task.instruction.sources])
            for value, blocks in zip(task.instruction.outputs, results, strict=True):
                environment[value.id] = blocks
