"""The captured step, of training or of evaluation: one flat ATen graph whose inputs and outputs have roles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import fx

__all__ = ["Graph", "GraphInput", "Role", "module_of", "updated_by", "where"]


class Role(Enum):
    """What a graph input is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    BATCH = "batch"
    DECISION = "decision"


@dataclass(frozen=True)
class GraphInput:
    """One placeholder: its role, its name (of a parameter or buffer, or "batch.0" ..., "decision.0.0") and its node."""

    role: Role
    name: str
    node: fx.Node


@dataclass(frozen=True, eq=False)
class Graph:
    """(parameters, buffers, batch, decisions) -> (loss, gradients, new buffers, metrics), for the global batch.

    nodes: operators in order, placeholders and output left out. constants: tensors that the graph reads by name.
    gradients: parameter name -> node, for the trainable parameters that the loss depends on. buffers: buffer name ->
    node; batch norm updates running statistics in place, so such a node stands for the value after the step. metrics:
    the losses by name that `loss` is the sum of, if there are several. A step of evaluation has neither loss nor
    gradients, and its metrics are tensors of any shape. origins: node of the backward pass -> node of the forward pass
    whose gradient it computes, where autograd tells. copies: node of the backward pass -> node of the forward pass that
    it repeats (`workload.recompute`); they are among the origins too.
    """

    model_name: str
    inputs: tuple[GraphInput, ...]
    nodes: tuple[fx.Node, ...]
    constants: Mapping[str, torch.Tensor]
    loss: fx.Node | None
    gradients: Mapping[str, fx.Node]
    buffers: Mapping[str, fx.Node]
    metrics: Mapping[str, fx.Node] = field(default_factory=dict)
    origins: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    copies: Mapping[fx.Node, fx.Node] = field(default_factory=dict)


def module_of(node: fx.Node) -> str:
    """Dotted name of the module whose forward or backward made this node ("" if it belongs to none)."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else ""


def where(node: fx.Node) -> str:
    """For people: the module of a node, or what it belongs to in place of one inside the model."""
    return module_of(node) or ("the model" if node.meta.get("nn_module_stack") else "the loss")


def updated_by(node: fx.Node) -> tuple[fx.Node, ...]:
    """The running statistics that a node updates in place: those of a batch norm in training."""
    if node.target is not torch.ops.aten.native_batch_norm.default or not node.args[5]:
        return ()
    return tuple(statistic for statistic in node.args[3:5] if isinstance(statistic, fx.Node))
