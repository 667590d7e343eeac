"""The samples of one micro-batch of a global batch, and how many micro-batches a pipeline gets."""

from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from meshemu.errors import InputError, PlanError
from meshemu.workload.plan import Plan

__all__ = ["batch_size_of", "first_of_batch", "first_samples", "with_micro_batches"]


def first_samples(batch: Any, micro_batches: int) -> Any:
    """The first micro-batch of a batch (any nest of tensors); leaves without samples in dim 0 are left whole.

    Raises InputError if the batch cannot be cut into so many of one size.
    """
    if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 1:
        raise InputError(f"micro_batches = {micro_batches!r} must be a whole number >= 1")
    if micro_batches == 1:
        return batch
    size = batch_size_of(batch)
    if not size or size % micro_batches:
        raise InputError(f"micro_batches = {micro_batches} does not divide the batch size {size}")
    return first_of_batch(batch, size // micro_batches)


def first_of_batch(batch: Any, n_samples: int) -> Any:
    """The first samples of a batch (any nest of tensors); leaves without samples in dim 0 are left whole."""
    size = batch_size_of(batch)

    def cut(leaf: Any) -> Any:
        has_samples = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == size
        return leaf[:n_samples] if has_samples else leaf

    return pytree.tree_map(cut, batch)


def with_micro_batches(plan: Plan, batch: Any, given: int) -> Plan:
    """A plan with a pipeline, with as many micro-batches as it asks for; else as many as are `given`, if more than 1.

    Where neither says, it is the greatest divisor of the batch size that is at most twice the number of stages and
    leaves every device a sample. Raises PlanError where both say something different, or the batch does not allow it.
    """
    wanted, size, parts = plan.micro_batches, batch_size_of(batch), plan.size(plan.batch_axes)
    if wanted is not None and given not in (1, wanted):
        raise PlanError(f"plan.micro_batches = {wanted} and training.micro_batches = {given} differ")
    if wanted is None and given == 1:
        fitting = (n for n in range(2 * plan.n_stages, 0, -1) if not size % n and size // n >= parts)
        count = next(fitting, 1)
    else:
        count = wanted or given
    if size % count:
        raise PlanError(f"plan.micro_batches = {count} does not divide the batch size {size}")
    if size // count < parts:
        over = " x ".join(plan.batch_axes)
        raise PlanError(
            f"plan.micro_batches = {count}: {size} / {count} = {size // count} samples a micro-batch < {parts} devices "
            f"over {over}"
        )
    return replace(plan, micro_batches=count)


def batch_size_of(batch: Any) -> int:
    """Size of dim 0 of the first leaf that has dims; 0 without one."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return int(leaves[0].shape[0]) if leaves else 0
