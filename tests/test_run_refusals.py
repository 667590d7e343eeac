"""What a user can ask for and not get: one line, from Python and from a configuration, before anything runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models_under_test import grid
from small_run import config_text, written
from torch.nn import functional as F

import meshemu
from meshemu import cli
from meshemu.runtime.failure import guard
from meshemu.runtime.launch import detect_launch
from meshemu.workload.user_function import load_function

ROOT = Path(__file__).parent.parent
CONFIG = config_text(
    'steps = 1\noptimizer = { name = "sgd", lr = 0.1 }', plan="{ data = 2 }", model='build = "mine.py:tiny"',
    batch_size=4,
)  # fmt: skip
MINE = """
import torch
from torch import nn
from torch.nn import functional as F

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
    def forward(self, x):
        return self.linear(x)

class Drawing(Tiny):
    def forward(self, x):
        return self.linear(x) + torch.multinomial(x.abs() + 1, 1)

def tiny():
    return Tiny()

def drawing():
    return Drawing()

def narrow():
    return nn.Linear(5, 4)

def elsewhere():
    return Tiny().to("meta")

def data(device="cpu"):
    x, y = torch.ones(8, 6, device=device), torch.zeros(8, dtype=torch.long, device=device)
    return x, y, x, y

def detached(outputs, targets):
    return F.cross_entropy(outputs.detach(), targets)

def share(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()

def words(outputs, targets):
    return F.cross_entropy(outputs, targets), {"size": "large"}

def twice(outputs, targets):
    return {1: outputs.mean(), "1": outputs.std()}
"""

Case = tuple[str, dict[str, Any], list[str], str]
"""(name, what `emulate` is given instead of the defaults, what the configuration says instead, what is said)."""

CASES: list[Case] = [
    (
        "axes that do not fit together", {"plan": {"data": 3, "tensor": 2}}, ["plan={data=3, tensor=2}"],
        "plan = {data = 3, tensor = 2} is larger than the mesh: 3 x 2 = 6 > 4 live devices",
    ),
    (
        "axes that do not divide the mesh", {"plan": {"spatial": [2, 2], "data": 2}},
        ["plan={spatial=[2, 2], data=2}"], "2 x 4 = 8 > 4 live devices",
    ),
    (
        "an axis that is no rectangle", {"plan": {"data": 3, "tensor": 1}}, ["plan={data=3, tensor=1}"],
        "is no rows x cols rectangle of devices in the north-west corner of the 2 x 2 mesh",
    ),
    (
        "a module glob that matches nothing", {"plan": {"tensor": 2, "modules": {"head.*": "row"}}},
        ["plan={tensor=2, modules={'head.*'='row'}}"],
        "plan.modules.'head.*' matches no module with a weight; there are e.g. linear",
    ),
    (
        "a batch smaller than the data axis", {"plan": {"data": 4}, "n_samples": 3},
        ["plan={data=4}", "data.batch_size=3"], "batch size 3 < 4 devices",
    ),
    (
        "micro-batches that do not divide the batch", {"micro_batches": 3}, ["training.micro_batches=3"],
        "micro_batches = 3 does not divide the batch size 4",
    ),
    (
        "a loss without a gradient", {"loss": "detached"}, ["training.loss=mine.py:detached"],
        "the loss does not depend differentiably on any trainable parameter",
    ),
    (
        "a loss that cannot be differentiated", {"loss": "share"}, ["training.loss=mine.py:share"],
        "the loss does not depend differentiably on any trainable parameter",
    ),
    (
        "a loss with a term that is no number", {"loss": "words"}, ["training.loss=mine.py:words"],
        "loss 'size' must be a tensor of one element, not str",
    ),
    (
        "a loss with one name twice", {"loss": "twice"}, ["training.loss=mine.py:twice"],
        "two names of a loss read the same: 1, '1'",
    ),
    (
        "a random operator without a rule", {"model": "drawing"}, ["model.build=mine.py:drawing"],
        "operator aten.multinomial.default",
    ),
    (
        "a model that its inputs do not fit", {"model": "narrow"}, ["model.build=mine.py:narrow"],
        "Linear cannot be captured as one graph: RuntimeError: a and b must have same reduction dim",
    ),
    (
        "a model on another device", {"model": "elsewhere"}, ["model.build=mine.py:elsewhere"],
        "linear.weight is on device meta: meshemu runs the maths on the CPU",
    ),
    (
        "inputs on another device", {"device": "meta"},
        ["data={build='mine.py:data', args={device='meta'}, batch_size=4}"],
        "is on device meta: meshemu runs the maths on the CPU",
    ),
]  # fmt: skip
IDS = [case[0] for case in CASES]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written(tmp_path, CONFIG, MINE)


@pytest.mark.parametrize(("_name", "given", "_settings", "said"), CASES, ids=IDS)
def test_from_python(_name: str, given: dict[str, Any], _settings: Any, said: str, folder: Path) -> None:
    changes = dict(given)

    def mine(name: str) -> Any:
        return load_function(f"mine.py:{name}")

    model = mine(changes.pop("model", "tiny"))()
    loss = mine(changes.pop("loss")) if "loss" in changes else F.cross_entropy
    n_samples, device = changes.pop("n_samples", 4), changes.pop("device", "cpu")
    batch = torch.ones(n_samples, 6, device=device), torch.zeros(n_samples, dtype=torch.long, device=device)
    with pytest.raises(meshemu.InputError) as raised:
        meshemu.emulate(model, batch, loss, system=grid(2, 2), output="out.h5", **({"plan": {"data": 2}} | changes))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "out.h5").exists()


@pytest.mark.parametrize(("_name", "_given", "settings", "said"), CASES, ids=IDS)
def test_from_a_configuration(
    _name: str, _given: Any, settings: list[str], said: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the command does it: exit code 2, one line on stderr, no traceback, no file."""
    words = ["run", "run.toml", *(word for setting in settings for word in ("--set", setting))]
    arguments = cli.parse_arguments(words)
    launch = detect_launch({})
    assert guard(lambda: arguments.command(arguments, launch), launch) == 2
    sys.stderr.flush()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("meshemu") and said in line
    assert not (folder / "run.h5").exists()


def test_torch_has_nothing_to_add(folder: Path) -> None:
    """It logs a traceback of an operator that its inputs do not fit, in a process whose stderr nobody has replaced."""
    command = [sys.executable, "-m", "meshemu", "run", "run.toml", "--set", "model.build=mine.py:narrow"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("meshemu: error: Linear cannot be captured")
