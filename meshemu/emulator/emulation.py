"""`meshemu.emulate`: a user's own module, batch and loss on an emulated machine, from Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshemu.config import toml_text
from meshemu.emulator.batches import batch_function, checked_batch, loss_of
from meshemu.emulator.memory_policy import memory_options
from meshemu.emulator.prepare import FirstStep, PreparedStep, prepare
from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.emulator.training_loop import History, OfTraining, train
from meshemu.errors import InputError
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.optimizer import Optimizer, bind_optimizer
from meshemu.execute.precision import checked_autocast
from meshemu.execute.schedule import Scheduler, bind_schedule
from meshemu.execute.state import load_state, state_of
from meshemu.execute.training import DType, Module, Tensor, Trainer
from meshemu.hardware import Router, System
from meshemu.hardware.format_roles import formats_of
from meshemu.mesh.interfaces import checked_edges
from meshemu.runtime.mpi import as_comm

__all__ = ["EmulationResult", "emulate"]


@dataclass(frozen=True, eq=False)
class EmulationResult(OfTraining):
    """What the steps left behind, the timed step, and the file, if one was asked for. The module itself holds the
    trained parameters. next_step: what the step after these is called; running_maxima: those that sliding biases of
    number formats follow.
    """

    history: History
    prepared: PreparedStep
    path: Path | None
    model: Module
    optimizer: Optimizer | None
    schedule: Scheduler | None
    next_step: int
    running_maxima: Mapping[str, float]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last step by parameter name, clipped if they were."""
        return self.history.gradients

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state dicts of "model", "optimizer" and "schedule", as far as there are, with the number of the
        next "step" and, with sliding biases, the running maxima of "formats"; for torch.save and for `emulate`.
        """
        formats = {"formats": dict(self.running_maxima)} if self.running_maxima else {}
        return state_of(self.model, self.optimizer, self.schedule) | formats | {"step": self.next_step}


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
    memory: Mapping[str, Any] | None = None,
    ingest: Sequence[str] = (),
    execute: bool = True,
    options: TimingOptions | None = None,
    router: Router | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    state: Mapping[str, Any] | None = None,
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
    configuration. memory: what to do about a step that does not fit, as in [memory]. ingest: edges of the mesh, such as
    ("west", "east"), over which batches come in during the step before; () where they are there already. execute: False
    only times. router: routers with finite buffers (docs/back-pressure.md) in place of unbounded FIFOs. output: a
    results file. state: what `state_dict` of an earlier result gave: so many steps more, as if there had been no end
    between (batch gets the numbers of the steps that follow, a schedule by name needs its length). comm: an mpi4py
    communicator (default: one rank).

    Parameters and buffers of `model` are updated in place. Raises InputError before the first step for anything that
    does not fit.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1")
    if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
        raise InputError(f"clip_norm = {clip_norm!r}: must be a number above 0")
    chosen = timing_options(options, router)
    roles = formats_of(formats)
    edges = checked_edges(ingest)
    room = memory_options(memory, edges)
    ranks = as_comm(comm)
    make_deterministic()
    batch_of = batch_function(batch)
    update = None if optimizer is None else bind_optimizer(model, optimizer)
    rates = None if schedule is None else bind_schedule(update, schedule, steps)
    first_step = 0 if state is None else _go_on(model, update, rates, state)
    first_batch = batch_of(first_step)
    prepared = prepare(
        model,
        first_batch,
        lambda call, item: loss_of(call, item, loss_fn),
        system=system,
        plan=plan,
        optimizer=update,
        options=chosen,
        comm=ranks,
        micro_batches=micro_batches,
        strict=strict,
        formats=roles,
        memory=room,
        ingest_edges=edges,
        clip_norm=clip_norm,
        autocast_dtype=checked_autocast(model, autocast),
        first=FirstStep(lambda: first_batch, seed, first_step) if execute else None,
    )
    if execute:
        checked_batch(first_batch, prepared.spmd.index_limits, first_step)
    recorder = None
    if output is not None:
        training = {"steps": steps, "seed": seed} | ({} if clip_norm is None else {"clip_norm": clip_norm})
        layout = Layout(
            config_text=toml_text({"plan": prepared.plan.describe(), "training": training, **chosen.tables()}),
            n_steps=steps,
            remarks=prepared.remarks,
            loss_names=prepared.loss_names,
            n_parameter_groups=1 if update is None else len(update.param_groups),
            order=chosen.routing,
        )
        recorder = Recorder.open(output, prepared.timed, ranks, layout, overwrite=overwrite)
    executor = prepared.executor(ranks) if execute else None
    if executor is not None and state is not None:
        executor.maxima.load_state_dict(state.get("formats", {}))
    trainer = None if executor is None else Trainer(model, update, executor, seed, rates, roles)
    try:
        history = train(
            trainer,
            range(first_step, first_step + steps),
            lambda step: checked_batch(batch_of(step), prepared.spmd.index_limits, step),
            history=History(),
            recorder=recorder,
            timed=lambda: prepared.last_timed,
        )
    except BaseException:
        if recorder is not None:
            recorder.abandon()
        raise
    if recorder is not None:
        recorder.finish({})
    path = None if output is None else Path(output)
    maxima = {} if executor is None else executor.maxima.state_dict()
    return EmulationResult(history, prepared, path, model, update, rates, first_step + steps, maxima)


def _go_on(model: Module, optimizer: Optimizer | None, schedule: Scheduler | None, state: Mapping[str, Any]) -> int:
    """Load an earlier state; the number of the step that follows it.

    Raises:
        InputError: it does not fit.
    """
    step = state.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InputError(f"state: step = {step!r} should be a whole number of at least 0")
    load_state(model, optimizer, schedule, state, "state")
    return step
