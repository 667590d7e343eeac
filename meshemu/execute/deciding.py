"""Run a step with values on whole tensors, for the decisions that it takes on them.

It computes what plain PyTorch computes, with the random numbers of the emulated devices: those operators go through
the sharding rules and the executor's own tasks, on one device.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from meshemu.errors import CaptureError, MeshemuError, UnsupportedOpError
from meshemu.execute.blocks import Blocks, Host
from meshemu.execute.compute import ComputeTask
from meshemu.workload.decisions import NUMBERS, Asking, Decision, asking
from meshemu.workload.lowering import Lowering
from meshemu.workload.operators import Operators
from meshemu.workload.plan import Axis, Plan
from meshemu.workload.spmd import Compute, Value
from meshemu.workload.step_maths import StepMaths, autocast

__all__ = ["decide"]

ONE_DEVICE = Plan((Axis("data", 1, 1, 1),), (0,))


def decide(
    maths: StepMaths, inputs: Mapping[str, torch.Tensor], *, seed: int, step: int, backward: bool
) -> tuple[Decision, ...]:
    """What a step decides on values, in order.

    inputs: whole tensors by graph input name. backward: whether the backward pass may ask too; it runs then.

    Raises:
        CaptureError: the step fails.
        UnsupportedOpError: it draws random numbers that have no rule.
    """
    mode = _Deciding(seed, step)
    parameters = {name: inputs[name] for name in maths.parameters}
    buffers = {name: inputs[name] for name in maths.buffers}
    leaves = [inputs[f"batch.{i}"] for i in range(maths.spec.num_leaves)]
    try:
        with autocast(None), asking(mode):
            maths(parameters, buffers, leaves, backward=backward)
    except MeshemuError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CaptureError(f"{type(maths.model).__name__} fails in step {step}: {reason}") from error
    return tuple(mode.decisions)


class _Deciding(Asking):  # type: ignore[no-untyped-call]
    """Answers with values and writes the answers down."""

    def __init__(self, seed: int, step: int) -> None:
        super().__init__()
        self.decisions: list[Decision] = []
        self._seed = seed
        self._step = step
        self._n_random = 0

    def decide(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the operator gives."""
        result = func(*args, **kwargs)
        if func in NUMBERS:
            self.decisions.append(Decision(str(func), (_as_tensor(result, args[0]),), True))
        else:
            several = result if isinstance(result, tuple | list) else (result,)
            self.decisions.append(Decision(str(func), tuple(tensor.clone() for tensor in several), False))
        return result

    def other(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result; random numbers are those of the devices."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        drawn = self._drawn(_without_update(func), _with_defaults(func, args), kwargs)
        self._n_random += 1
        return _updated(func, args, drawn)

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of a random operator, by its rule."""
        low = Lowering(ONE_DEVICE)
        low.n_random = self._n_random
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        blocks: dict[int, Blocks] = {}
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                leaves[i] = low.value(leaf.shape, leaf.dtype)
                blocks[leaves[i].id] = {(): leaf}
        result = Operators(low, strict=False).lower(
            _node(func, args, kwargs), *pytree.tree_unflatten(leaves, spec)
        )
        host = Host(ONE_DEVICE, 0, np.zeros(1, np.int64))
        for instruction in low.instructions:
            if not isinstance(instruction, Compute):
                raise AssertionError(f"{func} on one device needs more than work: {instruction}")
            ComputeTask(instruction, host).run(blocks, self._seed, self._step)
        return pytree.tree_map_only(Value, lambda value: blocks[value.id][()], result)


def _as_tensor(number: Any, source: torch.Tensor) -> torch.Tensor:
    """A number read from `source`, exactly."""
    return torch.tensor(number, dtype=torch.bool if isinstance(number, bool) else source.dtype)


def _node(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
    """The operator as a node of a captured step, for its rule."""
    graph = fx.Graph()
    node_args, node_kwargs = pytree.tree_map_only(
        torch.Tensor, lambda _tensor: graph.placeholder("input"), (args, dict(kwargs))
    )
    node = graph.call_function(func, node_args, node_kwargs)
    detached = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, dict(kwargs)))
    with FakeTensorMode() as fake:
        shapes = pytree.tree_map_only(torch.Tensor, fake.from_tensor, detached)
        node.meta["val"] = func(*shapes[0], **shapes[1])
    return node


def _with_defaults(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """All positional arguments: what updates in place may have defaults that its counterpart has not."""
    positional = [argument for argument in func._schema.arguments if not argument.kwarg_only]
    return (*args, *(argument.default_value for argument in positional[len(args) :]))


def _updated(func: Any, args: tuple[Any, ...], drawn: Any) -> Any:
    """What `func` gives, after it has written into its arguments what was drawn in their place."""
    results = iter(drawn if isinstance(drawn, tuple | list) else (drawn,))
    given = [] if func._schema.arguments[0].alias_info is not None else [next(results) for _ in func._schema.returns]
    for tensor, argument in zip(args, func._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written = tensor.copy_(next(results))
            given = given or [written]
    return given[0] if len(given) == 1 else tuple(given)


def _without_update(func: Any) -> Any:
    """The operator that gives as a new tensor what `func` writes into its first argument.

    Raises:
        UnsupportedOpError: there is none.
    """
    if not func._schema.is_mutable:
        return func
    name = func._opname.rstrip("_")
    wanted = _signature(func)
    for packet in (getattr(torch.ops.aten, n, None) for n in (name, f"{name}_functional")):
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if not found._schema.is_mutable and _signature(found) == wanted:
                return found
    raise UnsupportedOpError(f"operator {func} draws random numbers in place and has no sharding rule")


def _signature(func: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in func._schema.arguments]
