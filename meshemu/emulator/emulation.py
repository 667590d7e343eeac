"""`meshemu.emulate`: a user's own module, batch and loss on an emulated machine, from Python."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshemu.config import toml_text
from meshemu.emulator.batches import batch_function, loss_of
from meshemu.emulator.prepare import FirstStep, PreparedStep, prepare
from meshemu.emulator.recording import Recorder
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.emulator.training_loop import History, OfTraining, train
from meshemu.errors import InputError
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.optimizer import Optimizer, bind_optimizer
from meshemu.execute.precision import checked_autocast
from meshemu.execute.schedule import Scheduler, bind_schedule
from meshemu.execute.state import state_of
from meshemu.execute.training import DType, Module, Tensor, Trainer
from meshemu.hardware import Router, System
from meshemu.hardware.format_roles import formats_of
from meshemu.runtime.mpi import as_comm

__all__ = ["EmulationResult", "emulate"]


@dataclass(frozen=True, eq=False)
class EmulationResult(OfTraining):
    """What the steps left behind, the timed step, and the file, if one was asked for. The module itself holds the
    trained parameters.
    """

    history: History
    prepared: PreparedStep
    path: Path | None
    model: Module
    optimizer: Optimizer | None
    schedule: Scheduler | None

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last step by parameter name, clipped if they were."""
        return self.history.gradients

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state dicts of "model", "optimizer" and "schedule", as far as there are; for torch.save."""
        return state_of(self.model, self.optimizer, self.schedule)


def emulate(
    model: Module,
    batch: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    schedule: str | Mapping[str, Any] | Scheduler | Callable[[Optimizer], Scheduler] | None = None,
    clip_norm: float | None = None,
    autocast: DType | None = None,
    system: System,
    plan: str | Mapping[str, Any] = "data",
    steps: int = 1,
    seed: int = 0,
    micro_batches: int = 1,
    strict: bool = False,
    formats: Mapping[str, Any] | None = None,
    execute: bool = True,
    options: TimingOptions | None = None,
    router: Router | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    comm: Any = None,
) -> EmulationResult:
    """Train `model` for some steps on an emulated `system` and time the step.

    batch: the global batch, or a function step -> batch. A batch is (inputs, targets), where inputs are one tensor, a
    tuple of positional or a dict of keyword arguments, and the loss is loss_fn(model(inputs), targets); or a dict of
    keyword arguments, where it is loss_fn(outputs, batch), or without loss_fn the model's own `loss`. A loss is a
    scalar tensor, or a dict or tuple of them that are summed, or a pair (loss, dict of what is only to be recorded).
    optimizer: a torch.optim optimizer over the model's parameters, a function of parameters that makes one, or None to
    leave the parameters as they are. schedule: of its learning rate, a torch.optim.lr_scheduler, a function of the
    optimizer that makes one, or a name or table as in [training.schedule]. clip_norm: gradients are scaled so that
    their norm over all parameters is at most this. autocast: forward and loss run under torch.autocast with this dtype.
    plan: as in the [plan] key of a configuration. micro_batches: a step goes through its batch in so many parts, and
    its gradients are means over them. strict: an operator without a sharding rule for the plan is refused, where
    otherwise its inputs are gathered. formats: number formats of values by role, as in the [formats] table of a
    configuration. execute: False only times. router: routers with finite buffers
    (docs/back-pressure.md) in place of unbounded FIFOs. output: a results file. comm: an mpi4py communicator
    (default: one rank).

    Parameters and buffers of `model` are updated in place. Raises InputError before the first step for anything that
    does not fit.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1")
    if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
        raise InputError(f"clip_norm = {clip_norm!r}: must be a number above 0")
    chosen = timing_options(options, router)
    roles = formats_of(formats)
    ranks = as_comm(comm)
    make_deterministic()
    batch_of = batch_function(batch)
    update = None if optimizer is None else bind_optimizer(model, optimizer)
    rates = None if schedule is None else bind_schedule(update, schedule, steps)
    prepared = prepare(
        model,
        batch_of(0),
        lambda call, item: loss_of(call, item, loss_fn),
        system=system,
        plan=plan,
        optimizer=update,
        options=chosen,
        comm=ranks,
        micro_batches=micro_batches,
        strict=strict,
        formats=roles,
        clip_norm=clip_norm,
        autocast_dtype=checked_autocast(model, autocast),
        first=FirstStep(lambda: batch_of(0), seed) if execute else None,
    )
    recorder = None
    if output is not None:
        training = {"steps": steps, "seed": seed} | ({} if clip_norm is None else {"clip_norm": clip_norm})
        text = toml_text({"plan": prepared.plan.describe(), "training": training, **chosen.tables()})
        recorder = Recorder.open(
            output, prepared.timed, ranks, config_text=text, n_steps=steps, overwrite=overwrite,
            remarks=prepared.remarks, loss_names=prepared.loss_names,
            n_parameter_groups=1 if update is None else len(update.param_groups),
        )
    trainer = Trainer(model, update, prepared.executor(ranks), seed, rates, roles) if execute else None
    try:
        history = train(
            trainer, steps, batch_of, recorder=recorder, evaluate=lambda _step: None, progress=lambda _l, _a: None,
            timed=lambda: prepared.last_timed,
        )  # fmt: skip
    except BaseException:
        if recorder is not None:
            recorder.abandon()
        raise
    if recorder is not None:
        recorder.finish({})
    return EmulationResult(history, prepared, None if output is None else Path(output), model, update, rates)
