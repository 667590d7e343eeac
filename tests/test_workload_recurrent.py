"""LSTMs in fp32 and bf16, which torch itself would run as one oneDNN operator."""

from typing import Any

import pytest
import torch
from models_under_test import grid, images
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.errors import CaptureError
from meshemu.workload.capture import capture


class Reader(nn.Module):
    """Reads a series of numbers, which need no gradient, and names its class."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, **options)
        self.head = nn.LazyLinear(4)
        self(torch.zeros(2, 3, 6))

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.lstm(series)[0][:, -1])  # type: ignore[no-any-return]


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(6, 5, 6), torch.randint(0, 4, (6,))


def reader(**options: Any) -> Reader:
    torch.manual_seed(0)
    return Reader(**options)


OPTIONS: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]
PLANS: list[dict[str, int]] = [{"data": 3}, {"tensor": 2}, {"shard": 2, "zero": 3}]


def trained(model: nn.Module, autocast: torch.dtype | None) -> list[float]:
    """Losses of three steps of plain PyTorch."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5), []
    inputs, targets = batch()
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("autocast", "within"), [(None, 1e-5), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_an_lstm_trains_as_in_plain_pytorch(options: dict[str, Any], autocast: Any, within: float) -> None:
    plain = reader(**options)
    expected = trained(plain, autocast)
    for plan in PLANS:
        model = reader(**options)
        result = meshemu.emulate(
            model, batch(), F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), system=grid(1, 3),
            plan=plan, steps=3, autocast=autocast,
        )  # fmt: skip
        assert result.losses == pytest.approx(expected, rel=within)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, atol=within, rtol=0)


@pytest.mark.parametrize("gradients", [True, False])
def test_capture_leaves_the_setting_of_onednn(gradients: bool) -> None:
    def step(model: Any, inputs: Any) -> Any:
        loss = F.cross_entropy(model(inputs[0]), inputs[1])
        return loss if gradients else {"loss": loss}

    for enabled in (True, False):
        torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]
        try:
            graph = capture(reader(), batch(), step, gradients=gradients)
            names = {str(node.target) for node in graph.nodes}
            with pytest.raises(CaptureError, match=r"LSTM|size"):
                capture(reader(), (images(6, 5, 7).float(), batch()[1]), step, gradients=gradients)
            assert torch.backends.mkldnn.enabled == enabled
        finally:
            torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
        assert "aten.sigmoid.default" in names and not any("mkldnn" in name for name in names)
