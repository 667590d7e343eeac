"""Matrix products, attention and embedding: dims named as in an einsum; a contracted cut dim leaves a partial sum."""

import string
from typing import Any

import torch
from torch import fx

from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def product(first: str, second: str, out: str, summed: str) -> Any:
    """A rule for a product of two tensors."""
    free = out

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        return low.sharded(node, args, kwargs, [first, second], [out], free=free, summed=summed)

    return rule


def biased(first: str, second: str, out: str, plain: Any) -> Any:
    """A rule for bias * beta + product * alpha. Where the contraction is cut, the bias is added after the sum."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        bias, a, b = (low.resolve(v) for v in args[:3])
        contracted = next(c for c in first if c not in out)
        cut = a.layout.split_of(first.index(contracted)) or b.layout.split_of(second.index(contracted))
        if cut is None:
            letters = [out[len(out) - len(bias.shape) :], first, second]
            return low.sharded(node, (bias, a, b, *args[3:]), kwargs, letters, [out], free=out)
        product_value = low.resolve(
            low.sharded(
                node, (a, b), {}, [first, second], [out], free=out, summed=contracted, target=plain,
                op_class=plain._opname,
            )
        )  # fmt: skip
        letters = [out, out[len(out) - len(bias.shape) :]]
        return low.sharded(
            node, (product_value, bias, kwargs.get("alpha", 1), kwargs.get("beta", 1)), {}, letters, [out], free=out,
            target=_scaled_sum, op_class="add",
        )  # fmt: skip

    return rule


def _scaled_sum(product_value: torch.Tensor, bias: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return product_value * alpha + bias * beta


def attention(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Flash attention on the CPU: q (B, H, T, D), k and v (B, H, S, D); batch and heads are independent."""
    same_heads = args[0].shape[1] == args[1].shape[1]
    letters = ["bhtd", "bhsd" if same_heads else "bgsd", "bhse" if same_heads else "bgse"]
    if isinstance(kwargs.get("attn_mask"), Value):
        letters.append("bhts"[4 - len(kwargs["attn_mask"].shape) :])
    statistics = _statistics_letters(args[0], node.meta["val"][1])
    return low.sharded(node, args, kwargs, letters, ["bhte", statistics], free="bh" if same_heads else "b")


def attention_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Its backward: grad_out, q, k, v, out, log-sum-exp."""
    same_heads = args[1].shape[1] == args[2].shape[1]
    k, v = ("bhsd", "bhse") if same_heads else ("bgsd", "bgse")
    letters = ["bhte", "bhtd", k, v, "bhte", _statistics_letters(args[1], args[5])]
    if isinstance(kwargs.get("attn_mask"), Value):
        letters.append("bhts"[4 - len(kwargs["attn_mask"].shape) :])
    return low.sharded(node, args, kwargs, letters, ["bhtd", k, v], free="bh" if same_heads else "b")


def _statistics_letters(q: Value, statistics: Any) -> str:
    """Log-sum-exp is (B, T, H) or (B, H, T); only the batch is cut where the two cannot be told apart."""
    b, h, t, _ = q.shape
    shape = tuple(statistics.shape)
    if shape == (b, h, t) and h != t:
        return "bht"
    return "bth" if shape == (b, t, h) and h != t else "bxy"


def embedding(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Weight (V, D) read at indices of any shape."""
    index = string.ascii_lowercase[: len(args[1].shape)]
    return low.sharded(node, args, kwargs, ["VD", index], [index + "D"], free=index)


def embedding_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Grad (..., D), indices (...), V, padding, scale -> gradient of the table (V, D).

    With `scale` every gradient is divided by how often its index occurs in the whole batch: nothing can be cut.
    """
    index = string.ascii_lowercase[: len(args[1].shape)]
    return low.sharded(node, args, kwargs, [index + "D", index], ["VD"], free="", summed="" if args[4] else index)


RULES = {
    "mm": product("mk", "kn", "mn", "k"),
    "bmm": product("bmk", "bkn", "bmn", "k"),
    "mv": product("mk", "k", "m", "k"),
    "dot": product("k", "k", "", "k"),
    "addmm": biased("mk", "kn", "mn", torch.ops.aten.mm.default),
    "baddbmm": biased("bmk", "bkn", "bmn", torch.ops.aten.bmm.default),
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "embedding": embedding,
    "embedding_dense_backward": embedding_backward,
}
