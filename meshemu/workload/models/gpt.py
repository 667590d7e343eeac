"""GPT: a decoder-only transformer over tokens or characters, pre-norm as in GPT-2 (Radford et al., 2019).

Shape letters: B batch, T tokens, D width, H heads, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive

__all__ = ["GPT"]


class GPT(nn.Module):
    """Token and position embeddings, blocks of causal attention and MLP, a final norm and a head over the vocabulary.

    Tokens (B, T) -> logits (B, T, V), T <= context.

    Args:
        vocab_size: V.
        context: the most tokens that it can see.
        width: D, divisible by `heads`.
        heads: H.
        layers: number of blocks.
        mlp_ratio: width of the MLP's hidden layer over D.
        tied_head: whether the head is the transpose of the token embedding.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        vocab_size: int = 96,
        context: int = 64,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        mlp_ratio: int = 4,
        tied_head: bool = False,
    ) -> None:
        super().__init__()
        check_positive(
            "model gpt", vocab_size=vocab_size, context=context, width=width, heads=heads, layers=layers,
            mlp_ratio=mlp_ratio,
        )
        if width % heads:
            raise InputError(f"model gpt: width = {width} is not a multiple of heads = {heads}")
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied_head:
            self.head.weight = self.tokens.weight
        self._initialise(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `tokens` (B, T)."""
        x_btd = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits_btv: Tensor = self.head(self.norm(self.blocks(x_btd)))
        return logits_btv

    def _initialise(self, layers: int) -> None:
        """GPT-2's initialisation: N(0, 0.02), and narrower where a block writes to the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                narrow = (2 * layers) ** -0.5 if name.endswith(("project.weight", "contract.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * narrow)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Block(nn.Module):
    """Causal attention, then an MLP, each on normalised input and added to what came in."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, mlp_ratio * width)
        self.contract = nn.Linear(mlp_ratio * width, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_btd = x_btd + self.attention(self.attention_norm(x_btd))
        out: Tensor = x_btd + self.contract(functional.gelu(self.expand(self.mlp_norm(x_btd))))
        return out


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it.

    Queries, keys and values have a matrix each, so that a split over heads is a split of each matrix.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (self._split_heads(linear(x_btd)) for linear in (self.query, self.key, self.value))
        mixed_bhtd = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.project(mixed_bhtd.transpose(1, 2).reshape(x_btd.shape))
        return out

    def _split_heads(self, x_btd: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        batch, length, _ = x_btd.shape
        return x_btd.view(batch, length, self.heads, -1).transpose(1, 2)
