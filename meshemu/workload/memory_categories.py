"""What every value of a step is for: which category of memory it takes (`cost.memory_use`)."""

from collections.abc import Collection
from math import prod

from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.workload.spmd import Collective, Compute, Fetch, Instruction, PushAdd, Spmd, inputs_of, outputs_of

__all__ = ["categories_of"]

_WEIGHTS, _GRADIENTS, _, _ACTIVATIONS, _COMMUNICATION, _BATCH = range(len(MEMORY_CATEGORIES))

PASSING = frozenset({"add", "div", "mul", "round_format", "_to_copy"})
"""Op classes, beside views, that bring gradients of parameters on: added up, averaged, clipped, rounded."""


def categories_of(spmd: Spmd, views: Collection[str]) -> dict[int, int]:
    """Value id -> index into MEMORY_CATEGORIES. A view has that of its source where memory is counted, not here."""
    found: dict[int, int] = {}
    for name, value in spmd.inputs.items():
        found[value.id] = _BATCH if name.startswith(("batch.", "decision.")) else _WEIGHTS
    found.update((value.id, _WEIGHTS) for value in spmd.constants.values())
    gradients = _gradients(spmd, frozenset(views))
    for instruction in spmd.instructions:
        kind = _kind(instruction, found)
        found.update((v.id, _GRADIENTS if v.id in gradients else kind) for v in outputs_of(instruction))
    return found


def _kind(instruction: Instruction, found: dict[int, int]) -> int:
    """The category of what an instruction makes, gradients of parameters apart."""
    match instruction:
        case Fetch() | Collective(kind="all_gather"):
            return _COMMUNICATION
        case Compute() if instruction.inputs and all(found[v.id] == _WEIGHTS for v in instruction.inputs):
            return _WEIGHTS
        case _:
            return _ACTIVATIONS


def _gradients(spmd: Spmd, views: frozenset[str]) -> set[int]:
    """Ids of gradients of parameters and of the terms that they are made of, as far as these only pass through."""
    found = {value.id for value in spmd.gradients.values()}
    for instruction in reversed(spmd.instructions):
        made = [value for value in outputs_of(instruction) if value.id in found]
        if not made:
            continue
        match instruction:
            case Collective():
                pairs = zip(instruction.sources, instruction.outputs, strict=True)
                found.update(source.id for source, output in pairs if output.id in found)
            case Fetch() | PushAdd():
                found.add(instruction.source.id)
            case Compute() if instruction.op_class in views | PASSING:
                found.update(v.id for v in inputs_of(instruction) if prod(v.shape) == prod(made[0].shape))
            case _:
                pass
    return found
