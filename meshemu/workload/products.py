"""Operators that multiply an activation with a weight, and where a weight comes from."""

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from meshemu.workload.lowering import base_name

__all__ = ["Product", "product_of", "root_of"]


@dataclass(frozen=True)
class Product:
    """activation_dim, contracted_dim: the dim of activation and weight that is summed over. output_dim, result_dim: the
    dim of weight and of the result that stays.
    """

    node: fx.Node
    activation: fx.Node
    weight: fx.Node
    activation_dim: int
    contracted_dim: int
    output_dim: int
    result_dim: int


def product_of(node: fx.Node) -> Product | None:
    """The product that a node computes, if the cut of its weight is a matter of choice."""
    if node.op != "call_function":
        return None
    args = node.args
    match base_name(node):
        case "mm":
            return _product(node, args[0], args[1], 1, 0, 1, 1)
        case "addmm":
            return _product(node, args[1], args[2], 1, 0, 1, 1)
        case "bmm":
            return _product(node, args[0], args[1], 2, 1, 2, 2)
        case "baddbmm":
            return _product(node, args[1], args[2], 2, 1, 2, 2)
        case "mv":
            return _product(node, args[1], args[0], 0, 1, 0, 0)
        case "convolution" if args[8] == 1:
            contracted, output = (0, 1) if args[6] else (1, 0)
            return _product(node, args[0], args[1], 1, contracted, output, 1)
    return None


def _product(node: fx.Node, activation: object, weight: object, *dims: int) -> Product:
    if not isinstance(activation, fx.Node) or not isinstance(weight, fx.Node):
        raise AssertionError(f"{node.name} multiplies {activation!r} with {weight!r}")
    return Product(node, activation, weight, *dims)


def root_of(node: fx.Node, parameters: Container[fx.Node]) -> tuple[fx.Node, tuple[int, ...]] | None:
    """(parameter, its dim for each dim of `node`), if `node` is a parameter with at most its dims permuted."""
    rank = node.meta["val"].dim()
    dims = tuple(range(rank))
    while node not in parameters:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None or node.op != "call_function":
            return None
        match base_name(node):
            case "t":
                order = tuple(reversed(range(rank)))
            case "transpose":
                swapped = list(range(rank))
                a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
                swapped[a], swapped[b] = swapped[b], swapped[a]
                order = tuple(swapped)
            case "permute":
                order = tuple(int(d) % rank for d in node.args[1])  # type: ignore[union-attr,arg-type]
            case "_to_copy" | "alias" | "detach" | "clone":
                order = tuple(range(rank))
            case _:
                return None
        dims = tuple(order[d] for d in dims)
        node = source
    return node, dims
