"""From cameras to the space around the car: learned queries, one per cell, read all cameras by cross-attention.

Shape letters: B batch, N cameras, H and W height and width of a map, D width of the tokens, T tokens, Q queries, K
heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive

__all__ = ["ViewAttention"]

EMBEDDING_STD = 0.02
MLP_RATIO = 2


class ViewAttention(nn.Module):
    """Maps of all cameras, each (B, N, D, H, W) -> what each of `n_queries` learned queries reads from them, (B, Q, D).

    A token's place is the sum of three learned embeddings: of its camera, and of its row and column in its map.

    Args:
        n_queries: cells of the space that is looked at.
        n_cameras: N.
        map_sizes: (H, W) of each map.
        width: D, divisible by `heads`.
        heads: attention heads.
        layers: number of blocks.

    Raises:
        InputError: a size below 1, or a width that is no multiple of the heads.
    """

    def __init__(
        self,
        n_queries: int,
        n_cameras: int,
        map_sizes: Sequence[tuple[int, int]],
        width: int,
        heads: int,
        layers: int,
    ) -> None:
        super().__init__()
        check_positive("view attention", heads=heads, attention_layers=layers)
        if width % heads:
            raise InputError(f"view attention: width = {width} is not a multiple of heads = {heads}")
        self.queries = _embedding(n_queries, width)
        self.cameras = _embedding(n_cameras, 1, 1, width)
        self.rows = nn.ParameterList(_embedding(height, 1, width) for height, _ in map_sizes)
        self.columns = nn.ParameterList(_embedding(columns, width) for _, columns in map_sizes)
        self.token_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, N, D, H, W) -> (B, Q, D)."""
        tokens = []
        for x_bndhw, rows, columns in zip(maps, self.rows, self.columns, strict=True):
            placed_bnhwd = x_bndhw.permute(0, 1, 3, 4, 2) + (self.cameras + rows + columns)
            tokens.append(placed_bnhwd.flatten(1, 3))
        tokens_btd = self.token_norm(torch.cat(tokens, dim=1))
        x_bqd = self.queries.unsqueeze(0)
        for block in self.blocks:
            x_bqd = block(x_bqd, tokens_btd)
        out: Tensor = self.norm(x_bqd)
        return out


class CrossAttentionBlock(nn.Module):
    """Queries read tokens, then pass through an MLP; each on normalised input and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, MLP_RATIO * width)
        self.contract = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x_bqd: Tensor, tokens_btd: Tensor) -> Tensor:
        """Queries (B or 1, Q, D) and tokens (B, T, D) -> (B, Q, D).

        Queries that are the same for all samples stay one copy until they meet the tokens.
        """
        batch, _, width = tokens_btd.shape
        query_bkqd = self._split_heads(self.query(self.attention_norm(x_bqd))).expand(batch, -1, -1, -1)
        key_bktd, value_bktd = (self._split_heads(linear(tokens_btd)) for linear in (self.key, self.value))
        read_bkqd = functional.scaled_dot_product_attention(query_bkqd, key_bktd, value_bktd)
        x_bqd = x_bqd + self.project(read_bkqd.transpose(1, 2).reshape(batch, -1, width))
        out: Tensor = x_bqd + self.contract(functional.gelu(self.expand(self.mlp_norm(x_bqd))))
        return out

    def _split_heads(self, x_btd: Tensor) -> Tensor:
        """(B, T, D) -> (B, K, T, D / K)."""
        batch, length, _ = x_btd.shape
        return x_btd.view(batch, length, self.heads, -1).transpose(1, 2)


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * EMBEDDING_STD)
