"""Scaled dot-product attention: cut by batch, by heads, by queries, or by queries and keys together in a ring.

Legend: B batch, H heads, G heads of keys and values (H or a divisor of it), T queries, S keys. q (B, H, T, D),
k (B, G, S, D), v (B, G, S, E), logsumexp (B, H, T).

Where queries are cut, every device meets all keys. If keys are cut over the same axes, their blocks go round from
neighbour to neighbour and are met one after the other (online softmax); backward they go round again, and so do their
gradients, so that every block gets its terms in the order of the ring.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from meshemu.workload import attention_kernels as kernels
from meshemu.workload.kernels import accumulator
from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering, base_name
from meshemu.workload.rules.cuts import Args, Kwargs, argument, with_dim
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]

HEADS, SEQUENCE = 1, 2


@dataclass(frozen=True)
class _Placed:
    """The operands on their devices, and how to attend: ring: the keys' cut that goes round, or None."""

    query: Value
    key: Value
    value: Value
    mask: Value | None
    attention: kernels.Attention
    ring: Split | None

    @property
    def rows(self) -> Layout:
        """Cut of what every query has one of."""
        return self.query.layout

    @property
    def whole_sequence(self) -> bool:
        """Whether no queries are cut."""
        return self.query.layout.split_of(SEQUENCE) is None

    def blocks(self, key: Value, value: Value) -> tuple[Any, ...]:
        """Operands of a kernel, and the ranges of heads and positions that they hold."""
        of_query, of_key = (tuple(LocalRange(v, d) for d in (HEADS, SEQUENCE)) for v in (self.query, key))
        return self.query, key, value, self.mask, self.attention, of_query, of_key


def _placed(low: Lowering, operands: Args, mask: Any, causal: bool, scale: float | None) -> _Placed:
    query, key, value = (low.resolve(operand) for operand in operands)
    batch = next((cut for v in (query, key) if (cut := v.layout.split_of(0)) is not None), None)
    used = set(batch.axes) if batch is not None else set()
    heads, sequence = (_unused(query.layout.split_of(d), used) for d in (HEADS, SEQUENCE))
    cuts = [cut for cut in (batch, heads, sequence) if cut is not None]
    ratio = query.shape[HEADS] // key.shape[HEADS]
    of_heads = heads if heads is None or ratio == 1 else _divided(heads, ratio)
    keys = key.layout.split_of(SEQUENCE)
    ring = keys if sequence is not None and keys is not None and keys.axes == sequence.axes else None
    of_keys = Layout(tuple(cut for cut in (batch, of_heads, ring) if cut is not None))
    mask = _placed_mask(low, mask, cuts) if isinstance(mask, Value) else None
    attention = kernels.Attention(bool(causal), scale if scale is not None else query.shape[-1] ** -0.5, ratio)
    query = low.fetch(query, Layout(tuple(cuts)))
    return _Placed(query, low.fetch(key, of_keys), low.fetch(value, of_keys), mask, attention, ring)


def _unused(cut: Split | None, used: set[str]) -> Split | None:
    return None if cut is None or used & set(cut.axes) else cut


def _divided(heads: Split, ratio: int) -> Split | None:
    """The cut of fewer heads that belongs to a cut of all, or None if heads that share one are on several devices."""
    if any(bound % ratio for bounds in heads.ranges for bound in bounds):
        return None
    return replace(heads, ranges=tuple((lo // ratio, hi // ratio) for lo, hi in heads.ranges))


def _placed_mask(low: Lowering, mask: Value, cuts: list[Split]) -> Value:
    """A mask that broadcasts to (B, H, T, S), cut where it has the dim; keys are whole."""
    missing = 4 - len(mask.shape)
    kept = [c.moved(c.dim - missing) for c in cuts if c.dim >= missing and mask.shape[c.dim - missing] != 1]
    return low.fetch(mask, Layout(tuple(kept)))


def attention(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """q, k, v, dropout, is_causal; attn_mask, scale by name -> (out (B, H, T, E), logsumexp)."""
    if argument(args, kwargs, 3, "dropout_p", 0.0):
        raise low.refuse(node, list(args[:3]))
    causal = argument(args, kwargs, 4, "is_causal", False)
    p = _placed(low, args[:3], kwargs.get("attn_mask"), causal, kwargs.get("scale"))
    meta = node.meta["val"][0]
    statistics = accumulator(meta.dtype)
    shape = tuple(meta.shape)
    name = base_name(node)

    def state(dtype: torch.dtype) -> list[Value]:
        return [low.value(shape, dtype, p.rows), low.value(shape[:-1], statistics, p.rows)]

    if p.whole_sequence:
        return low.compute(kernels.attend, p.blocks(p.key, p.value), state(meta.dtype), op_class=name)
    out, logsumexp = low.compute(kernels.attend_block, p.blocks(p.key, p.value), state(statistics), op_class=name)
    for key, value in _circulated(low, p):
        given = (*p.blocks(key, value), out, logsumexp)
        out, logsumexp = low.compute(kernels.attend_more, given, state(statistics), op_class=name, takes_empty=True)
    if meta.dtype != statistics:
        converted = low.value(shape, meta.dtype, p.rows)
        (out,) = low.compute(torch.Tensor.to, [out, meta.dtype], [converted], op_class="_to_copy")
    return out, logsumexp


def _circulated(low: Lowering, p: _Placed, start: tuple[Value, Value] | None = None) -> list[tuple[Value, Value]]:
    """Keys and values as they come past after one, two ... steps of the ring."""
    key, value = start or (p.key, p.value)
    found = []
    for step in range(1, _ring_size(low, p)):
        layout = _rotated(p, step)
        key, value = low.fetch(key, layout), low.fetch(value, layout)
        found.append((key, value))
    return found


def _ring_size(low: Lowering, p: _Placed) -> int:
    return 1 if p.ring is None else low.plan.size(p.ring.axes)


def _rotated(p: _Placed, step: int) -> Layout:
    """Layout of keys after `step` steps: coordinate c holds what coordinate c - step held at first."""
    assert p.ring is not None
    ranges = p.ring.ranges
    n = len(ranges)
    return with_dim(p.key.layout, replace(p.ring, ranges=tuple(ranges[(c - step) % n] for c in range(n))), SEQUENCE)


def attention_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad_out, q, k, v, out, logsumexp, dropout, is_causal; attn_mask, scale by name -> gradients of q, k, v."""
    p = _placed(low, args[1:4], kwargs.get("attn_mask"), args[7], kwargs.get("scale"))
    grad, out, logsumexp = (low.fetch(low.resolve(v), p.rows) for v in (args[0], *args[4:6]))
    name = base_name(node)
    axes = _axes(p.query, SEQUENCE) if p.ring is None else ()
    axes += _axes(p.query, HEADS) if not _axes(p.key, HEADS) else ()

    def gradients(key: Value, value: Value) -> list[Value]:
        of_keys = Layout(key.layout.splits, axes)
        of_query = low.value(p.query.shape, p.query.dtype, p.rows)
        return [of_query, low.value(key.shape, key.dtype, of_keys), low.value(value.shape, value.dtype, of_keys)]

    kernel = kernels.attend_backward if p.whole_sequence else kernels.attend_block_backward
    given = (grad, *p.blocks(p.key, p.value), out, logsumexp)
    of_query, of_key, of_value = low.compute(kernel, given, gradients(p.key, p.value), op_class=name)
    if p.ring is None:
        return of_query, of_key, of_value
    for step, (key, value) in enumerate(_circulated(low, p, _sent_again(low, p)), start=1):
        given = (grad, *p.blocks(key, value), out, logsumexp)
        more = low.compute(kernel, given, gradients(key, value), op_class=name)
        layout = Layout(_rotated(p, step).splits, axes)
        of_key, of_value = (_moved(low, v, layout) for v in (of_key, of_value))
        of_query, of_key, of_value = (
            _sum(low, a, b) for a, b in zip((of_query, of_key, of_value), more, strict=True)
        )
    home = Layout(p.key.layout.splits, axes)
    return of_query, _moved(low, of_key, home), _moved(low, of_value, home)


def _sent_again(low: Lowering, p: _Placed) -> tuple[Value, Value]:
    """Keys and values under new names: what went round in the forward pass is not kept."""
    again = [low.value(v.shape, v.dtype, v.layout) for v in (p.key, p.value)]
    for held, value in zip((p.key, p.value), again, strict=True):
        low.compute(torch.ops.aten.alias.default, [held], [value], op_class="view")
    return again[0], again[1]


def _moved(low: Lowering, value: Value, layout: Layout) -> Value:
    """A gradient one step further round the ring."""
    return low.fetch(low.resolve(value), Layout(layout.splits))


def _sum(low: Lowering, a: Value, b: Value) -> Value:
    a, b = low.resolve(a), low.resolve(b)
    output = low.value(a.shape, a.dtype, a.layout)
    return low.compute(torch.add, [a, b], [output], op_class="add", takes_empty=True)[0]


def _axes(value: Value, dim: int) -> tuple[str, ...]:
    cut = value.layout.split_of(dim)
    return () if cut is None else cut.axes


RULES = {
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
}
