"""Find the rule of an operator: by name first, then by PyTorch's own `pointwise` tag."""

import operator
from typing import Any

import torch
from torch import fx

from meshemu.workload.decisions import Decided
from meshemu.workload.lowering import Lowering, Rule
from meshemu.workload.rules import (
    attention,
    contraction,
    convolution,
    embedding,
    group_norm,
    indexing,
    joining,
    layer_norm,
    loss,
    normalisation,
    parts,
    picking,
    pointwise,
    pooling,
    random,
    reduction,
    resampling,
    softmax,
    statistics,
    tiling,
    view,
)

__all__ = ["find_rule", "needs_rule"]

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **view.RULES,
    **reduction.RULES,
    **statistics.RULES,
    **softmax.RULES,
    **parts.RULES,
    **joining.RULES,
    **tiling.RULES,
    **contraction.RULES,
    **attention.RULES,
    **embedding.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **resampling.RULES,
    **normalisation.RULES,
    **layer_norm.RULES,
    **group_norm.RULES,
    **indexing.RULES,
    **picking.RULES,
    **loss.RULES,
    **random.RULES,
}
"""ATen name, with overload where overloads differ ("sum.dim_IntList") or without ("relu") -> rule."""


def find_rule(node: fx.Node) -> Rule | None:
    """The rule of a node's operator, or None."""
    target = node.target
    if target is operator.getitem:
        return _getitem
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    rule = RULES.get(f"{target._opname}.{target._overloadname}") or RULES.get(target._opname)
    if rule is None and torch.Tag.pointwise in target.tags and not target._schema.is_mutable:
        return pointwise.pointwise
    return rule


def needs_rule(node: fx.Node) -> bool:
    """Whether its rule is asked even if all inputs are replicated: it is random, updates in place, or is listed so."""
    target = node.target
    if isinstance(target, Decided):
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return True
    special = target._opname in normalisation.RULES or target._opname in view.RULED | pointwise.COPIES | pointwise.FILLS
    return special or target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _getitem(_low: Lowering, _node: fx.Node, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return args[0][args[1]]
