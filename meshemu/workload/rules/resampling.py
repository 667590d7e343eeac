"""Interpolation, reflecting and replicating padding, adaptive average pooling: linear maps of each spatial dim.

The map of one dim is a matrix, read off PyTorch's own operator on unit vectors, so that no rule of rounding, alignment
or scale factors is written twice. A block of the output needs the columns that its rows use: a window. A gradient is
the same with the matrix transposed. Where an output has fewer elements than there are blocks, every device adds the
share of its own block of the input, and the terms are summed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from meshemu.workload import resampling_kernels as kernels
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering, attributes_of, base_name
from meshemu.workload.rules.cuts import Args, Kwargs
from meshemu.workload.rules.pooling import independent
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]

Maps = Mapping[int, kernels.Matrix]


def resampled(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """A forward operator: input, then what its maps depend on."""
    source, meta = low.resolve(args[0]), node.meta["val"]
    n = _n_dims(base_name(node))
    lead = len(source.shape) - n
    if all(s.dim < lead for s in source.layout.splits):
        return independent(low, node, (source, *args[1:]), kwargs)
    maps = _maps(base_name(node), _options(node), source.shape[lead:], tuple(meta.shape[lead:]), lead)
    return _mapped(low, source, maps, meta, base_name(node))


def resampled_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Its backward: gradient, then the input or its size among what the maps depend on."""
    grad, meta = low.resolve(args[0]), node.meta["val"]
    forward = base_name(node).removesuffix("_backward")
    n = _n_dims(forward)
    lead = len(grad.shape) - n
    source = next((a for a in args[1:] if isinstance(a, Value)), None)
    held = grad.layout if source is None else low.resolve(source).layout
    if all(s.dim < lead for layout in (held, grad.layout) for s in layout.splits):
        if source is not None:
            return independent(low, node, (grad, *args[1:]), kwargs)
        return _whole_backward(low, node, (grad, *args[1:]), kwargs, n)
    maps = _maps(forward, _options(node), tuple(meta.shape[lead:]), grad.shape[lead:], lead)
    transposed = {dim: matrix.transposed() for dim, matrix in maps.items()}
    return _mapped(low, grad, transposed, meta, base_name(node), held)


def _mapped(
    low: Lowering, source: Value, maps: Maps, meta: torch.Tensor, op_class: str, wanted: Layout | None = None
) -> Value:
    """Every map applied, where the input or the wanted layout of the output is cut along its dim."""
    cuts: list[Split] = []
    needed: list[Split] = []
    partial: list[str] = []
    used: set[str] = set()
    for dim in range(len(source.shape)):
        held = source.layout.split_of(dim)
        cut = (wanted.split_of(dim) if wanted is not None else None) or held
        if cut is None or used & set(cut.axes):
            continue
        used |= set(cut.axes)
        parts, size = low.plan.size(cut.axes), int(meta.shape[dim])
        if dim not in maps:
            cuts.append(cut)
            needed.append(cut)
        elif cut is held and size < parts:
            partial.extend(cut.axes)
            needed.append(cut)
        else:
            made = cut if cut is not held and cut.tiles(size) else Split(dim, cut.axes, even_ranges(size, parts))
            cuts.append(made)
            needed.append(Split(dim, cut.axes, tuple(maps[dim].reach(lo, hi) for lo, hi in made.ranges)))
    window = low.fetch(source, Layout(tuple(needed)))
    output = low.like(meta, Layout(tuple(cuts), tuple(partial)))
    placed = [(m, dim, LocalRange(output, dim), LocalRange(window, dim)) for dim, m in maps.items()]
    return low.compute(kernels.resample, (window, placed), [output], op_class=op_class)[0]


def _maps(name: str, options: Mapping[str, Any], before: tuple[int, ...], after: tuple[int, ...], lead: int) -> Maps:
    """Tensor dim -> matrix (size after, size before) of the forward operator `name` along it."""
    return {
        lead + d: kernels.Matrix.of(_along(name, options, d, len(before), before[d], after[d]))
        for d in range(len(before))
    }


def _along(name: str, options: Mapping[str, Any], d: int, n: int, before: int, after: int) -> torch.Tensor:
    """Matrix (after, before): the operator on unit vectors along spatial dim `d`, constant along the other dims.

    These keep a size of 2: with a width of 1, PyTorch 2.13 resizes the height wrongly where it smooths.
    """
    units = torch.eye(before, dtype=torch.float64).view(before, 1, *(before if i == d else 1 for i in range(n)))
    units = units.expand(before, 1, *(before if i == d else 2 for i in range(n))).contiguous()
    if "pad" in name:
        amounts = list(options["padding"])
        own = [0] * len(amounts)
        place = 2 * (n - 1 - d)
        own[place : place + 2] = amounts[place : place + 2]
        given: list[Any] = [own]
    else:
        given = [[after if i == d else 2 for i in range(n)]]
        if "align_corners" in options:
            given.append(options["align_corners"])
        names = ["scales"] if n == 1 else [f"scales_{c}" for c in "dhw"[3 - n :]]
        if "upsample" in name:
            given += [options.get(scale) if i == d else None for i, scale in enumerate(names)]
    result: torch.Tensor = getattr(torch.ops.aten, name).default(units, *given)
    return result[(slice(None), 0, *(slice(None) if i == d else 0 for i in range(n)))].T.contiguous()


def _options(node: fx.Node) -> Mapping[str, Any]:
    return attributes_of(node)


def _n_dims(name: str) -> int:
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _whole_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs, n: int) -> Any:
    """grad, output_size, input_size, ...: input_size names the batch, so it is the block's own."""
    names, out = "nc" + "uvw"[:n], "nc" + "UVW"[:n]
    return low.sharded(node, args, kwargs, [names], [out], free="nc", local_shape_args=[2])


UPSAMPLINGS = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
PADDINGS = tuple(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
ADAPTIVE = ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
RULES = {
    **{name: resampled for name in UPSAMPLINGS + PADDINGS + ADAPTIVE},
    **{f"{name}_backward": resampled_backward for name in UPSAMPLINGS + PADDINGS + ADAPTIVE},
}
