"""One ATen operator at a time, on blocks: record the calls of a function and its backward, cut their inputs, compare.

Each call is checked alone: its tensors are laid out over a grid of devices in any way that a plan can, the rule of its
operator writes instructions, the executor carries them out, and the whole result must be that of the plain call.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from models_under_test import grid
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.mesh import flatten
from meshemu.program.ir import Program
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.layout import REPLICATED, Layout, Ranges, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.operators import Operators
from meshemu.workload.plan import Axis, Plan
from meshemu.workload.spmd import Collective, Fetch, Instruction, Spmd, Value


@dataclass(frozen=True)
class Call:
    """One call of an ATen operator: its arguments with real tensors, and what it returns."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    def __str__(self) -> str:
        given = (self.args, dict(self.kwargs))
        shown, named = pytree.tree_map_only(Tensor, lambda t: f"{str(t.dtype)[6:]}{list(t.shape)}", given)
        return f"{self.target}{shown}{named or ''}"


class _Recorder(fx.Interpreter):
    """Runs a graph and notes every ATen call."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.calls: list[Call] = []

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_function(target, args, kwargs)
        if isinstance(target, torch._ops.OpOverload):
            self.calls.append(Call(target, args, kwargs, result))
        return result


def calls_of(function: Callable[..., Any], *inputs: Tensor) -> list[Call]:
    """Distinct ATen calls of `function` and of its backward, as a captured step has them."""

    def step(*tensors: Tensor) -> Any:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        outputs = [o for o in pytree.tree_leaves(function(*leaves)) if isinstance(o, Tensor)]
        differentiable = [o for o in outputs if o.requires_grad]
        if not differentiable:
            return outputs, []
        loss = torch.stack([(o.square() * 0.3 + o.sin()).sum() for o in differentiable]).sum()
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return outputs, torch.autograd.grad(loss, wanted, allow_unused=True)

    traced = make_fx(step, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
    graph = make_fx(functionalize(traced), tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
    graph.graph.eliminate_dead_code()
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(*inputs)
    defined = [call for call in recorder.calls if "empty" not in str(call.target)]
    return list({str(call): call for call in defined}.values())


def plan_of(*sizes: int) -> Plan:
    """Axes x, y, z ... of these sizes, all in one row."""
    axes = tuple(Axis(name, size, 1, size) for name, size in zip("xyz", sizes, strict=False))
    return Plan(axes, tuple(range(prod(sizes))))


@dataclass(frozen=True)
class Outcome:
    """What a cut call came to: whole outputs, the instructions of its rule and their Program."""

    outputs: list[Tensor | None]
    layouts: list[Layout | None]
    instructions: tuple[Instruction, ...]
    program: Program

    @property
    def gathers(self) -> list[str]:
        """Labels of fetches that brought a cut dim together."""
        return [i.label for i in self.instructions if isinstance(i, Fetch | Collective) and i.label.endswith("gather")]


def run_cut(call: Call, layouts: Sequence[Layout], plan: Plan, seed: int = 0) -> Outcome:
    """Lower `call` with its tensors laid out like this, and execute it.

    A partial axis holds twice the tensor, minus it, zeros ...
    """
    graph = fx.Graph()
    low = Lowering(plan)
    inputs: dict[str, Value] = {}
    tensors: dict[str, Tensor] = {}

    def whole(name: str, tensor: Tensor, layout: Layout = REPLICATED) -> Value:
        inputs[name] = low.value(tensor.shape, tensor.dtype, layout)
        tensors[name] = tensor
        return inputs[name]

    placed = iter(layouts)

    def place(tensor: Tensor) -> fx.Node:
        layout = next(placed)
        name = f"t{len(tensors)}"
        node = graph.placeholder(name)
        node.meta["val"] = tensor
        value = whole(name, tensor, Layout(layout.splits))
        for axis in layout.partial:
            n = plan.size((axis,))
            terms = torch.tensor([2, -1, *[0] * (n - 2)], dtype=tensor.dtype)  # their sums are exact
            share = whole(f"{name}.{axis}", terms, Layout((Split(0, (axis,), even_ranges(n, n)),)))
            output = low.value(value.shape, value.dtype, Layout(layout.splits, (*value.layout.partial, axis)))
            (value,) = low.compute(torch.mul, (value, share), [output], op_class="mul")
        low.environment[node] = value
        return node

    args, kwargs = pytree.tree_map_only(Tensor, place, (tuple(call.args), dict(call.kwargs)))
    node = graph.call_function(call.target, args, kwargs)
    node.meta["val"] = call.result
    low.begin(node)
    placed_arguments = pytree.tree_map_only(fx.Node, low.environment.__getitem__, (args, kwargs))
    start = len(low.instructions)
    results = pytree.tree_leaves(Operators(low, strict=True).lower(node, *placed_arguments))
    rule = tuple(low.instructions[start:])
    finals = [low.replicate(r) if isinstance(r, Value) else None for r in results]
    kept = {str(i): value for i, value in enumerate(finals) if value is not None}
    scalar = next(iter(kept.values()))
    spmd = Spmd(tuple(low.instructions), inputs, {}, {}, scalar, {}, kept)
    mesh = flatten(grid(*plan.grid))
    schedules = choose_schedules(spmd, plan, mesh, "ring", lambda _format, size_bytes: size_bytes)
    program = build_program(spmd, plan, mesh.n_devices, schedules, {})
    verify(program)
    host = Host(plan, 0, np.zeros(plan.n_positions, np.int64))
    step = Executor(spmd, host, schedules, SingleComm()).run(tensors, seed=seed, step=0)
    outputs = [step.buffers.get(str(i)) for i in range(len(finals))]
    kinds = [r.layout if isinstance(r, Value) else None for r in results]
    return Outcome(outputs, kinds, rule, program)


def ranges_of(size: int, parts: int, kind: str) -> Ranges:
    """A partition: "even", "uneven" (the first block is the smallest) or "empty" (the first and the last are)."""
    if parts == 1:
        return ((0, size),)
    if kind == "uneven":
        bounds = [0, *(min(size, 1 + i * max(1, (size - 1) // max(1, parts - 1))) for i in range(parts - 1)), size]
        return tuple(pairwise(bounds))
    if kind == "empty":
        return ((0, 0), *even_ranges(size, parts - 2), (size, size)) if parts > 2 else ((0, 0), (0, size))
    return even_ranges(size, parts)


KINDS = ("even", "uneven", "empty")


def layouts_of(call: Call, plan: Plan, n: int, seed: int) -> Iterator[list[Layout]]:
    """`n` random ways to lay out the tensors of a call: any dim over any axes, alone or together; some terms of sums.

    Tensors of equal shape are mostly cut alike, since that is what graphs have.
    """
    chance = random.Random(f"{seed} {call}")
    for _ in range(n):
        alike: dict[tuple[int, ...], Layout] = {}
        found = []
        for tensor in call.tensors:
            shape = tuple(tensor.shape)
            if shape not in alike or chance.random() < 0.3:
                alike[shape] = _random_layout(shape, plan, chance)
            layout = alike[shape]
            if layout.partial and not (tensor.is_floating_point() and tensor.isfinite().all()):
                layout = Layout(layout.splits)
            found.append(layout)
        yield found


def _random_layout(shape: tuple[int, ...], plan: Plan, chance: random.Random) -> Layout:
    axes_of_dim: dict[int, list[str]] = {}
    partial = []
    for axis in plan.names:
        where = chance.random()
        if where < 0.75 and shape:
            axes_of_dim.setdefault(chance.randrange(len(shape)), []).append(axis)
        elif where > 0.9:
            partial.append(axis)
    splits = [
        Split(dim, tuple(axes), ranges_of(shape[dim], plan.size(axes), chance.choice(KINDS)))
        for dim, axes in axes_of_dim.items()
    ]
    return Layout(tuple(splits), tuple(partial))


def single_cuts(call: Call, plan: Plan) -> Iterator[list[Layout]]:
    """Every cut of one dim of one tensor, and of the same dim of all tensors of that shape, over the first axis."""
    axis = plan.names[:1]
    seen = set()
    for i, tensor in enumerate(call.tensors):
        for dim, size in enumerate(tensor.shape):
            for kind in KINDS:
                cut = Layout((Split(dim, axis, ranges_of(size, plan.size(axis), kind)),))
                for others in (False, True):
                    found = [
                        cut if j == i or (others and t.shape == tensor.shape) else REPLICATED
                        for j, t in enumerate(call.tensors)
                    ]
                    key = str(found)
                    if key not in seen:
                        seen.add(key)
                        yield found


def assert_same_call(call: Call, layouts: Sequence[Layout], plan: Plan, tolerance: float = 1e-10) -> Outcome:
    """Run the call cut like this and compare every output with the plain call's."""
    outcome = run_cut(call, layouts, plan)
    wanted = [leaf for leaf in pytree.tree_leaves(call.result)]
    assert len(wanted) == len(outcome.outputs)
    for i, (got, expected) in enumerate(zip(outcome.outputs, wanted, strict=True)):
        if got is None or not isinstance(expected, Tensor):
            continue
        where = f"output {i} of {call} cut as {[describe(layout) for layout in layouts]}"
        assert got.dtype == expected.dtype, f"{where}: {got.dtype} instead of {expected.dtype}"
        assert got.shape == expected.shape, f"{where}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
        if expected.numel():
            scale = float(expected.abs().nan_to_num(posinf=0, neginf=0).max()) if expected.dtype != torch.bool else 1
            torch.testing.assert_close(
                got, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-300), equal_nan=True,
                msg=lambda text, where=where: f"{where}: {text}",
            )  # fmt: skip
    return outcome


def describe(layout: Layout) -> str:
    """A layout in short, e.g. "1:x(0-3,3-6) +y"."""
    cuts = [f"{s.dim}:{'*'.join(s.axes)}({','.join(f'{a}-{b}' for a, b in s.ranges)})" for s in layout.splits]
    return " ".join([*cuts, *(f"+{axis}" for axis in layout.partial)]) or "whole"
