"""Random operators: numbers depend on (seed, step, node, global element index), so placement does not change them.

Operators that draw a number of numbers that depends on data, or from one distribution over many elements (multinomial,
Poisson ...), have no rule and are refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from meshemu.workload import random_kernels as kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering, base_name, operator_of
from meshemu.workload.rules.cuts import Args, Kwargs
from meshemu.workload.spmd import LocalRange, LocalShape, StepSeed, Value

__all__ = ["RULES"]


def _stream(low: Lowering, output: Value) -> tuple[dict[int, LocalRange], kernels.Stream, StepSeed]:
    """(ranges of the block, what is drawn, seed) of a new random tensor."""
    low.n_random += 1
    ranges = {split.dim: LocalRange(output, split.dim) for split in output.layout.splits}
    return ranges, kernels.Stream(output.shape, output.dtype), StepSeed(low.n_random)


def drawn(kernel: Callable[..., Any], *parameters: str) -> Any:
    """A rule for new random tensors; parameters: the operator's arguments that the kernel takes, by name.

    The tensor is cut as the first tensor among the arguments is, whose shape it has; parameters may be tensors too.
    """

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        given = _named(node, args, kwargs)
        meta = node.meta["val"]
        like = next((v for v in given.values() if isinstance(v, Value) and v.shape == tuple(meta.shape)), None)
        output = low.like(meta, Layout() if like is None else low.resolve(like).layout)
        values = {name: _placed(low, given[name], output) for name in parameters if name in given}
        stream = (LocalShape(output), *_stream(low, output))
        return low.compute(kernel, stream, [output], kwargs=_renamed(values), op_class=base_name(node))[0]

    return rule


def _named(node: fx.Node, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    """All arguments by the names in the operator's schema, defaults included."""
    schema = operator_of(node)._schema.arguments  # type: ignore[attr-defined]
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    return named | dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)


def _placed(low: Lowering, parameter: Any, output: Value) -> Any:
    """A tensor of the output's shape is cut like it; any other is whole."""
    if not isinstance(parameter, Value):
        return parameter
    return low.fetch(parameter, output.layout if parameter.shape == output.shape else Layout())


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {PARAMETERS.get(name, name): value for name, value in values.items()}


PARAMETERS = {
    "from": "low", "to": "high", "std": "deviation", "lambd": "rate", "sigma": "width",
}  # fmt: skip
"""Name of a parameter in ATen -> in a kernel, where they differ."""


def bernoulli(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Of probabilities, or of a tensor that gives the shape and a probability."""
    source = low.resolve(args[0])
    output = low.value(source.shape, node.meta["val"].dtype, source.layout)
    probability = _placed(low, args[1], output) if len(args) > 1 and args[1] is not None else source
    stream = (LocalShape(output), *_stream(low, output))
    return low.compute(kernels.bernoulli, (*stream, probability), [output], op_class="bernoulli")[0]


def dropout(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """native_dropout: input, p, train -> (output, mask)."""
    source, p, train = low.resolve(args[0]), args[1], args[2]
    output = low.value(source.shape, source.dtype, source.layout)
    mask = low.value(source.shape, torch.bool, source.layout)
    probability = p if train or train is None else 0.0
    return low.compute(
        kernels.dropout, (source, probability, *_stream(low, output)), [output, mask], op_class="native_dropout"
    )


def leaky(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """rrelu_with_noise_functional: input, noise (its shape only), lower, upper, training -> (output, noise)."""
    source = low.resolve(args[0])
    given = _named(node, args, kwargs)
    lower, upper = float(given["lower"]), float(given["upper"])
    if not given["training"]:
        lower = upper = (lower + upper) / 2
    outputs = [low.value(source.shape, source.dtype, source.layout) for _ in range(2)]
    placed = (source, *_stream(low, outputs[1]), lower, upper)
    return low.compute(kernels.leaky, placed, outputs, op_class="leaky_relu")


def permutation(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Randperm: the same on every device."""
    output = low.like(node.meta["val"])
    _, stream, seed = _stream(low, output)
    return low.compute(kernels.permutation, (args[0], stream, seed), [output], op_class="randperm")[0]


def integers(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Randint and randint_like: without `low` they begin at 0."""
    given = _named(node, args, kwargs)
    meta = node.meta["val"]
    like = given.get("self")
    output = low.like(meta, low.resolve(like).layout if isinstance(like, Value) else Layout())
    stream = (LocalShape(output), *_stream(low, output))
    bounds = (given.get("low", 0), given["high"])
    return low.compute(kernels.integers, (*stream, *bounds), [output], op_class="rand")[0]


RULES = {
    **{name: bernoulli for name in ("bernoulli.default", "bernoulli.p", "bernoulli.Tensor")},
    "native_dropout": dropout,
    **{name: drawn(kernels.uniform) for name in ("rand", "rand_like")},
    "uniform": drawn(kernels.uniform, "from", "to"),
    **{name: drawn(kernels.normal) for name in ("randn", "randn_like")},
    **{name: drawn(kernels.normal, "mean", "std") for name in ("normal", "normal_functional")},
    "log_normal": drawn(kernels.log_normal, "mean", "std"),
    "exponential": drawn(kernels.exponential, "lambd"),
    "cauchy": drawn(kernels.cauchy, "median", "sigma"),
    "geometric": drawn(kernels.geometric, "p"),
    **{name: integers for name in ("randint", "randint_like")},
    "randperm": permutation,
    "rrelu_with_noise_functional": leaky,
}
