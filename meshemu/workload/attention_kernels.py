"""Maths of one block of attention: some heads, some queries, some keys.

Legend: q (B, H, T, D), k (B, G, S, D), v (B, G, S, E), logsumexp (B, H, T). Ranges are global: (heads, positions).
"""

from dataclasses import dataclass

import torch

from meshemu.workload.kernels import accumulator

__all__ = [
    "Attention",
    "attend",
    "attend_backward",
    "attend_block",
    "attend_block_backward",
    "attend_more",
]

Tensor = torch.Tensor
Range = tuple[int, int]
Ranges = tuple[Range, Range]
aten = torch.ops.aten
LOWEST = float("-inf")


@dataclass(frozen=True)
class Attention:
    """causal: query i meets keys up to i. ratio: how many heads share a head of keys."""

    causal: bool
    scale: float
    ratio: int

    def shared_heads(self, of_query: Ranges, of_key: Ranges) -> Tensor | None:
        """Which held head of keys each held head meets, or None if the blocks already match."""
        if (of_query[0][0], of_query[0][1]) == (of_key[0][0] * self.ratio, of_key[0][1] * self.ratio):
            return None
        return torch.arange(*of_query[0]) // self.ratio - of_key[0][0]

    def bias(self, mask: Tensor | None, of_query: Ranges, of_key: Ranges) -> Tensor | None:
        """What is added to the scores of a block: 0 and -inf where masked. mask: (..., T or 1, all S or 1)."""
        if mask is not None:
            return mask if mask.shape[-1] == 1 else mask[..., of_key[1][0] : of_key[1][1]]
        if not self.causal:
            return None
        later = torch.arange(*of_key[1]) > torch.arange(*of_query[1])[:, None]
        return torch.zeros(later.shape).masked_fill(later, LOWEST)


def _per_head(x: Tensor, shared: Tensor | None, n_heads: int) -> Tensor:
    """Keys or values with a head for every head of the queries."""
    return x.repeat_interleave(n_heads // x.shape[1], 1) if shared is None else x.index_select(1, shared)


def _summed_heads(grad: Tensor, shared: Tensor | None, like: Tensor) -> Tensor:
    """The adjoint of `_per_head`."""
    if shared is None:
        return grad.reshape(grad.shape[0], like.shape[1], -1, *grad.shape[2:]).sum(2).to(like.dtype)
    return torch.zeros(like.shape, dtype=grad.dtype).index_add(1, shared, grad).to(like.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges, of_key: Ranges
) -> tuple[Tensor, Tensor]:
    """(out, logsumexp) of some heads with all queries and keys, by PyTorch's kernel."""
    shared = attention.shared_heads(of_query, of_key)
    if shared is not None:
        k, v = k.index_select(1, shared), v.index_select(1, shared)
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu.default(
        q, k, v, 0.0, attention.causal, attn_mask=mask, scale=attention.scale
    )
    return out, logsumexp


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges,
    of_key: Ranges, out: Tensor, logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v of `attend`."""
    shared = attention.shared_heads(of_query, of_key)
    keys, values = (k, v) if shared is None else (k.index_select(1, shared), v.index_select(1, shared))
    of_q, of_k, of_v = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad, q, keys, values, out, logsumexp, 0.0, attention.causal, attn_mask=mask, scale=attention.scale
    )
    if shared is None:
        return of_q, of_k, of_v
    return of_q, _summed_heads(of_k, shared, k), _summed_heads(of_v, shared, v)


def attend_block(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges, of_key: Ranges
) -> tuple[Tensor, Tensor]:
    """(out, logsumexp) of some queries with some keys; zeros and -inf for a query that meets none of them."""
    dtype = accumulator(q.dtype)
    shared = attention.shared_heads(of_query, of_key)
    scores = _scores(q.to(dtype), k, mask, attention, of_query, of_key)
    logsumexp = scores.logsumexp(-1)
    weights = (scores - _finite(logsumexp)[..., None]).exp()
    return weights @ _per_head(v, shared, q.shape[1]).to(dtype), logsumexp


def _scores(
    q: Tensor, k: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges, of_key: Ranges
) -> Tensor:
    keys = _per_head(k, attention.shared_heads(of_query, of_key), q.shape[1]).to(q.dtype)
    scores = q @ keys.transpose(-1, -2) * attention.scale
    bias = attention.bias(mask, of_query, of_key)
    return scores if bias is None else scores + bias.to(scores.dtype)


def _finite(logsumexp: Tensor) -> Tensor:
    """Zero in place of -inf, so that what is masked stays masked."""
    return torch.where(logsumexp == LOWEST, torch.zeros_like(logsumexp), logsumexp)


def attend_more(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges, of_key: Ranges,
    out: Tensor, logsumexp: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, logsumexp) after some more keys: the online softmax of Milakov and Gimelshein (2018)."""
    if not k.shape[2] or not q.numel():
        return out, logsumexp
    more, other = attend_block(q, k, v, mask, attention, of_query, of_key)
    total = torch.logaddexp(logsumexp, other)
    base = _finite(total)
    return out * (logsumexp - base).exp()[..., None] + more * (other - base).exp()[..., None], total


def attend_block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention, of_query: Ranges,
    of_key: Ranges, out: Tensor, logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The block's terms of the gradients of q, k and v; out and logsumexp are those of whole rows."""
    dtype = accumulator(q.dtype)
    shared = attention.shared_heads(of_query, of_key)
    g, queries = grad.to(dtype), q.to(dtype)
    weights = (_scores(queries, k, mask, attention, of_query, of_key) - _finite(logsumexp)[..., None]).exp()
    of_values = weights.transpose(-1, -2) @ g
    products = g @ _per_head(v, shared, q.shape[1]).to(dtype).transpose(-1, -2)
    of_scores = weights * (products - (g * out.to(dtype)).sum(-1, keepdim=True)) * attention.scale
    of_q = of_scores @ _per_head(k, shared, q.shape[1]).to(dtype)
    of_k = of_scores.transpose(-1, -2) @ queries
    return of_q.to(q.dtype), _summed_heads(of_k, shared, k), _summed_heads(of_values, shared, v)
