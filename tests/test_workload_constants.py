"""Questions about tensors that no input decides are answered while a step is captured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import classes, grid
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu

TOKENS, TARGETS = classes(12, 8, n=11), classes(12)


class Asks(nn.Module):
    """Takes one way if `mask` holds everywhere, another if not."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(8, 5)
        self.mask = mask
        self.kept = torch.ones(3)
        self.register_buffer("state", torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.body(tokens.to(self.body.weight.dtype))
        return y * 2 if bool(self.mask(self, tokens).all()) else y * 3  # type: ignore[arg-type, call-arg]


def decoder() -> nn.Module:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True), 1)
            self.head = nn.Linear(8, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.head(self.layers(x, x.flip(1), tgt_mask=mask).mean(1))  # type: ignore[no-any-return]

    return Decoder()


def trained(model: nn.Module, **options: Any) -> Any:
    return meshemu.emulate(
        model, (TOKENS, TARGETS), F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), system=grid(2, 2),
        **({"plan": "data"} | options),
    )  # fmt: skip


def plain_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(TOKENS), TARGETS))


@pytest.mark.parametrize(
    "options",
    [{"micro_batches": 2}, {"plan": {"pipeline": 2, "micro_batches": 3}}, {"formats": {"communication": "bf16"}}],
    ids=["micro-batches", "pipeline", "formats"],
)
def test_a_causal_mask_is_no_question_of_the_batch(options: dict[str, Any]) -> None:
    """torch's decoder asks whether its mask is causal."""
    torch.manual_seed(0)
    model = decoder()
    loss = plain_loss(model)
    result = trained(model, **options)
    assert result.losses[0] == pytest.approx(loss, rel=1e-6)
    assert trained(decoder(), execute=False, **options).time_ps == result.time_ps


def doubled(of: Tensor, times: int) -> Tensor:
    for _ in range(times):
        of = (of + of) / 2
    return of


KNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "true": lambda _m, x: torch.ones(x.shape[1]) > 0,
    "false": lambda _m, _x: torch.eye(3).bool(),
    "views": lambda _m, _x: torch.arange(6).view(2, 3).T.detach()[1:].flatten() > 0,
    "held": lambda m, _x: m.kept > 0,
    "long": lambda _m, _x: doubled(torch.ones(2), 2000) == 1,
}


@pytest.mark.parametrize("mask", KNOWN.values(), ids=KNOWN)
def test_what_the_program_decides_is_known(mask: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Asks(mask)
    loss = plain_loss(model)
    assert trained(model, micro_batches=2).losses[0] == pytest.approx(loss, rel=1e-6)


def written(tensor: Tensor, value: float, of: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
    seen = of(tensor)
    tensor.fill_(value)
    return seen > 0


UNKNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch": lambda _m, x: x > 3,
    "parameter": lambda m, _x: m.body.bias > 0,
    "buffer": lambda m, _x: m.state > 0,
    "drawn": lambda _m, _x: torch.rand(3) > 0.5,
    "written": lambda _m, x: torch.zeros(3).index_fill_(0, x[0] % 3, 1.0) > 0,
    "view of what is written": lambda _m, x: written(torch.ones(3), 0.0, lambda t: t[1:]),
}


@pytest.mark.parametrize("mask", UNKNOWN.values(), ids=UNKNOWN)
def test_what_varies_is_not_known(mask: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Asks(mask)
    with pytest.raises(meshemu.InputError, match="depends on data"):
        trained(model, micro_batches=2)
