"""Capture one step of any nn.Module, of training or of evaluation, as a flat graph, by shapes only.

Two passes of make_fx under fake tensors: the first traces forward, loss and autograd; the second removes in-place
updates by functionalisation. No tensor of the model is computed or copied.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from meshemu.errors import CaptureError, MeshemuError
from meshemu.workload.graph import Graph, GraphInput, Role, module_of, updated_by
from meshemu.workload.origins import number_backward, origins_of
from meshemu.workload.outputs import named_losses, named_metrics

__all__ = ["StepFunction", "autocast", "capture"]

_TRACING = Lock()
"""Tracing patches torch for the whole process, and ranks may be threads of it."""

StepFunction = Callable[[Callable[..., Any], Any], Any]
"""(call_model, batch) -> loss, or several by name, where call_model(*args, **kwargs) runs the module."""


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context in which a model computes: torch.autocast with `dtype`, or none, whatever the caller's context is."""
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


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
        CaptureError: control flow depends on data, the loss is not a differentiable scalar, or the forward fails.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    trainable = [name for name, p in parameters.items() if p.requires_grad and gradients]
    if gradients and not trainable:
        raise CaptureError(f"{type(model).__name__} has no trainable parameter")
    places = _places(model)
    leaves, spec = pytree.tree_flatten(batch)
    _check_leaves({**parameters, **buffers}, leaves)

    class Step(nn.Module):
        """Loss and gradients in one forward, so that whatever reads the model's parameters sees those of the graph."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, p: dict[str, Any], flat: list[Any]) -> Any:
            with autocast(autocast_dtype), torch.set_grad_enabled(gradients):
                returned = step(self.model, pytree.tree_unflatten(flat, spec))
                loss, metrics = named_losses(returned) if gradients else (None, named_metrics(returned))
            if loss is None:
                return None, {}, metrics
            number_backward(loss)
            found = torch.autograd.grad(loss, [p[name] for name in trainable], allow_unused=True)
            return loss, {name: g for name, g in zip(trainable, found, strict=True) if g is not None}, metrics

    def whole_step(p: dict[str, Any], b: dict[str, Any], flat: list[Any]) -> Any:
        p = {name: t.detach().requires_grad_(name in trainable) for name, t in p.items()}
        b = {name: t.clone() for name, t in b.items()}
        tensors = {**p, **b}
        state = {f"model.{place}": tensors[name] for place, name in places.items()}
        return *functional_call(Step(), state, (p, flat), tie_weights=False), b

    example = (parameters, buffers, leaves)
    try:
        with _TRACING, fx_traceback.preserve_node_meta(), autocast(None):
            with _module_names(model):
                traced = _trace(whole_step)(*example)
            interpreter = fx.Interpreter(traced)
            flat_graph = _trace(functionalize(lambda *flat: interpreter.run(*flat)))(*pytree.tree_leaves(example))
    except MeshemuError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CaptureError(f"{type(model).__name__} cannot be captured as one graph: {reason}") from error
    roles = [(Role.PARAMETER, name) for name in parameters] + [(Role.BUFFER, name) for name in buffers]
    roles += [(Role.BATCH, f"batch.{i}") for i in range(len(leaves))]
    graph = _graph(type(model).__name__, flat_graph, roles, origins_of(traced.graph, flat_graph.graph))
    _check_constants(graph, {**parameters, **buffers})
    return graph


def _places(model: nn.Module) -> dict[str, str]:
    """Dotted name of every attribute that holds a parameter or buffer -> the name under which it is listed.

    Each module counts once, however often it is used: functional_call would not restore it otherwise.
    """
    listed = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    places: dict[str, str] = {}
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False, remove_duplicate=False)]
        own += [*module.named_buffers(recurse=False, remove_duplicate=False)]
        places |= {f"{prefix}.{name}" if prefix else name: listed[id(t)] for name, t in own}
    return places


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
) -> Graph:
    module.graph.eliminate_dead_code(_has_effect)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    inputs = tuple(GraphInput(role, name, node) for (role, name), node in zip(roles, placeholders, strict=True))
    nodes = tuple(node for node in module.graph.nodes if node.op in ("call_function", "get_attr"))
    constants = {node.target: getattr(module, node.target) for node in nodes if node.op == "get_attr"}
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    loss, gradients, metrics, buffers = output.args[0]
    _check_shapes(model_name, nodes)
    _name_backward_nodes(inputs, nodes)
    kept = set(nodes)
    origins = {node: origin for node, origin in origins.items() if node in kept and origin in kept}
    return Graph(model_name, inputs, nodes, constants, loss, gradients, buffers, metrics, origins)


def _check_leaves(state: dict[str, torch.Tensor], leaves: list[Any]) -> None:
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            raise CaptureError(f"batch leaf {i} is a {type(leaf).__name__}, not a tensor")
    for name, tensor in [*state.items(), *((f"batch leaf {i}", leaf) for i, leaf in enumerate(leaves))]:
        if tensor.device.type != "cpu":
            raise CaptureError(f"{name} is on device {tensor.device}: meshemu runs the maths on the CPU")


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
                    f"module {module_of(node) or 'the loss'}) makes depends on data"
                )


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
        if graph_input.role is not Role.BATCH:
            owner = graph_input.name.rpartition(".")[0]
            graph_input.node.meta["nn_module_stack"] = {owner: (owner, None)}
    for node in nodes:
        if not node.meta.get("nn_module_stack"):
            sources = [arg for arg in node.all_input_nodes if arg.meta.get("nn_module_stack")]
            if sources:
                node.meta["nn_module_stack"] = sources[-1].meta["nn_module_stack"]
