"""Clip gradients by their norm over all parameters, as torch.nn.utils.clip_grad_norm_ does, on blocks.

Every device sums the squares of its blocks; the sums of values that are cut over the same axes are added up and reduced
together over these axes, one number each. A replicated gradient is summed by every device and enters once. The stages
of a pipeline send their sums to the first one, which sends the coefficient back.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["clip"]

EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


def clip(low: Lowering, gradients: Mapping[str, Value], max_norm: float) -> tuple[dict[str, Value], Value]:
    """(gradients by parameter name, scaled by min(1, max_norm / (norm + 1e-6)); their norm before that).

    Gradients may have any layout; partial ones are reduced first, and all keep their cuts. Two parameters with one and
    the same gradient count twice. The norm is a replicated scalar, in fp32 or the widest format of the gradients.
    """
    low.label("gradient norm")
    whole = {name: _resolved(low, value) for name, value in gradients.items()}
    dtype = _accumulator(whole.values())
    groups = _alike(whole.values())
    squares = []
    for (stages, axes), values in groups.items():
        with low.on(stages[:1]):
            squares.append(_total(low, values, axes, dtype))
    with low.on(min(stages[:1] for stages, _ in groups)):
        norm, coefficient = low.value((), dtype), low.value((), dtype)
        terms = [low.bring(square) for square in squares]
        low.compute(_norm_and_coefficient, [terms, max_norm], [norm, coefficient], op_class="sqrt")
    low.label("gradient clip")
    clipped: dict[int, Value] = {}
    for (stages, _), values in _alike({value.id: value for value in whole.values()}.values()).items():
        with low.on(stages):
            outputs = [low.value(v.shape, v.dtype, v.layout) for v in values]
            factor = low.bring(coefficient)
            low.compute(_scaled, [factor, values], outputs, op_class="clip_scale", takes_empty=True)
        clipped |= {v.id: output for v, output in zip(values, outputs, strict=True)}
    return {name: clipped[value.id] for name, value in whole.items()}, norm


def _total(low: Lowering, values: Sequence[Value], axes: frozenset[str], dtype: torch.dtype) -> Value:
    """Sum of the squares of all elements of values that are cut over the same axes, on every device."""
    partial = Layout(partial=tuple(axis for axis in low.plan.names if axis in axes))
    squares = low.value((), dtype, partial)
    low.compute(_square_sum, [values, dtype], [squares], op_class="square_sum", takes_empty=True)
    return low.resolve(squares)


def _resolved(low: Lowering, value: Value) -> Value:
    with low.on(value.layout.stages):
        return low.resolve(value)


def _alike(values: Iterable[Value]) -> dict[tuple[tuple[int, ...], frozenset[str]], list[Value]]:
    """Values by the stages that hold them and the axes that their blocks differ along."""
    groups: dict[tuple[tuple[int, ...], frozenset[str]], list[Value]] = {}
    for value in values:
        if not all(split.tiles(value.shape[split.dim]) for split in value.layout.splits):
            raise AssertionError(f"blocks of a gradient overlap: {value.layout}")
        groups.setdefault((value.layout.stages, frozenset(value.layout.axes)), []).append(value)
    return groups


def _accumulator(values: Iterable[Value]) -> torch.dtype:
    """Fp32, or fp64 if a gradient has it."""
    return torch.float64 if any(v.dtype == torch.float64 for v in values) else torch.float32


def _square_sum(blocks: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Sum of the squares of all elements of all blocks."""
    return _sum([block.contiguous().to(dtype).square().sum() for block in blocks])


def _sum(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of scalars, in order."""
    return torch.stack(list(terms)).sum()


def _norm_and_coefficient(squares: Sequence[torch.Tensor], max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    norm = _sum(squares).sqrt()
    return norm, (max_norm / (norm + EPSILON)).clamp(max=1.0)


def _scaled(coefficient: torch.Tensor, blocks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple((block * coefficient).to(block.dtype) for block in blocks)
