"""Lower one micro-batch of a step: its passes through the stages, as units in any order."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import fx
from torch.utils import _pytree as pytree

from meshemu.workload.formats.storing import Storing
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.operators import Operators
from meshemu.workload.pipeline_order import Turn
from meshemu.workload.products import product_of, root_of
from meshemu.workload.spmd import Value
from meshemu.workload.stages import Stages

__all__ = ["Before", "MicroBatch", "ParameterSource"]

Before = Callable[[fx.Node, Callable[[fx.Node], Any]], None]
"""(node, function that gives the Value of another node)."""


class ParameterSource(Protocol):
    """Gives the parameters of a step as operators read them."""

    @property
    def pooled_per_pass(self) -> bool:
        """Whether parameters are forgotten after a pass."""

    def __contains__(self, node: object) -> bool:
        """Whether a node is a parameter."""

    def read(self, node: fx.Node) -> Value:
        """The Value of a parameter."""

    def forget(self) -> None:
        """A pass has ended."""


class MicroBatch:
    """One micro-batch: `run` writes its instructions, turn by turn; `read` gives the Value of a node.

    source gives the Value of a batch leaf, a buffer or a constant. index: its number; several: whether there are more.
    before is told every operator before its arguments are read; on_ready every node with its Value as soon as there is
    one. storing: rounds what operators store, if values have number formats by role.
    """

    def __init__(
        self,
        low: Lowering,
        operators: Operators,
        stages: Stages,
        parameters: ParameterSource,
        source: Callable[[fx.Node], Value],
        *,
        index: int,
        several: bool,
        before: Before | None = None,
        on_ready: Callable[[fx.Node, Value], None] | None = None,
        storing: Storing | None = None,
    ) -> None:
        self._low = low
        self._operators = operators
        self._stages = stages
        self._parameters = parameters
        self._source = source
        self._index = index
        self._suffix = f" #{index}" if several else ""
        self._environment: dict[fx.Node, Any] = {}
        self._roaming: dict[tuple[fx.Node, tuple[int, ...]], Any] = {}
        self._before = before
        self._on_ready = on_ready
        self._storing = storing

    def run(self, turn: Turn) -> None:
        """One pass through one stage."""
        self._low.environment = self._environment
        for node in self._stages.nodes(turn):
            value = self.read(node)
            if self._on_ready is not None:
                with self._low.on(self._stages.at(node)):
                    self._on_ready(node, value)
        if self._parameters.pooled_per_pass:
            self._parameters.forget()
            views = self._stages.rearranged
            self._roaming = {key: value for key, value in self._roaming.items() if key[0] not in views}

    def read(self, node: fx.Node) -> Any:
        """The Value (or tuple of Values) of a node, on its stage; of one without, on the stages that work now."""
        if node in self._parameters:
            return self._parameters.read(node)
        if node not in self._stages.of:
            key = node, self._low.stages
            if key not in self._roaming:
                self._roaming[key] = self._lower(node)
            return self._roaming[key]
        if node not in self._environment:
            with self._low.on(self._stages.at(node)):
                self._environment[node] = self._lower(node)
        return self._environment[node]

    def _lower(self, node: fx.Node) -> Any:
        if node.op in ("get_attr", "placeholder"):
            return self._source(node)
        if self._before is not None:
            self._before(node, self.read)
        for source in node.all_input_nodes:
            self.read(source)
        self._low.begin(node, self._suffix)
        if node in self._stages.draws:
            self._low.n_random = self._index * self._stages.n_draws + self._stages.draws[node]
        args = pytree.tree_map_only(fx.Node, self._argument, tuple(node.args))
        kwargs = pytree.tree_map_only(fx.Node, self._argument, dict(node.kwargs))
        if self._storing is not None:
            self._storing.begin(node, self._index)
        result = self._operators.lower(node, self._brought_to_weight(node, args), kwargs)
        return result if self._storing is None else self._storing.node(node, result, (args, kwargs))

    def _brought_to_weight(self, node: fx.Node, args: Any) -> Any:
        """The arguments of a product, with an activation gathered whose cut is at odds with that of the weight.

        Otherwise the weight would be cut again to fit the activation.
        """
        product = product_of(node)
        if product is None or root_of(product.weight, self._parameters) is None:
            return args
        position = node.args.index(product.activation)
        activation, weight = self._low.resolve(args[position]), args[node.args.index(product.weight)]
        arriving = activation.layout.split_of(product.activation_dim)
        held = weight.layout.split_of(product.contracted_dim)
        if arriving is None or not set(arriving.axes) & set(weight.layout.axes):
            return args
        if held is not None and held.moved(product.activation_dim) == arriving:
            return args
        others = tuple(s for s in activation.layout.splits if s is not arriving)
        return (*args[:position], self._low.fetch(activation, Layout(others)), *args[position + 1 :])

    def _argument(self, node: fx.Node) -> Any:
        """What an operator reads, on its stage.

        Terms with several readers are summed once, where they are made, before each reader makes terms of its own.
        """
        value = self.read(node)
        if isinstance(value, Value) and len(node.users) > 1:
            with self._low.on(value.layout.stages):
                value = self._low.resolve(value)
        return pytree.tree_map_only(Value, self._low.bring, value)
