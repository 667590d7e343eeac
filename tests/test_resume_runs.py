"""A run that was cut off and goes on gives what it would have given, bit for bit, on any number of ranks."""

import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import meshemu
from meshemu.config import load, parse
from meshemu.emulator.recording import Recorder
from meshemu.errors import CheckError, InputError, RecordError, StoppedError
from meshemu.runtime.local import run_ranks
from meshemu.study.captures import captures_of

CONFIG = """
[system]
grid = { rows = 2, cols = 2, bandwidth = "50 GB/s", latency = "500 ns" }
[model]
build = "mine.py:model"
[data]
build = "mine.py:data"
batch_size = 8
[training]
steps = 6
loss = "mine.py:loss"
evaluate_every = 4
optimizer = { name = "adamw", lr = 0.01 }
[checkpoint]
every_steps = 2
"""
MINE = """
import torch
from torch import nn
from torch.nn import functional as F

class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + 0.01 * self.calls

def model():
    built = Model()
    g = torch.Generator().manual_seed(1)
    for p in built.parameters():
        p.data = torch.randn(p.shape, generator=g) / 4
    return built

def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=g)
    y = x[:, :4].argmax(1)
    return x, y, x[:16], y[:16]

def loss(outputs, targets):
    return F.cross_entropy(outputs, targets)
"""


class CutError(Exception):
    """Ends a run where a kill would."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.toml").write_text(CONFIG)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """`before_step(n, act)`: do something when step n has been computed, and is about to be recorded."""
    record = Recorder.step

    def install(number: int, act: Callable[[], None]) -> None:
        def step(self: Recorder, step: int, *arguments: Any, **options: Any) -> None:
            if step == number:
                act()
            record(self, step, *arguments, **options)

        monkeypatch.setattr(Recorder, "step", step)

    return install


def cut() -> None:
    raise CutError


def run(name: str, *overrides: str, ranks: int = 1, **options: Any) -> None:
    config = load("run.toml", ["plan=data", *overrides])
    options["capture"] = captured(Path("mine.py"), *(text for text in overrides if text.startswith("model.")))
    if ranks == 1:
        meshemu.run(config, name, **options)
    else:
        run_ranks(ranks, lambda comm: meshemu.run(config, name, comm=comm, **options).path)


def captured(file: Path, *overrides: str) -> Any:
    """A step is captured once for each model that tests make: what goes on is not what it is captured as."""
    return captures_of(" ".join((file.read_text(), *overrides)))


def cut_off(name: str, before_step: Any, step: int, *overrides: str, ranks: int = 1) -> None:
    before_step(step, cut)
    with pytest.raises(CutError):
        run(name, *overrides, ranks=ranks)
    before_step(-1, cut)


PLANS = {
    "zero 3, cosine": ("plan={shard=4, zero=3}", "training.schedule={name='cosine', warmup_steps=2}"),
    "pipeline": ("plan={pipeline=2, data=2, stages=['3'], micro_batches=2}",),
    "sliding formats": (
        "plan={data=4}",
        "formats={weights={format='cfloat8_1_4_3', rounding='stochastic'}, activations='cfloat8_1_4_3', "
        "gradients={format='cfloat8_1_5_2', rounding='stochastic'}, optimizer='cfloat16_shp'}",
    ),
    "fp64, nadam": ("plan=data", "model.dtype=fp64", "training.optimizer={name='nadam', lr=0.01}"),
    "bf16, one cycle": ("plan=data", "model.dtype=bf16", "training.schedule={name='one_cycle', max_lr=0.1}"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(case: str, folder: Path, before_step: Any) -> None:
    """Cut off at step 5, with steps 0 to 4 recorded and a checkpoint after four; on 1 -> 2 ranks, once 1 -> 3."""
    run("whole.h5", *PLANS[case])
    cut_off("cut.h5", before_step, 5, *PLANS[case])
    assert meshemu.open("cut.h5").n_steps == 5
    assert sorted(os.listdir("cut.checkpoints")) == ["step-000002.pt", "step-000004.pt"]
    run("cut.h5", *PLANS[case], ranks=3 if case.startswith("zero") else 2, resume=True)
    assert meshemu.compare("whole.h5", "cut.h5") is None
    assert meshemu.open("cut.h5").complete
    ends = [torch.load(f"{name}.checkpoints/step-000006.pt", weights_only=True) for name in ("whole", "cut")]
    assert ends[0].get("formats") == ends[1].get("formats")
    assert ("formats" in ends[0]) == ("formats" in case)


def test_the_page_on_resuming_is_true() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "resume.md").read_text()
    (table,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    config = parse('plan = "data"\n' + CONFIG.partition("[checkpoint]")[0] + table, origin="page", directory=Path())
    assert (config.checkpoint.every_steps, config.checkpoint.keep, config.checkpoint.path) == (50, 2, "states")
    assert config.output.record_budget == 10**9 and not config.output.messages


def test_a_checkpoint_is_what_plain_pytorch_reads(folder: Path) -> None:
    run("run.h5", "training.steps=2")
    state = torch.load("run.checkpoints/step-000002.pt", weights_only=True)
    assert (state["step"], state["seed"]) == (2, 0)
    assert state["parameters_sha256"] == meshemu.open("run.h5").steps["parameters_sha256"].tolist()[-1]
    assert {"model.build (content)", "training.optimizer.lr", "plan"} <= state["identity"].keys()
    namespace: dict[str, Any] = {}
    exec(MINE, namespace)
    model = namespace["model"]()
    model.load_state_dict(state["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    optimizer.load_state_dict(state["optimizer"])
    assert [group["lr"] for group in optimizer.param_groups] == [0.01]
    assert float(state["buffers"]["calls"]) == 2.0


def test_without_a_good_checkpoint_all_is_run_again_and_compared(
    folder: Path, before_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run("whole.h5")
    run("none.h5", "training.steps=2", resume=True)
    assert "there is no none.h5: starting from scratch" in capsys.readouterr().err
    cut_off("run.h5", before_step, 5)
    capsys.readouterr()
    content = Path("run.checkpoints/step-000004.pt").read_bytes()
    Path("run.checkpoints/step-000004.pt").write_bytes(content[: len(content) // 2])
    Path("run.checkpoints/step-000006.pt").write_bytes(content)
    ran: list[int] = []
    before_step(5, lambda: ran.append(5))
    run("run.h5", resume=True)
    said = capsys.readouterr().err
    assert "step-000006.pt is left aside: it is no checkpoint of this step" in said
    assert "step-000004.pt is left aside: it is damaged" in said
    assert "goes on after step 1 from run.checkpoints/step-000002.pt; steps 2 to 4 are run again and compared" in said
    assert meshemu.compare("whole.h5", "run.h5") is None
    run("run.h5", resume=True)
    assert "run.h5 holds 6 steps, 6 are asked for: nothing to do" in capsys.readouterr().err
    assert ran == [5]


def test_what_was_recorded_is_never_taken_back(folder: Path, before_step: Any) -> None:
    """A checkpoint of another run of the same configuration, and a model that computes otherwise, are noticed."""
    cut_off("run.h5", before_step, 3)
    held = meshemu.open("run.h5").steps["loss"].tolist()
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace("0.01", "0.02"))
    with pytest.raises(InputError, match=r"step-000002\.pt: (model|data)\.build: mine\.py has changed"):
        run("run.h5", resume=True)
    for file in Path("run.checkpoints").iterdir():
        file.unlink()
    with pytest.raises(CheckError, match="step 0, run again, gives another /results/steps/"):
        run("run.h5", resume=True)
    Path("mine.py").write_text(text)
    assert meshemu.open("run.h5").steps["loss"].tolist() == held
    run("run.h5", resume=True)
    assert meshemu.open("run.h5").steps["loss"].tolist()[:3] == held


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.seed=1"], "training.seed = 1, the run began with 0"),
        (["training.optimizer.lr=0.1"], "training.optimizer.lr = 0.1, the run began with 0.01"),
        (["plan={data=2}"], r"plan = nothing, the run began with data|plan.data = 2, the run began with nothing"),
        (["training.schedule={name='linear'}"], "training.schedule.end_factor|training.schedule.* began with nothing"),
        (["timing.packet_bytes=64"], "timing.packet_bytes = 64, the run began with 4096"),
    ],
)
def test_another_configuration_is_refused_by_its_key(overrides: list[str], said: str, folder: Path) -> None:
    run("run.h5", "training.steps=1")
    before = Path("run.h5").read_bytes()
    with pytest.raises(InputError, match=said):
        run("run.h5", *overrides, resume=True)
    assert Path("run.h5").read_bytes() == before


def test_a_run_can_be_made_longer(folder: Path) -> None:
    """Without a schedule, or with one whose length is given; one that follows the number of steps is refused."""
    run("whole.h5", "training.evaluate_every=0")
    run("run.h5", "training.evaluate_every=0", "training.steps=3")
    run("run.h5", "training.evaluate_every=0", ranks=2, resume=True)
    assert meshemu.compare("whole.h5", "run.h5") is None
    assert meshemu.open("run.h5").n_steps_planned == 6
    cosine = "training.schedule={name='cosine'}"
    run("cosine.h5", cosine, "training.steps=3")
    with pytest.raises(InputError, match=r"training\.schedule\.T_max = 6, the run began with 3"):
        run("cosine.h5", cosine, resume=True)
    run("cosine.h5", "training.schedule={name='cosine', T_max=3}", "training.steps=4", resume=True)
    assert meshemu.open("cosine.h5").n_steps == 4


def test_a_run_that_is_only_timed_goes_on(folder: Path, before_step: Any) -> None:
    run("whole.h5", execute=False)
    before_step(4, cut)
    with pytest.raises(CutError):
        run("run.h5", execute=False)
    before_step(-1, cut)
    with pytest.raises(InputError, match="its steps were only timed: give --no-execute"):
        run("run.h5", resume=True)
    run("run.h5", execute=False, resume=True)
    assert meshemu.compare("whole.h5", "run.h5") is None


def test_checkpoints_without_their_results_are_not_thrown_away(folder: Path) -> None:
    run("run.h5", "training.steps=2")
    with pytest.raises(RecordError, match=r"it exists already \(use --overwrite, --resume or another path\)"):
        run("run.h5")
    Path("run.h5").unlink()
    for resume in (False, True):
        with pytest.raises(RecordError, match=r"run\.h5: (it is not there, but )?run\.checkpoints/step-000002\.pt is"):
            run("run.h5", resume=resume)
    run("run.h5", "output.overwrite=true", "training.steps=1")
    assert os.listdir("run.checkpoints") == ["step-000001.pt"]


def test_the_file_of_another_program_is_refused(folder: Path) -> None:
    meshemu.emulate(
        torch.nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4, 2)), torch.nn.functional.mse_loss,
        system=meshemu.System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns"), output="run.h5",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"^cannot resume run\.h5: the config in run\.h5: "):
        run("run.h5", resume=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_step(signum: int, folder: Path, before_step: Any) -> None:
    before_step(2, lambda: [os.kill(os.getpid(), signum) for _ in range(2)] and None)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(StoppedError) as stopped:
        run("run.h5", "checkpoint.every_steps=0")
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    said = f"stopped by {signal.Signals(signum).name} after 3 of 6 steps; the same command with --resume goes on"
    assert str(stopped.value).startswith(said) and stopped.value.exit_code == 75
    assert meshemu.open("run.h5").n_steps == 3 and os.listdir("run.checkpoints") == ["step-000003.pt"]
    before_step(-1, cut)
    if signum == signal.SIGTERM:
        run("run.h5", "checkpoint.every_steps=0", resume=True)
        run("whole.h5", "checkpoint.every_steps=0")
        assert meshemu.compare("whole.h5", "run.h5") is None


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(folder: Path) -> None:
    Path("run.checkpoints").write_text("in the way")
    with pytest.raises(RecordError, match=r"^run\.checkpoints: cannot be made: File exists"):
        run("run.h5", ranks=2)
    assert meshemu.open("run.h5").n_steps == 2


def test_bulky_records_keep_to_their_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("all.h5", "output.messages=true", "training.steps=1")
    stored = meshemu.open("all.h5")
    program, mesh = stored.program(), stored.mesh()
    hops = abs(mesh.row[program.src] - mesh.row[program.dst]) + abs(mesh.col[program.src] - mesh.col[program.dst])
    assert stored.column("/results/messages/hops").tolist() == [hops.tolist()]
    depart, arrival = (stored.column(f"/results/messages/{name}_ps")[0] for name in ("depart", "arrival"))
    start, end = stored.op_times()
    assert (depart >= start[program.send_op]).all() and (arrival > depart).all()
    assert (arrival <= end[program.recv_op]).all()
    assert capsys.readouterr().err == ""

    budget = 16 * program.n_ops + 10
    run("some.h5", "output.messages=true", "training.steps=1", f"output.record_budget='{budget} B'")
    said = capsys.readouterr().err
    some = meshemu.open("some.h5")
    assert some.recorded_steps == (0,) and len(some.timeline()) == 0
    assert len(some.column("/results/messages/hops")) == 0
    for table in ("timeline", "messages"):
        sentence = f"recorded: no {table}, their "
        assert f"meshemu: {sentence}" in said and any(note.startswith(sentence) for note in some.assumptions)


def test_an_emulation_goes_on_from_the_state_of_another(folder: Path) -> None:
    """With sliding formats, stochastic rounding, dropout and a schedule of a given length."""
    namespace: dict[str, Any] = {}
    exec(MINE, namespace)
    x, y, *_ = namespace["data"]()

    def emulate(model: Any, steps: int, state: Any = None) -> Any:
        return meshemu.emulate(
            model, lambda step: (x[8 * step : 8 * step + 8], y[8 * step : 8 * step + 8]), namespace["loss"],
            optimizer=partial(torch.optim.Adam, lr=0.01), schedule={"name": "cosine", "T_max": 5}, steps=steps,
            system=meshemu.System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns"), plan={"data": 4},
            formats={"weights": {"format": "cfloat8_1_4_3", "rounding": "stochastic"}, "gradients": "cfloat8_1_5_2"},
            state=state,
        )  # fmt: skip

    whole = emulate(namespace["model"](), 5)
    first = emulate(namespace["model"](), 3)
    torch.save(first.state_dict(), "state.pt")
    second = emulate(namespace["model"](), 2, torch.load("state.pt", weights_only=True))
    assert first.losses + second.losses == whole.losses
    assert second.learning_rates == whole.learning_rates[3:]
    ours, theirs = second.state_dict(), whole.state_dict()
    assert ours["step"] == 5 and ours["formats"] == theirs["formats"] != {}
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    for state, fault in (({"model": {}}, "no state of the optimizer nor of the schedule"), ({"step": -1}, "step = -1")):
        with pytest.raises(InputError, match=fault):
            emulate(namespace["model"](), 1, state)
