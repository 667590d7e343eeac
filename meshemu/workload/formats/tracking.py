"""Which running maxima a step follows."""

from collections.abc import Iterator

from torch.utils import _pytree as pytree

from meshemu.workload.spmd import Collective, Compute, Spmd, Tracked

__all__ = ["tracked_keys"]


def tracked_keys(spmd: Spmd) -> frozenset[str]:
    """Keys of the tensors whose biases slide, and of the collectives whose messages' do."""
    return frozenset(_keys(spmd))


def _keys(spmd: Spmd) -> Iterator[str]:
    for instruction in spmd.instructions:
        match instruction:
            case Compute() if "number_format" in instruction.attributes:
                yield from (leaf.key for leaf in pytree.tree_leaves(instruction.args) if isinstance(leaf, Tracked))
            case Collective(carried=carried) if carried is not None and carried.role.sliding:
                yield carried.key
