"""Random operators: numbers depend on (seed, step, node, global element index), so placement does not change them."""

from typing import Any

import torch
from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import LocalRange, LocalShape, StepSeed, Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def _stream(low: Lowering, output: Value) -> tuple[dict[int, LocalRange], tuple[int, ...], StepSeed]:
    """(ranges of the block, global shape, seed) of a new random tensor."""
    low.n_random += 1
    ranges = {split.dim: LocalRange(output, split.dim) for split in output.layout.splits}
    return ranges, output.shape, StepSeed(low.n_random)


def bernoulli(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """bernoulli.p: input (its shape only), p."""
    source = low.resolve(args[0])
    output = low.value(source.shape, source.dtype, source.layout)
    return low.compute(kernels.bernoulli, (source, args[1], *_stream(low, output)), [output], op_class="bernoulli")[0]


def dropout(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """native_dropout: input, p, train -> (output, mask)."""
    source, p, train = low.resolve(args[0]), args[1], args[2]
    output = low.value(source.shape, source.dtype, source.layout)
    mask = low.value(source.shape, torch.bool, source.layout)
    probability = p if train or train is None else 0.0
    return low.compute(
        kernels.dropout, (source, probability, *_stream(low, output)), [output, mask], op_class="native_dropout"
    )


def uniform(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Rand and rand_like."""
    meta = node.meta["val"]
    layout = Layout(args[0].layout.splits) if args and isinstance(args[0], Value) else Layout()
    output = low.like(meta, layout)
    drawn = (LocalShape(output), *_stream(low, output), meta.dtype)
    return low.compute(kernels.uniform, drawn, [output], op_class="rand")[0]


RULES = {
    "bernoulli.p": bernoulli,
    "native_dropout": dropout,
    "rand": uniform,
    "rand_like": uniform,
}
