"""How far a cut of a node's result reaches through the operators that follow, before blocks would have to move."""

from typing import Any

import torch
from torch import fx

from meshemu.workload.layout import Split
from meshemu.workload.lowering import base_name
from meshemu.workload.rules.reduction import reduced_dims
from meshemu.workload.viewing import viewed_split

__all__ = ["blocked_by"]

VIEWS = frozenset({"view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze"})
JOINED_OR_SLICED = frozenset({"cat", "chunk", "narrow", "select", "slice", "split", "split_with_sizes", "unbind"})
STATISTICS = frozenset({"mean", "var", "var_mean", "std", "std_mean", "linalg_vector_norm"})
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def blocked_by(node: fx.Node, split: Split) -> int:
    """Number of operators that would not keep a cut of `node`'s result in blocks, or need statistics across it.

    The cut is followed through views and pointwise operators, to products, which take any cut, and to attention, which
    takes one between heads. A norm over what is cut counts: the residual stream of a transformer is better whole.
    """
    seen: set[tuple[fx.Node, int]] = set()
    front: list[tuple[fx.Node, Split]] = [(node, split)]
    blocked = 0
    while front:
        source, cut = front.pop()
        for user in source.users:
            if (user, cut.dim) in seen or "val" not in user.meta:
                continue
            seen.add((user, cut.dim))
            after, kept = _after(source, user, cut)
            blocked += not kept
            if after is not None:
                front.append((user, after))
    return blocked


def _after(source: fx.Node, user: fx.Node, cut: Split) -> tuple[Split | None, bool]:
    """(the cut of user's result if it is worth following, whether the user keeps blocks where they are)."""
    name, result = base_name(user), user.meta["val"]
    if name == "getitem":
        return cut, True
    before = source.meta["val"]
    rank = before.dim()
    target = user.target
    if name in VIEWS:
        moved = viewed_split(cut, tuple(before.shape), tuple(result.shape))
        return moved, moved is not None
    if name in ("t", "transpose", "permute"):
        order = list(range(rank))
        if name == "permute":
            order = [int(d) % rank for d in user.args[1]]  # type: ignore[union-attr,arg-type]
        else:
            a, b = (int(d) % rank for d in user.args[1:3]) if name == "transpose" else (0, rank - 1)  # type: ignore[arg-type]
            order[a], order[b] = order[b], order[a]
        return cut.moved(order.index(cut.dim)), True
    if name in JOINED_OR_SLICED:
        along = int(_given(user, "dim", 0)) % rank
        if along != cut.dim:
            gone = name in ("select", "unbind") and along < cut.dim
            return cut.moved(cut.dim - gone), True
        return _parted(user, cut)
    if name == ATTENTION:
        return None, cut.dim < 2
    if name == "native_layer_norm":
        return None, cut.dim < rank - len(user.args[1])  # type: ignore[arg-type]
    if name in STATISTICS:
        return None, cut.dim not in reduced_dims(rank, _given(user, "dim", None))
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    if (pointwise or name in ("clone", "_to_copy", "expand", "detach")) and isinstance(result, torch.Tensor):
        return cut.moved(cut.dim + result.dim() - rank), True
    return None, True


def _parted(user: fx.Node, cut: Split) -> tuple[Split | None, bool]:
    """What is left of a cut within segments when a dim is split between them; the parts must be alike."""
    sizes = {part.shape[cut.dim] for part in user.meta["val"]} if base_name(user).startswith("split") else set()
    segment = cut.ranges[-1][1]
    if len(sizes) != 1 or cut.segments == 1 or (size := sizes.pop()) % segment:
        return None, False
    return Split(cut.dim, cut.axes, cut.ranges, size // segment), True


def _given(user: fx.Node, name: str, default: Any) -> Any:
    """An argument of an operator by its name: where `dim` stands differs from one to the next."""
    names = [argument.name for argument in user.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(name) if name in names else len(user.args)
    return user.args[position] if position < len(user.args) else user.kwargs.get(name, default)
