"""`meshemu.emulate`: a user's own module, batch and loss on an emulated machine, from Python."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meshemu.config import toml_text
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.recording import Recorder
from meshemu.emulator.timed_step import TimingOptions
from meshemu.emulator.training_loop import train
from meshemu.errors import InputError
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.optimizer import Optimizer, bind_optimizer
from meshemu.execute.training import Module, Tensor, Trainer
from meshemu.hardware import System
from meshemu.network import Timing
from meshemu.program.ir import Program
from meshemu.runtime.mpi import as_comm

__all__ = ["EmulationResult", "emulate"]


@dataclass(frozen=True, eq=False)
class EmulationResult:
    """losses of the steps; gradients of the last one by parameter name; the timed step; the file, if one was asked
    for. The module itself holds the trained parameters.
    """

    losses: list[float]
    gradients: dict[str, Tensor]
    prepared: PreparedStep
    path: Path | None

    @property
    def timing(self) -> Timing:
        """Virtual time of one step: ops, messages, links."""
        return self.prepared.timed.timing

    @property
    def program(self) -> Program:
        """What every device computes and sends in one step."""
        return self.prepared.timed.program

    @property
    def time_ps(self) -> int:
        """Virtual time of one step."""
        return self.prepared.timed.timing.end_ps


def emulate(
    model: Module,
    batch: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    system: System,
    plan: str | Mapping[str, Any] = "data",
    steps: int = 1,
    seed: int = 0,
    execute: bool = True,
    options: TimingOptions | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    comm: Any = None,
) -> EmulationResult:
    """Train `model` for some steps on an emulated `system` and time the step.

    batch: the global batch, or a function step -> batch. A batch is (inputs, targets), where inputs are one tensor, a
    tuple of positional or a dict of keyword arguments, and the loss is loss_fn(model(inputs), targets); or a dict of
    keyword arguments, where it is loss_fn(outputs, batch), or without loss_fn the model's own `loss`.
    optimizer: a torch.optim optimizer over the model's parameters, a function of parameters that makes one, or None to
    leave the parameters as they are. plan: as in the [plan] key of a configuration. execute: False only times.
    output: a results file. comm: an mpi4py communicator (default: one rank).

    Parameters and buffers of `model` are updated in place. Raises InputError before the first step for anything that
    does not fit.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1")
    ranks = as_comm(comm)
    make_deterministic()
    batch_of = batch if callable(batch) else lambda _step: batch
    update = None if optimizer is None else bind_optimizer(model, optimizer)
    prepared = prepare(
        model,
        batch_of(0),
        lambda call, item: _loss(call, item, loss_fn),
        system=system,
        plan=plan,
        optimizer=update,
        options=options or TimingOptions(),
        comm=ranks,
    )
    recorder = None
    if output is not None:
        training = {"steps": steps, "seed": seed}
        timing = asdict(options or TimingOptions())
        text = toml_text({"plan": prepared.plan.describe(), "training": training, "timing": timing})
        recorder = Recorder.open(output, prepared.timed, ranks, config_text=text, n_steps=steps, overwrite=overwrite)
    trainer = Trainer(model, update, prepared.executor(ranks), seed) if execute else None
    try:
        history = train(
            trainer, steps, batch_of, recorder=recorder, evaluate=lambda _step: None, progress=lambda _l, _a: None
        )
    except BaseException:
        if recorder is not None:
            recorder.abandon()
        raise
    if recorder is not None:
        recorder.finish({})
    return EmulationResult(
        history.losses, history.gradients, prepared, None if output is None else Path(output)
    )


def _loss(call: Callable[..., Any], batch: Any, loss_fn: Callable[..., Tensor] | None) -> Tensor:
    if isinstance(batch, Mapping):
        outputs = call(**batch)
        return loss_fn(outputs, batch) if loss_fn is not None else outputs["loss"]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError("batch must be (inputs, targets) or a dict of keyword arguments of the model")
    inputs, targets = batch
    if isinstance(inputs, Mapping):
        outputs = call(**inputs)
    elif isinstance(inputs, tuple | list):
        outputs = call(*inputs)
    else:
        outputs = call(inputs)
    if loss_fn is None:
        raise InputError("loss_fn is needed for a batch of (inputs, targets)")
    return loss_fn(outputs, targets)
