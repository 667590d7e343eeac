"""Learning-rate schedules of torch.optim.lr_scheduler: made from a configuration, tried out before the run."""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import lr_scheduler

from meshemu.config import SCHEDULE_NAMES
from meshemu.errors import InputError
from meshemu.execute.optimizer import Optimizer
from meshemu.execute.options import REFUSALS, checked, construct, keywords

__all__ = ["Scheduler", "advance", "bind_schedule", "learning_rates", "length_of", "make_schedule"]

Scheduler = lr_scheduler.LRScheduler

SECTION = "training.schedule"


@dataclass(frozen=True)
class _Kind:
    """scheduler: the class. length: its keyword for the steps that it lasts, which is what warm-up leaves of the run if
    it is not given. defaults: where ours differ from torch's. hidden: keywords that make no sense here. own_start: it
    sets the first learning rate itself, so there is nothing to warm up to.
    """

    scheduler: Callable[..., Scheduler]
    length: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hidden: Collection[str] = ()
    own_start: bool = False


_KINDS: Mapping[str, _Kind] = MappingProxyType({
    "constant": _Kind(lr_scheduler.ConstantLR, defaults={"factor": 1.0}, hidden=("factor", "total_iters")),
    "linear": _Kind(lr_scheduler.LinearLR, "total_iters", {"start_factor": 1.0, "end_factor": 0.0}),
    "cosine": _Kind(lr_scheduler.CosineAnnealingLR, "T_max"),
    "step": _Kind(lr_scheduler.StepLR),
    "multi_step": _Kind(lr_scheduler.MultiStepLR),
    "exponential": _Kind(lr_scheduler.ExponentialLR),
    "polynomial": _Kind(lr_scheduler.PolynomialLR, "total_iters"),
    "cosine_restarts": _Kind(lr_scheduler.CosineAnnealingWarmRestarts),
    "one_cycle": _Kind(lr_scheduler.OneCycleLR, "total_steps", hidden=("epochs", "steps_per_epoch"), own_start=True),
    "cyclic": _Kind(lr_scheduler.CyclicLR, hidden=("scale_fn", "scale_mode"), own_start=True),
})  # fmt: skip
if set(_KINDS) != set(SCHEDULE_NAMES):
    raise AssertionError(f"schedules of the configuration and of torch differ: {set(_KINDS) ^ set(SCHEDULE_NAMES)}")


def make_schedule(optimizer: Optimizer, options: Mapping[str, Any], n_steps: int) -> Scheduler:
    """The schedule that a [training.schedule] table describes, for a run of `n_steps`.

    options: name (one of config.SCHEDULE_NAMES); warmup_steps (default 0), over which the rate rises by equal amounts
    and without a step at zero; all other keys are keyword arguments of the class. Lengths that are not given are that
    of the run.

    Raises:
        InputError: an option is unknown, torch refuses it, or some step would have no learning rate of at least 0.
    """
    arguments = dict(options)
    name = arguments.pop("name", None)
    if name not in _KINDS:
        raise InputError(f"{SECTION}.name = {name!r} is not one of {', '.join(_KINDS)}")
    warmup = arguments.pop("warmup_steps", 0)
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise InputError(f"{SECTION}.warmup_steps = {warmup!r}: should be a whole number of at least 0")
    kind = _KINDS[name]
    if warmup and kind.own_start:
        raise InputError(f"{SECTION}.warmup_steps = {warmup}: {name} has a warm-up of its own")
    arguments = _filled_in(kind.length, arguments, n_steps - warmup)
    valid = keywords(kind.scheduler, ("last_epoch", *kind.hidden))
    arguments = checked(SECTION, valid, arguments)
    required = [key for key, parameter in valid.items() if parameter.default is parameter.empty or key == kind.length]

    def make(bound: Optimizer, **given: Any) -> Scheduler:
        main = kind.scheduler(bound, **{**kind.defaults, **given})
        return _after_warmup(bound, main, warmup) if warmup else main

    scheduler = construct(SECTION, partial(make, _shadow(optimizer)), arguments, required)
    rates = learning_rates(scheduler, n_steps)
    for step, rate in enumerate(rates):
        if not all(isfinite(lr) and lr >= 0 for lr in rate):
            raise InputError(f"{SECTION}: the learning rate of step {step} would be {', '.join(map(str, rate))}")
    return make(optimizer, **arguments)


def length_of(options: Mapping[str, Any], n_steps: int) -> dict[str, Any]:
    """The option of a [training.schedule] table that says how long it lasts, as it is in a run of `n_steps`; {} if
    there is none.
    """
    kind = _KINDS[options["name"]]
    if kind.length is None:
        return {}
    return {kind.length: _filled_in(kind.length, options, n_steps - options.get("warmup_steps", 0))[kind.length]}


def bind_schedule(
    optimizer: Optimizer | None, schedule: str | Mapping[str, Any] | Scheduler | Callable[..., Scheduler], n_steps: int
) -> Scheduler:
    """A schedule of `optimizer`: ready made, made by a function of the optimizer, by name, or by a table of options.

    Raises:
        InputError: there is no optimizer, the schedule belongs to another one, or as `make_schedule`.
    """
    if optimizer is None:
        raise InputError("schedule: there is no optimizer whose learning rate it could change")
    if isinstance(schedule, str | Mapping):
        return make_schedule(optimizer, {"name": schedule} if isinstance(schedule, str) else schedule, n_steps)
    if not isinstance(schedule, Scheduler):
        try:
            schedule = schedule(optimizer)
        except REFUSALS as error:
            raise InputError(f"schedule: {error}") from error
    if not isinstance(schedule, Scheduler):
        raise InputError(f"schedule: {type(schedule).__name__} is no torch.optim.lr_scheduler.LRScheduler")
    if schedule.optimizer is not optimizer:
        raise InputError("schedule: it belongs to another optimizer")
    return schedule


def advance(scheduler: Scheduler, loss: float) -> None:
    """Set the learning rates of the next step; the loss counts only for schedules that wait for a plateau."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def learning_rates(scheduler: Scheduler, n_steps: int) -> list[list[float]]:
    """Learning rates of `n_steps` steps, one per parameter group; uses the scheduler and its optimizer up.

    Raises:
        InputError: the schedule ends before the run, or its arithmetic fails.
    """
    rates = []
    for step in range(n_steps):
        rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        if step == n_steps - 1:
            break
        try:
            scheduler.optimizer.step()
            scheduler.step()
        except REFUSALS as error:
            raise InputError(f"{SECTION}: there is no learning rate for step {step + 1}: {error}") from error
    return rates


def _filled_in(length: str | None, options: Mapping[str, Any], n_steps: int) -> dict[str, Any]:
    """`options` with the length of the run where they leave it open."""
    return {**options, **({} if length is None or length in options else {length: max(n_steps, 1)})}


def _after_warmup(optimizer: Optimizer, main: Scheduler, n_steps: int) -> Scheduler:
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (n_steps + 1), end_factor=1.0, total_iters=n_steps)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], [n_steps])


def _shadow(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same options for groups of one parameter each, to try schedules out on."""
    kind: Callable[..., Optimizer] = type(optimizer)
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return kind([{**group, "params": [torch.nn.Parameter(torch.zeros(1))]} for group in copy.deepcopy(options)])
