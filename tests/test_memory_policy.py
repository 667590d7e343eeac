"""What happens to a step that does not fit: refused with the arithmetic, made to fit, or timed all the same."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_overlap_prefetch import SPEC
from torch import nn
from torch.nn import functional as F

from meshemu.config import parse
from meshemu.cost.memory_use import MemoryUse
from meshemu.emulator.batches import loss_of
from meshemu.emulator.memory_policy import fits, memory_options, overflow
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.retiming import retime
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError, PlanError
from meshemu.execute.optimizer import bind_optimizer
from meshemu.execute.training import run_step
from meshemu.hardware import System
from meshemu.hardware.format_roles import formats_of
from meshemu.mesh import flatten
from meshemu.record.reader import open_run
from meshemu.record.step_record import TrainingRecord
from meshemu.runtime.local import SingleComm

NODES = 354


def model_of(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())])


def prepared(
    memory_bytes: int, when_full: str = "refuse", *, plan: Any = None, n: int = 256, **options: Any
) -> tuple[PreparedStep, nn.Module, Any]:
    """A step of four linear layers with Adam on dies of about so much memory."""
    model, batch = options.pop("model", None) or model_of(), (torch.ones(n, 16), torch.ones(n, 16))
    step = prepare(
        model, batch, lambda call, item: loss_of(call, item, F.mse_loss),
        system=System.preset("dojo-tile").override({"node.sram": memory_bytes // NODES}), plan=plan or {"data": 2},
        options=TimingOptions(), comm=SingleComm(), optimizer=bind_optimizer(model, torch.optim.Adam),
        memory=memory_options({"when_full": when_full}), **options,
    )  # fmt: skip
    return step, model, batch


@cache
def most_bytes() -> int:
    step, _, _ = prepared(10**9)
    assert step.timed.memory is not None
    assert step.timed.memory.most_bytes == step.timed.peak_memory_bytes.max()
    return step.timed.memory.most_bytes


def test_refused_with_the_arithmetic_and_what_helps() -> None:
    needed = most_bytes()
    with pytest.raises(PlanError) as refusal:
        prepared(int(0.8 * needed))
    text = str(refusal.value)
    assert text.startswith("memory: tile 0, die (0,0) needs ")
    parts = [float(size) * {"": 1, "k": 1e3}[prefix] for size, prefix in re.findall(r"(\d+(?:\.\d+)?) (k?)B", text)]
    assert parts[0] == pytest.approx(needed, rel=1e-3)
    assert sum(parts[2:]) == pytest.approx(needed, rel=1e-2)
    assert "weights 4.352 kB" in text  # 4 x (16 x 16 + 16) numbers of 4 bytes
    assert "memory.when_full = recompute" in text
    found = re.search(r"a batch of (\d+) samples or less", text)
    assert found
    prepared(int(0.8 * needed), n=int(found[1]))
    prepared(int(0.8 * needed), "recompute")


def test_recomputing_fits_and_keeps_the_bits() -> None:
    needed = most_bytes()
    plain, model, batch = prepared(10**9)
    again, _, _ = prepared(int(0.8 * needed), "recompute")
    assert again.timed.memory is not None
    assert again.timed.memory.most_bytes <= int(0.8 * needed)
    assert again.timed.timing.end_ps > plain.timed.timing.end_ps
    assert again.timed.summary.flops > plain.timed.summary.flops
    (remark,) = [text for text in again.remarks if text.startswith("memory:")]
    assert "made again" in remark or "carried out again" in remark
    results = [run_step(step.executor(SingleComm()), model, batch, 0, 0) for step in (plain, again)]
    assert torch.equal(results[0].loss, results[1].loss)
    assert all(torch.equal(results[0].gradients[k], results[1].gradients[k]) for k in results[0].gradients)


def test_recomputing_that_does_not_suffice_is_refused() -> None:
    with pytest.raises(PlanError, match=r"needs .*, although .* carried out again"):
        prepared(18_000, "recompute")


def test_recomputing_goes_with_formats() -> None:
    formats = formats_of({"activations": {"format": "bf16", "rounding": "stochastic"}})
    plain, model, batch = prepared(10**9, formats=formats)
    again, _, _ = prepared(int(0.8 * plain.timed.memory.most_bytes), "recompute", formats=formats)
    assert again.memory_remark
    results = [run_step(step.executor(SingleComm()), model, batch, 0, 0) for step in (plain, again)]
    assert all(torch.equal(results[0].gradients[k], results[1].gradients[k]) for k in results[0].gradients)


def test_it_fits_to_the_byte() -> None:
    """The second of two devices needs 12 bytes."""
    peak = np.array([[5, 7], [0, 0], [0, 0], [4, 5], [0, 0], [0, 0]], np.int64)
    use = MemoryUse(peak, peak[:, 1][None], ("beginning",))
    for sram_bytes, there in ((12, True), (11, False)):
        device = replace(SPEC, sram_bytes=sram_bytes)
        system = System.grid(rows=1, cols=2, bandwidth="1 GB/s", latency="1 us", device=device)
        assert fits(use, system) is there
        words = overflow(use, flatten(system), system)
        assert words == f"device (0,1) needs 12 B of {sram_bytes} B: weights 7 B + activations 5 B"
    assert fits(use, System.grid(rows=1, cols=2, bandwidth="1 GB/s", latency="1 us"))


def test_allowed_is_said() -> None:
    step, _, _ = prepared(20_000, "allow")
    (remark,) = [text for text in step.remarks if text.startswith("memory:")]
    assert "timed as if there were room" in remark
    assert step.timed.timing.end_ps == prepared(10**9)[0].timed.timing.end_ps


def test_parameters_alone_are_refused_before_the_model_is_captured() -> None:
    """64 million parameters: weights, gradients and two states of Adam, 16 bytes each, in 442.5 MB."""
    def capture(*_: Any) -> Any:
        raise AssertionError("captured")

    with torch.device("meta"):
        large = nn.Linear(8000, 8000)
    words = r"a device needs at least 1.024 GB of 442.5 MB .*weights 256 MB \+ gradients 256 MB \+ optimizer 512.1 MB"
    with pytest.raises(PlanError, match=words + ".*at least 3 devices"):
        prepared(NODES * 1_250_000, model=large, capture=capture)
    with pytest.raises(InputError, match="on device meta"):  # over 4 devices it may fit, so that it would be captured
        prepared(NODES * 1_250_000, model=large, plan={"shard": 4})


def test_a_system_without_memory_refuses_nothing() -> None:
    model, batch = model_of(), (torch.ones(4, 16), torch.ones(4, 16))
    grid = System.grid(rows=1, cols=2, bandwidth="1 GB/s", latency="1 us")
    prepare(
        model, batch, lambda call, item: loss_of(call, item, F.mse_loss), system=grid, plan="data",
        options=TimingOptions(), comm=SingleComm(),
    )  # fmt: skip


def test_keys() -> None:
    for table, words in (({"when_ful": "allow"}, "unknown key 'when_ful'"), ({"when_full": "x"}, "refuse, recompute")):
        with pytest.raises(InputError, match=words):
            memory_options(table)
    text = (
        '[model]\nname = "gpt"\n[data]\nname = "tokens"\nbatch_size = 2\n[training]\nsteps = 1\n'
        'optimizer = { name = "sgd", lr = 0.1 }\n[memory]\nwhen_full = "%s"\n'
    )
    assert parse('plan = "data"\n' + text % "recompute", origin="f", directory=Path()).memory.when_full == "recompute"
    with pytest.raises(InputError, match=r"memory\.when_full"):
        parse('plan = "data"\n' + text % "spil", origin="f", directory=Path())


def test_recorded_and_kept_when_timed_again(tmp_path: Any) -> None:
    step, _, _ = prepared(20_000, "allow")
    use = step.timed.memory
    assert use is not None
    path, again = tmp_path / "a.h5", tmp_path / "b.h5"
    layout = Layout(config_text="", n_steps=1, remarks=step.remarks)
    recorder = Recorder.open(path, step.timed, SingleComm(), layout, overwrite=False)
    recorder.step(0, TrainingRecord(), wall_s=0.0)
    recorder.finish({})
    retime(path, ["system.die_edge.latency=200 ns"], again)
    for file in (path, again):
        run = open_run(file)
        stored = run.memory_use()
        assert stored is not None
        assert np.array_equal(stored.peak_bytes, use.peak_bytes)
        assert np.array_equal(stored.live_bytes, use.live_bytes)
        assert stored.points == use.points
        assert np.array_equal(run.column("/results/devices/peak_memory_bytes"), use.total_bytes)
        assert any(text.startswith("memory:") for text in run.assumptions)
