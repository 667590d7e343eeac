"""Where in a step single numbers are computed and combined over devices, so that nothing waits for them.

A device computes in the order of its program. The weight of a mean over samples follows from targets alone: combined
at the beginning, it has crossed the machine long before the backward pass divides by it. The loss is for the eyes of
the user: computed at the end, it keeps nothing waiting while it crosses the machine.
"""

from collections import Counter
from collections.abc import Sequence
from math import prod

from meshemu.cost.op_classes import VIEWS
from meshemu.workload.spmd import Collective, Compute, Instruction, inputs_of, outputs_of

__all__ = ["scalars_apart"]


def scalars_apart(instructions: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The same instructions in another order. First come all-reduces of numbers with all that leads to them, where that
    is no more than views of what the step is given and numbers made of it; last what makes numbers of numbers that no
    other instruction reads, or only such as come last too. In all three parts the order stays. What is moved is memory
    of a few bytes.
    """
    first = _first(instructions)
    last = _last(instructions) - first
    order = sorted(range(len(instructions)), key=lambda i: (i in last) - (i in first))
    return tuple(instructions[i] for i in order)


def _first(instructions: Sequence[Instruction]) -> set[int]:
    maker = {value.id: i for i, one in enumerate(instructions) for value in outputs_of(one)}
    makers = [{maker[value.id] for value in inputs_of(one) if value.id in maker} for one in instructions]
    light: set[int] = set()
    for i, one in enumerate(instructions):
        if makers[i] <= light and (_views(one) or (_numbers(one) and not _is_paced(one))):
            light.add(i)
    found: set[int] = set()
    needed: set[int] = set()
    for i in sorted(light, reverse=True):
        if i in needed or isinstance(instructions[i], Collective):
            found.add(i)
            needed |= makers[i]
    return found


def _last(instructions: Sequence[Instruction]) -> set[int]:
    readers = Counter(value_id for one in instructions for value_id in {value.id for value in inputs_of(one)})
    found: set[int] = set()
    for i in reversed(range(len(instructions))):
        one = instructions[i]
        of_numbers = isinstance(one, Compute) and all(prod(value.shape) == 1 for value in inputs_of(one))
        if of_numbers and _numbers(one) and not any(readers[value.id] for value in outputs_of(one)):
            found.add(i)
            readers.subtract({value.id for value in inputs_of(one)})
    return found


def _views(instruction: Instruction) -> bool:
    return isinstance(instruction, Compute) and instruction.op_class in VIEWS


def _numbers(instruction: Instruction) -> bool:
    """Whether it computes or combines nothing but numbers."""
    kind = isinstance(instruction, Compute | Collective)
    return kind and all(prod(value.shape) == 1 for value in outputs_of(instruction))


def _is_paced(instruction: Instruction) -> bool:
    return isinstance(instruction, Collective) and instruction.paced
