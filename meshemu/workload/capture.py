"""Capture one step of any nn.Module, of training or of evaluation, as a flat graph, by shapes only.

Two passes of make_fx under fake tensors: the first traces forward, loss and autograd; the second removes in-place
updates by functionalisation. No tensor of the model is computed or copied. A step whose path depends on values is
captured along the path that a list of decisions says.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from meshemu.errors import CaptureError, DataDependentError, MeshemuError
from meshemu.workload.attributes import attributes_kept, forgotten
from meshemu.workload.decisions import Decided, Decision, Replay, UnansweredError, asking
from meshemu.workload.graph import Graph, GraphInput, Role, updated_by, where
from meshemu.workload.origins import origins_of
from meshemu.workload.recurrent import PlainLstm
from meshemu.workload.step_maths import StepFunction, StepMaths, checked_maths

__all__ = ["capture", "capture_maths", "decision_inputs"]

_TRACING = Lock()
"""Tracing patches torch for the whole process, and ranks may be threads of it."""


def capture(
    model: nn.Module,
    batch: Any,
    step: StepFunction,
    *,
    gradients: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> Graph:
    """The graph of one step of `model` on a global `batch`.

    batch: any nest of tuples, lists and dicts of tensors. gradients: False captures a step of evaluation, whose metrics
    are what `step` returns. autocast_dtype: forward and loss run under torch.autocast with it, as in plain PyTorch.

    Raises:
        DataDependentError: control flow or shapes depend on values.
        CaptureError: the loss is not a differentiable scalar, or the forward fails.
    """
    return capture_maths(*checked_maths(model, batch, step, gradients=gradients, autocast_dtype=autocast_dtype))


def capture_maths(
    maths: StepMaths, leaves: Sequence[torch.Tensor], decisions: Sequence[Decision] = ()
) -> Graph:
    """The graph of one step on batches with tensors like `leaves`; decisions: what it is told when it asks for values.

    Raises:
        DataDependentError: the step asks for more.
        CaptureError: as `capture`.
    """
    model_name = type(maths.model).__name__

    def whole_step(p: dict[str, Any], b: dict[str, Any], flat: list[Any], taken: list[list[Any]]) -> Any:
        replay = Replay(decisions, taken)
        with asking(replay), PlainLstm(), attributes_kept(maths.model) as replaced:
            results = maths(p, b, flat)
        for name, tensor in replaced.items():
            if replay.read(tensor):
                raise forgotten(name)
        if len(replay.markers) < len(decisions):
            raise CaptureError(
                f"{model_name} cannot be captured: {len(decisions)} values are asked for when it is run, "
                f"{len(replay.markers)} when it is captured"
            )
        return *results, replay.markers

    answers = [list(decision.results) for decision in decisions]
    example = (maths.parameters, maths.buffers, list(leaves), answers)
    try:
        with _TRACING, _quiet(), fx_traceback.preserve_node_meta(), torch.autocast("cpu", enabled=False):
            with _module_names(maths.model):
                traced = _trace(whole_step)(*example)
            interpreter = fx.Interpreter(traced)
            flat_graph = _trace(functionalize(lambda *flat: interpreter.run(*flat)))(*pytree.tree_leaves(example))
    except MeshemuError:
        raise
    except UnansweredError as question:
        raise DataDependentError(
            f"{model_name} cannot be captured as one graph: what follows {question} depends on data"
        ) from question
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CaptureError(f"{model_name} cannot be captured as one graph: {reason}") from error
    roles = [(Role.PARAMETER, name) for name in maths.parameters] + [(Role.BUFFER, name) for name in maths.buffers]
    roles += [(Role.BATCH, f"batch.{i}") for i in range(len(leaves))]
    roles += [(Role.DECISION, name) for name in decision_inputs(decisions)]
    origins = origins_of(traced.graph, flat_graph.graph)
    graph = _graph(model_name, flat_graph, roles, origins, [decision.operator for decision in decisions])
    _check_constants(graph, {**maths.parameters, **maths.buffers})
    return graph


def decision_inputs(decisions: Sequence[Decision]) -> dict[str, torch.Tensor]:
    """The graph inputs that hold what was decided, by name."""
    return {f"decision.{k}.{i}": t for k, decision in enumerate(decisions) for i, t in enumerate(decision.results)}


def _trace(function: Callable[..., Any]) -> Callable[..., fx.GraphModule]:
    """make_fx by shapes only; tensors that the model or the loss hold beside parameters become constants."""
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters even if nothing reads it: batch norm in training updates its running statistics."""
    return node.is_impure() or bool(updated_by(node))


def _graph(
    model_name: str,
    module: fx.GraphModule,
    roles: list[tuple[Role, str]],
    origins: Mapping[fx.Node, fx.Node],
    operators: Sequence[str],
) -> Graph:
    """operators: that were asked, one for each pair of markers among the outputs."""
    module.graph.eliminate_dead_code(_has_effect)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    inputs = tuple(GraphInput(role, name, node) for (role, name), node in zip(roles, placeholders, strict=True))
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    loss, gradients, metrics, buffers, markers = output.args[0]
    output.args = ((loss, gradients, metrics, buffers),)
    for operator, (asked, taken) in zip(operators, markers, strict=True):
        _decide(operator, asked, taken)
    nodes = tuple(node for node in module.graph.nodes if node.op in ("call_function", "get_attr"))
    constants = {node.target: getattr(module, node.target) for node in nodes if node.op == "get_attr"}
    _check_shapes(model_name, nodes)
    _name_backward_nodes(inputs, nodes)
    kept = set(nodes)
    origins = {node: origin for node, origin in origins.items() if node in kept and origin in kept}
    return Graph(model_name, inputs, nodes, constants, loss, gradients, buffers, metrics, origins)


def _decide(operator: str, asked: Sequence[fx.Node], taken: Sequence[fx.Node]) -> None:
    """Turn the markers of a question into the operator that waits for what is asked about and gives what was decided.

    Where it has several results, the first does its work.
    """
    sources = [marker.args[0] for marker in asked]
    for i, marker in enumerate(taken):
        marker.target = Decided(operator, "lift_fresh" if i else operator.split(".")[1])
        marker.args = (*sources, marker.args[0])
        marker.kwargs = {}
    for marker in asked:
        marker.graph.erase_node(marker)


def _check_constants(graph: Graph, state: dict[str, torch.Tensor]) -> None:
    """A parameter that is read behind the model's back would keep its first value for ever."""
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in state.items() if tensor.numel()}
    for constant in graph.constants.values():
        if name := names.get(constant.untyped_storage().data_ptr()):
            raise CaptureError(
                f"{graph.model_name} cannot be captured as one graph: {name} is read from outside the model "
                "(take it from the module inside forward or the loss)"
            )


def _check_shapes(model_name: str, nodes: tuple[fx.Node, ...]) -> None:
    for node in nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            sizes = leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,)
            if not all(isinstance(n, int) for n in sizes if n is not None):
                raise CaptureError(
                    f"{model_name} cannot be captured as one graph: the shape of what {node.target} (node {node.name}, "
                    f"module {where(node)}) makes depends on data"
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the traceback that torch logs of an operator whose inputs do not fit: the error says it in one line.

    And without its warning that hooks see a compiled module twice, once as itself: that gives one name more.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
            yield
    finally:
        logger.disabled = before


@contextmanager
def _module_names(model: nn.Module) -> Iterator[None]:
    """Write the dotted name of the running module into the metadata of every node that its forward makes."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[str] = []

    def publish() -> None:
        if stack:
            fx_traceback.current_meta["nn_module_stack"] = {name: (name, None) for name in stack}
        else:
            fx_traceback.current_meta.pop("nn_module_stack", None)

    def enter(module: nn.Module, _args: Any) -> None:
        if module in names:
            stack.append(names[module])
            publish()

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        if module in names:
            stack.pop()
            publish()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        fx_traceback.current_meta.pop("nn_module_stack", None)


def _name_backward_nodes(inputs: tuple[GraphInput, ...], nodes: tuple[fx.Node, ...]) -> None:
    """Autograd's nodes run outside any forward: take the module of the parameter, else of the activation, they read."""
    for graph_input in inputs:
        if graph_input.role in (Role.PARAMETER, Role.BUFFER):
            owner = graph_input.name.rpartition(".")[0]
            graph_input.node.meta["nn_module_stack"] = {owner: (owner, None)}
    for node in nodes:
        if not node.meta.get("nn_module_stack"):
            sources = [arg for arg in node.all_input_nodes if arg.meta.get("nn_module_stack")]
            if sources:
                node.meta["nn_module_stack"] = sources[-1].meta["nn_module_stack"]
