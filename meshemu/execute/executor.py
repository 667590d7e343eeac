"""Run one partitioned step with real tensors on the devices of this rank, exchanging with the other ranks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.all_reduce import AllReduceTask
from meshemu.execute.blocks import Host, Key
from meshemu.execute.compute import ComputeTask
from meshemu.execute.fetch import FetchTask, PushAddTask
from meshemu.execute.hand_over import HandOver
from meshemu.workload.spmd import AllReduce, Compute, Fetch, Instruction, PushAdd, Spmd, Value, last_uses

__all__ = ["Executor", "StepResult"]

Blocks = dict[Key, torch.Tensor]
Task = ComputeTask | FetchTask | PushAddTask | AllReduceTask


@dataclass(frozen=True)
class StepResult:
    """loss: scalar tensor. gradients and buffers by name. The same bits on every rank."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


class Executor:
    """Interprets the instructions of an Spmd; tasks are prepared once and run every step.

    schedules: index of an AllReduce instruction -> the schedule that is timed for it.
    """

    def __init__(self, spmd: Spmd, host: Host, schedules: Mapping[int, Schedule], comm: Comm) -> None:
        self._spmd = spmd
        self._host = host
        self._tasks = [
            _prepare(instruction, schedules.get(i), host, comm) for i, instruction in enumerate(spmd.instructions)
        ]
        self._last_use = last_uses(spmd)
        self._hand_over = HandOver([spmd.loss, *spmd.gradients.values(), *spmd.buffers.values()], host, comm)

    def run(self, inputs: Mapping[str, torch.Tensor], *, seed: int, step: int) -> StepResult:
        """One step. inputs: whole tensors by graph input name, the same on every rank."""
        environment: dict[int, Blocks] = {}
        for name, value in self._spmd.inputs.items():
            environment[value.id] = self._place(inputs[name], value)
        for name, value in self._spmd.constants.items():
            environment[value.id] = self._place(self._spmd.constant_tensors[name], value)
        with torch.no_grad():
            for i, task in enumerate(self._tasks):
                _run(task, environment, seed, step)
                for value_id in self._last_use.get(i, ()):
                    del environment[value_id]
        self._hand_over.run(environment)
        return StepResult(
            environment[self._spmd.loss.id][()].clone(),
            {name: environment[value.id][()] for name, value in self._spmd.gradients.items()},
            {name: environment[value.id][()] for name, value in self._spmd.buffers.items()},
        )

    def _place(self, tensor: torch.Tensor, value: Value) -> Blocks:
        """The blocks of a whole tensor that this rank's devices hold."""
        tensor = tensor.detach()
        if value.replicated:
            return {(): tensor}
        blocks = {}
        for key, position in self._host.representatives(value.layout.axes).items():
            place = self._host.plan.at(position)
            block = tensor
            for split in value.layout.splits:
                lo, hi = split.at(place)
                block = block.narrow(split.dim, lo, hi - lo)
            blocks[key] = block.contiguous()
        return blocks


def _prepare(instruction: Instruction, schedule: Schedule | None, host: Host, comm: Comm) -> Task:
    match instruction:
        case Compute():
            return ComputeTask(instruction, host)
        case Fetch():
            return FetchTask(instruction, host, comm)
        case PushAdd():
            return PushAddTask(instruction, host, comm)
        case AllReduce():
            if schedule is None:
                raise AssertionError(f"no schedule for {instruction.label}")
            return AllReduceTask(instruction, schedule, host, comm)


def _run(task: Task, environment: dict[int, Blocks], seed: int, step: int) -> None:
    match task:
        case ComputeTask():
            task.run(environment, seed, step)
        case FetchTask() | PushAddTask():
            environment[task.instruction.output.id] = task.run(environment[task.instruction.source.id])
        case AllReduceTask():
            results = task.run([environment[v.id] for v in task.instruction.sources])
            for value, blocks in zip(task.instruction.outputs, results, strict=True):
                environment[value.id] = blocks
