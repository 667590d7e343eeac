"""Matrix products and attention: dims named as in an einsum; a contracted cut dim leaves a partial sum."""

from typing import Any

import torch
from torch import fx

from meshemu.workload.lowering import Lowering

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


def summed_batch(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Addbmm: a bias and the sum of a batch of products, whose terms may be on different devices."""
    bias, a, b = (low.resolve(v) for v in args[:3])
    total = low.resolve(
        low.sharded(node, (a, b), {}, ["bmk", "bkn"], ["mn"], free="mn", summed="bk", target=_product_of_batch,
                    op_class="bmm")
    )  # fmt: skip
    letters = ["mn", "mn"[2 - len(bias.shape) :]]
    factors = (kwargs.get("alpha", 1), kwargs.get("beta", 1))
    return low.sharded(
        node, (total, bias, *factors), {}, letters, ["mn"], free="mn", target=_scaled_sum, op_class="add"
    )


def _product_of_batch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a, b).sum(0)


def outer(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Addr: matrix * beta + the outer product of two vectors * alpha."""
    names = "mn"[2 - len(args[0].shape) :]
    return low.sharded(node, args, kwargs, [names, "m", "n"], ["mn"], free="mn")


def distances(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """_cdist_forward of points (..., M, K) and (..., N, K): coordinates are whole."""
    batch = "abcdef"[: len(args[0].shape) - 2]
    letters = [batch + "mK", batch + "nK"]
    if args[0].shape[:-2] != args[1].shape[:-2]:
        return low.sharded(node, args, kwargs, [letters[0], "ABCDEF"[: len(args[1].shape) - 2] + "nK"],
                           [WHOLE[: node.meta["val"].dim() - 2] + "mn"], free="mn")  # fmt: skip
    return low.sharded(node, args, kwargs, letters, [batch + "mn"], free=batch + "mn")


def distances_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """_cdist_backward: grad (..., M, N), points (..., M, K), points (..., N, K), p, distances."""
    batch = "abcdef"[: len(args[0].shape) - 2]
    letters = [batch + "mn", batch + "mK", batch + "nK", batch + "mn"]
    return low.sharded(node, args, kwargs, letters, [batch + "mK"], free=batch + "m", summed="n")


WHOLE = "UVWXYZ"
RULES = {
    "mm": product("mk", "kn", "mn", "k"),
    "bmm": product("bmk", "bkn", "bmn", "k"),
    "mv": product("mk", "k", "m", "k"),
    "dot": product("k", "k", "", "k"),
    "addmm": biased("mk", "kn", "mn", torch.ops.aten.mm.default),
    "addmv": biased("mk", "k", "m", torch.ops.aten.mv.default),
    "addbmm": summed_batch,
    "addr": outer,
    "_cdist_forward": distances,
    "_cdist_backward": distances_backward,
    "baddbmm": biased("bmk", "bkn", "bmn", torch.ops.aten.bmm.default),
}
