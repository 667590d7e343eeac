"""Graph + Plan -> Spmd: lower every micro-batch, and bring its gradients to the layouts of their parameters."""

from collections.abc import Callable

from torch import fx

from meshemu.errors import PlanError
from meshemu.hardware.format_roles import NONE, Formats
from meshemu.workload.clipping import clip
from meshemu.workload.dependence import updated_buffers
from meshemu.workload.formats.storing import Storing
from meshemu.workload.gradients import Gradients, accumulated
from meshemu.workload.graph import Graph, GraphInput, Role
from meshemu.workload.index_limits import index_limits
from meshemu.workload.layout import REPLICATED, Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.micro_batch import Before, MicroBatch, ParameterSource
from meshemu.workload.operators import Operators
from meshemu.workload.parameters import Parameters, parameter_layouts
from meshemu.workload.pipeline_order import Turn, turns
from meshemu.workload.plan import Plan
from meshemu.workload.scalar_order import scalars_apart
from meshemu.workload.spmd import Part, Spmd, Value
from meshemu.workload.stage_costs import OpCost, flops_and_bytes
from meshemu.workload.stages import Stages, assign_stages
from meshemu.workload.tensor_cuts import TENSOR, TensorCuts

__all__ = ["partition"]


def partition(
    graph: Graph,
    plan: Plan,
    bucket_bytes: int,
    *,
    micro_batches: int = 1,
    strict: bool = False,
    clip_norm: float | None = None,
    op_cost: OpCost = flops_and_bytes,
    formats: Formats = NONE,
) -> Spmd:
    """The SPMD instructions of `graph` under `plan`.

    Gradients that are sums over devices are reduced in buckets of at least `bucket_bytes`, each as soon as its last
    gradient is there. micro_batches: how often the graph is gone through in a step, each time with the next samples of
    a batch of that many times the graph's; gradients and losses are means over them. strict: operators without a
    sharding rule are refused, where otherwise their inputs are gathered. clip_norm: the norm over all gradients that
    they are scaled down to. op_cost: of operators, by which stages are balanced. formats: of values by role;
    gradients of parameters are rounded after they are clipped.

    Raises UnsupportedOpError for an operator that cannot be computed, PlanError where the batch does not fit the plan.
    """
    stages = assign_stages(graph, plan.n_stages, plan.stages, op_cost)
    low = Lowering(plan)
    storing = Storing(low, graph, formats) if formats else None
    low.rounder = storing
    layouts = parameter_layouts(graph, plan, _working_layouts(graph, plan))
    parameters = Parameters(low, stages, layouts, bucket_bytes, storing)
    gradients = Gradients(
        low,
        stages,
        {name: value.layout for name, value in parameters.inputs.items()},
        bucket_bytes=bucket_bytes,
        micro_batches=micro_batches,
        scatter=plan.zero > 1,
        storing=storing,
    )
    operators = Operators(low, strict=strict)
    step = _Step(low, stages, parameters, operators, micro_batches, storing)
    for turn in turns(plan.order, plan.n_stages, micro_batches):
        step.run(turn, gradients)
    reduced, norm = gradients.finish(), None
    if clip_norm is not None and reduced:
        reduced, norm = clip(low, reduced, clip_norm)
    if storing is not None:
        reduced = storing.gradients(reduced)
    means = {node: _whole(low, value) for node, value in step.totals.items()}
    return Spmd(
        inputs={**parameters.inputs, **step.inputs},
        constants=step.constants,
        constant_tensors=graph.constants,
        loss=None if graph.loss is None else means[graph.loss],
        gradients=reduced,
        buffers={name: _whole(low, value) for name, value in step.buffers().items()},
        metrics={name: means[node] for name, node in graph.metrics.items()},
        parts=step.parts,
        gathered=operators.gathered,
        index_limits=index_limits(graph),
        gradient_norm=norm,
        instructions=scalars_apart(low.instructions),
    )


def _working_layouts(graph: Graph, plan: Plan) -> dict[str, Layout]:
    """How the axis "tensor" cuts parameters, by a rehearsal of the forward pass whose instructions are thrown away."""
    if plan.size((TENSOR,)) == 1:
        return {}
    low = Lowering(plan)
    cuts = TensorCuts(low, graph, plan.modules)
    step = _Step(low, assign_stages(graph, 1), cuts, Operators(low, strict=False), 1)
    step.micro_batch(0, before=cuts.decide).run(Turn(0, True, 0))
    return cuts.layouts()


def _whole(low: Lowering, value: Value) -> Value:
    """A result of the step, whole on every device of its stage."""
    with low.on(value.layout.stages):
        return low.replicate(value)


class _Step:
    """The micro-batches of a step, and what passes from one to the next."""

    def __init__(
        self,
        low: Lowering,
        stages: Stages,
        parameters: ParameterSource,
        operators: Operators,
        micro_batches: int,
        storing: Storing | None = None,
    ) -> None:
        self.low = low
        self.storing = storing
        self.stages = stages
        self.graph = stages.graph
        self.parameters = parameters
        self.operators = operators
        self.micro_batches = micro_batches
        self.batch_size = _batch_size(self.graph)
        self.updated = updated_buffers(self.graph)
        self.inputs: dict[str, Value] = {}
        self.parts: dict[str, Part] = {}
        self.constants: dict[str, Value] = {}
        self.totals: dict[fx.Node, Value] = {}
        self.started: dict[int, MicroBatch] = {}
        self._items = {item.node: item for item in self.graph.inputs}
        for item in self.graph.inputs:
            if item.role is Role.BUFFER:
                self._input(item, 0)

    def micro_batch(
        self, index: int, *, before: Before | None = None, on_ready: Callable[[fx.Node, Value], None] | None = None
    ) -> MicroBatch:
        """Micro-batch `index`, with the buffers that the one before it leaves."""
        return MicroBatch(
            self.low,
            self.operators,
            self.stages,
            self.parameters,
            lambda node: self._source(node, index),
            index=index,
            several=self.micro_batches > 1,
            before=before,
            on_ready=on_ready,
            storing=self.storing,
        )

    def run(self, turn: Turn, gradients: Gradients) -> None:
        """One pass of one micro-batch through one stage; with its last one, the micro-batch ends."""
        index = turn.micro_batch
        if index not in self.started:
            self.started[index] = self.micro_batch(
                index, on_ready=lambda node, value: gradients.take(node, value, index)
            )
        self.started[index].run(turn)
        if turn == Turn(0, False, index):
            self._end(index, gradients)

    def buffers(self) -> dict[str, Value]:
        """Buffer name -> its Value after the step."""
        last = self.started[self.micro_batches - 1]
        return {
            name: last.read(node) if name in self.updated else self.inputs[name]
            for name, node in self.graph.buffers.items()
        }

    def _end(self, index: int, gradients: Gradients) -> None:
        """Take the gradients that no pass has made, and add the losses up."""
        low, micro_batch = self.low, self.started[index]
        for nodes in self.stages.terms.values():
            for node in nodes:
                with low.on(self.stages.at(node)):
                    gradients.take(node, micro_batch.read(node), index)
        losses = () if self.graph.loss is None else (self.graph.loss,)
        for node in dict.fromkeys((*losses, *self.graph.metrics.values())):
            last = index == self.micro_batches - 1
            with low.on(self.stages.at(node)):
                self.totals[node] = accumulated(
                    low, self.totals.get(node), micro_batch.read(node), self.micro_batches, last=last
                )

    def _source(self, node: fx.Node, index: int) -> Value:
        """The Value of a constant, a batch leaf or a buffer at the beginning of a micro-batch."""
        if node.op == "get_attr":
            return self._constant(str(node.target))
        item = self._items[node]
        if item.name in self.updated and index:
            value: Value = self.started[index - 1].read(self.graph.buffers[item.name])
            return value
        return self._input(item, index)

    def _input(self, item: GraphInput, index: int) -> Value:
        """The Value of a buffer or batch leaf; of a leaf with samples, the part that is one micro-batch."""
        meta = item.node.meta["val"]
        shape, name = tuple(meta.shape), item.name
        samples = item.role is Role.BATCH and bool(shape) and shape[0] == self.batch_size
        if samples and self.micro_batches > 1:
            name = f"{item.name}#{index}"
            self.parts[name] = Part(item.name, 0, index * shape[0], (index + 1) * shape[0])
        if name not in self.inputs:
            layout = _batch_layout(shape, self.low.plan, self.batch_size) if item.role is Role.BATCH else REPLICATED
            with self.low.on(self.stages.readers(item.node)):
                self.inputs[name] = self.low.value(shape, meta.dtype, layout)
        return self.inputs[name]

    def _constant(self, name: str) -> Value:
        tensor = self.graph.constants[name]
        if name not in self.constants:
            with self.low.on(self.stages.readers_of_constant(name)):
                self.constants[name] = self.low.value(tensor.shape, tensor.dtype)
        return self.constants[name]


def _batch_size(graph: Graph) -> int:
    """Size of dim 0 of the first batch leaf that has dims."""
    sizes = [i.node.meta["val"].shape[0] for i in graph.inputs if i.role is Role.BATCH and i.node.meta["val"].dim()]
    return int(sizes[0]) if sizes else 0


def _batch_layout(shape: tuple[int, ...], plan: Plan, batch_size: int) -> Layout:
    """Batch leaves are cut by samples, and images (the last two of four or more dims) by rows and columns."""
    splits = []
    if plan.batch_axes and shape:
        parts = plan.size(plan.batch_axes)
        if batch_size < parts:
            over = " x ".join(plan.batch_axes)
            raise PlanError(
                f"plan {over} needs at least one sample a device: batch size {batch_size} < {parts} devices"
            )
        if shape[0] == batch_size:
            splits.append(Split(0, plan.batch_axes, even_ranges(batch_size, parts)))
    if plan.has("h") and len(shape) >= 4:
        for dim, axis in ((len(shape) - 2, "h"), (len(shape) - 1, "w")):
            splits.append(Split(dim, (axis,), even_ranges(shape[dim], plan.size((axis,)))))
    return Layout(tuple(splits))
