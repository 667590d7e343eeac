"""The captured training step: one flat ATen graph whose inputs and outputs have roles."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import fx

__all__ = ["Graph", "GraphInput", "Role", "module_of"]


class Role(Enum):
    """What a graph input is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    BATCH = "batch"


@dataclass(frozen=True)
class GraphInput:
    """One placeholder: its role, its name (of a parameter or buffer, or "batch.0" ...) and its node."""

    role: Role
    name: str
    node: fx.Node


@dataclass(frozen=True, eq=False)
class Graph:
    """(parameters, buffers, batch) -> (loss, gradients, buffers after the step), for the global batch.

    nodes: operators in order, placeholders and output left out. constants: tensors that the graph reads by name.
    gradients: parameter name -> node, for the trainable parameters that the loss depends on. buffers: buffer name ->
    node; batch norm updates running statistics in place, so such a node stands for the value after the step.
    """

    model_name: str
    inputs: tuple[GraphInput, ...]
    nodes: tuple[fx.Node, ...]
    constants: Mapping[str, torch.Tensor]
    loss: fx.Node
    gradients: Mapping[str, fx.Node]
    buffers: Mapping[str, fx.Node]


def module_of(node: fx.Node) -> str:
    """Dotted name of the module whose forward or backward made this node ("" if it belongs to none)."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else ""
