"""Operators that rearrange dims: views, permutations, slices, joins.

Cut dims stay cut as long as whole blocks map to whole blocks; otherwise they are gathered first.
"""

import string
from typing import Any

import torch
from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering, split_letters
from meshemu.workload.spmd import LocalShape, Value

__all__ = ["RULED", "RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def view(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """View and reshape: a cut survives on the leading dim of the dims that are merged or split together."""
    return _reshaped(low, args[0], tuple(node.meta["val"].shape))


def _reshaped(low: Lowering, source: Value, shape: tuple[int, ...]) -> Value:
    kept = tuple(s for s in source.layout.splits if _viewed_split(s, source.shape, shape) is not None)
    if len(kept) < len(source.layout.splits):
        source = low.fetch(low.resolve(source), Layout(kept))
    moved = [_viewed_split(s, source.shape, shape) for s in source.layout.splits]
    layout = Layout(tuple(s for s in moved if s is not None), source.layout.partial)
    output = low.value(shape, source.dtype, layout, source.combine)
    return low.compute(torch.ops.aten.reshape.default, [source, LocalShape(output)], [output], op_class="view")[0]


def _viewed_split(split: Split, before: tuple[int, ...], after: tuple[int, ...]) -> Split | None:
    """The same cut after a view, or None if blocks would not stay contiguous boxes."""
    for dims_in, dims_out in _groups(before, after):
        if split.dim not in dims_in:
            continue
        if any(before[d] != 1 for d in dims_in if d < split.dim):
            return None
        inner_in = _product(before[d] for d in dims_in if d > split.dim)
        dim_out = next((d for d in dims_out if after[d] != 1), dims_out[0] if dims_out else None)
        if dim_out is None:
            return None
        inner_out = _product(after[d] for d in dims_out if d > dim_out)
        offsets = [offset * inner_in for bounds in split.ranges for offset in bounds]
        if any(offset % inner_out for offset in offsets):
            return None
        cuts = [offset // inner_out for offset in offsets]
        return Split(dim_out, split.axes, tuple(zip(cuts[::2], cuts[1::2], strict=True)))
    return None


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dims with equal products on both sides, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        p, q = (before[i] if left else 1), (after[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while p != q:
            if (p < q and i < len(before)) or j >= len(after):
                p *= before[i]
                left.append(i)
                i += 1
            else:
                q *= after[j]
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups


def _product(sizes: Any) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _named(source: Value) -> str:
    return string.ascii_letters[: len(source.shape)]


def permuted(low: Lowering, node: fx.Node, args: Args, order: list[int]) -> Any:
    """Dims in another order."""
    source: Value = args[0]
    names = _named(source)
    return low.sharded(
        node,
        args,
        {},
        [names],
        ["".join(names[d] for d in order)],
        free=names,
        op_class="view",
        keep_partial=bool(source.layout.partial),
    )


def permute(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Permute."""
    rank = len(args[0].shape)
    return permuted(low, node, args, [d % rank for d in args[1]])


def transpose(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Exchange of two dims."""
    rank = len(args[0].shape)
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return permuted(low, node, args, order)


def t(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Matrix transpose."""
    return permuted(low, node, args, list(reversed(range(len(args[0].shape)))))


def expand(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Broadcast to a larger shape. Under a spatial plan, an image that grows out of one pixel is made in blocks."""
    source: Value = args[0]
    out = tuple(node.meta["val"].shape)
    if low.plan.has("h") and source.replicated and len(out) == 4 and source.shape[-2:] == (1, 1) != out[2:]:
        cut = [Split(d, (axis,), even_ranges(out[d], low.plan.size((axis,)))) for d, axis in ((2, "h"), (3, "w"))]
        output = low.value(out, source.dtype, Layout(tuple(cut)))
        return low.compute(torch.ops.aten.expand.default, (source, LocalShape(output)), [output], op_class="view")[0]
    names = string.ascii_letters[: len(out)]
    return low.sharded(
        node, args, {}, [names[len(out) - len(source.shape) :]], [names], free=names, op_class="view",
        local_shape_args=[1],
    )  # fmt: skip


def unsqueeze(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """A new dim of size 1."""
    source: Value = args[0]
    names = _named(source)
    dim = args[1] % (len(source.shape) + 1)
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(
        node, args, {}, [names], [out], free=names, op_class="view", keep_partial=bool(source.layout.partial)
    )


def squeeze(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Dims of size 1 away: a view."""
    return view(low, node, args, kwargs)


def along(position: int, op_class: str) -> Any:
    """A rule for operators (input, ..., dim, ...) whose outputs keep all dims but change the size along `dim`."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        source: Value = args[0]
        names = _named(source)
        dim = (args[position] if len(args) > position else kwargs.get("dim", 0)) % len(source.shape)
        n_outputs = len(node.meta["val"]) if isinstance(node.meta["val"], tuple | list) else 1
        out = names[:dim] + "Z" + names[dim + 1 :]
        free = names.replace(names[dim], "")
        return low.sharded(node, args, kwargs, [names], [out] * n_outputs, free=free, op_class=op_class)

    return rule


def slice_(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """slice: free along a dim that it leaves whole."""
    source: Value = args[0]
    if tuple(node.meta["val"].shape) == source.shape:
        return source
    return along(1, "slice")(low, node, args, kwargs)


def select(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """One index of a dim, which goes."""
    names = _named(args[0])
    dim = args[1] % len(names)
    free = names.replace(names[dim], "")
    return low.sharded(node, args, {}, [names], [free], free=free, op_class="slice")


def unbind(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """All indices of a dim, which goes."""
    names = _named(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(names)
    free = names.replace(names[dim], "")
    return low.sharded(node, args, kwargs, [names], [free] * len(node.meta["val"]), free=free, op_class="slice")


def slice_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Zeros with a slice of them filled: grad, input_sizes, dim, ..."""
    names = _named(args[0])
    dim = args[2] % len(names)
    out = names[:dim] + "Z" + names[dim + 1 :]
    return low.sharded(
        node, args, {}, [names], [out], free=names.replace(names[dim], ""), op_class="copy", local_shape_args=[1]
    )


def select_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Zeros with one index of a dim filled: grad, input_sizes, dim, index."""
    names = _named(args[0])
    dim = args[2] % (len(names) + 1)
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(node, args, {}, [names], [out], free=names, op_class="copy", local_shape_args=[1])


def cat(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Join along a dim that is not cut."""
    rank = node.meta["val"].dim()
    values: list[Value] = [v for v in args[0] if len(v.shape) == rank]  # an empty 1-D tensor joins anything
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    base = string.ascii_lowercase[:rank]
    letters = [
        base[:dim] + string.ascii_uppercase[i] + base[dim + 1 :] for i in range(min(len(values), 25))
    ]
    letters += [letters[-1]] * (len(values) - len(letters))
    out = base[:dim] + "Z" + base[dim + 1 :]
    free = base.replace(base[dim], "")
    return low.sharded(node, (values, *args[1:]), kwargs, letters, [out], free=free, op_class="cat")


def stack(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Join along a new dim."""
    rank = node.meta["val"].dim()
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    names = string.ascii_lowercase[: rank - 1]
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(node, args, kwargs, [names] * len(args[0]), [out], free=names, op_class="cat")


def pad(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """constant_pad_nd: padded dims are not cut."""
    names = _named(args[0])
    padded = {len(names) - 1 - i // 2 for i, amount in enumerate(args[1]) if amount}
    out = "".join(string.ascii_uppercase[d] if d in padded else c for d, c in enumerate(names))
    free = "".join(c for d, c in enumerate(names) if d not in padded)
    return low.sharded(node, args, kwargs, [names], [out], free=free, op_class="copy")


def as_strided(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, size, stride, offset: a strided window within each row, as functionalisation leaves behind."""
    source, size, stride = low.resolve(args[0]), args[1], args[2]
    offset = args[3] if len(args) > 3 and args[3] is not None else 0
    rows = _rows(low, node, source, size, stride, offset)
    out = "n" + string.ascii_uppercase[: len(size) - 1]
    return low.sharded(
        node, (rows, size, stride, offset), {}, ["nr"], [out], free="n", target=kernels.strided_window,
        op_class="view", local_shape_args=[1],
    )  # fmt: skip


def as_strided_scatter(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, window, size, stride, offset: the input with such a window replaced."""
    source, window, size, stride = low.resolve(args[0]), low.resolve(args[1]), args[2], args[3]
    offset = args[4] if len(args) > 4 and args[4] is not None else 0
    rows = _rows(low, node, source, size, stride, offset)
    inside = "n" + string.ascii_uppercase[: len(size) - 1]
    splits = split_letters([window, rows], [inside, "nr"], ["nr"], "n", "", [node.meta["val"]])
    layout = Layout(tuple(split.moved(0) for split in splits.values()))
    output = low.value(rows.shape, rows.dtype, layout)
    low.compute(
        kernels.scatter_strided_window,
        (low.fetch(rows, layout), low.fetch(window, layout), stride, offset),
        [output],
        op_class="copy",
    )
    return _reshaped(low, output, source.shape)


def _rows(low: Lowering, node: fx.Node, source: Value, size: list[int], stride: list[int], offset: int) -> Value:
    """A contiguous input as (size[0], stride[0]), if the window's element [i, ...] lies in row i for every i.

    Strides count in memory, so the input must fill its memory in order when captured.
    """
    meta = node.all_input_nodes[0].meta["val"]
    in_order = meta.is_contiguous() and meta.untyped_storage().nbytes() == meta.numel() * meta.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size[1:], stride[1:], strict=True))
    if not in_order or not size or size[0] * stride[0] != _product(source.shape) or last >= stride[0]:
        raise low.refuse(node, [source])
    return _reshaped(low, source, (size[0], stride[0]))


RULES = {
    **{name: view for name in ("view", "_unsafe_view", "reshape", "flatten")},
    "squeeze": squeeze,
    "permute": permute,
    "transpose": transpose,
    "t": t,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "slice.Tensor": slice_,
    "slice_backward": slice_backward,
    "select.int": select,
    "select_backward": select_backward,
    "unbind": unbind,
    "split": along(2, "slice"),
    "split_with_sizes": along(2, "slice"),
    "narrow": along(1, "slice"),
    "cat": cat,
    "stack": stack,
    "constant_pad_nd": pad,
    "as_strided": as_strided,
    "as_strided_scatter": as_strided_scatter,
}

RULED = frozenset({"expand", "view", "_unsafe_view", "as_strided", "as_strided_scatter"})
"""Operators whose rule is asked even if nothing is cut: expand may cut its output; the others see strides when
captured, which blocks do not keep."""
