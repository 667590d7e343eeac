"""Refuse a configured step that cannot be before anything heavy is loaded: model and data are built without values."""

from typing import Any

from meshemu.config import Config
from meshemu.emulator.configured_system import system_of
from meshemu.emulator.least_memory import check_least
from meshemu.emulator.memory_policy import MemoryOptions
from meshemu.errors import InputError
from meshemu.execute.optimizer import least_update
from meshemu.mesh import flatten
from meshemu.workload import data, models
from meshemu.workload.dtypes import DTYPES, cast
from meshemu.workload.losses import load_loss
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import PIPELINE
from meshemu.workload.samples import batch_size_of, first_samples, with_micro_batches
from meshemu.workload.step_maths import maths_of
from meshemu.workload.without_values import WithoutValues

__all__ = ["check_early"]


def check_early(settings: Config) -> None:
    """Raise InputError (PlanError for what cannot fit) as the run would, before it loads and builds what takes long.

    System and plan are looked at for every configuration; memory for a built-in model on built-in data. Functions of
    the user's need not be able to do without values, and the rules of number formats take long to load. What goes wrong
    here for want of values is left to the run.
    """
    system = system_of(settings)
    mesh = flatten(system)
    plan = None
    if settings.plan != "auto":
        table: Any = settings.plan
        plan = make_plan(table if isinstance(table, str) else table.model_dump(exclude_none=True), mesh)
    section, training = settings.model, settings.training
    if section.build is not None or settings.data.build is not None or settings.formats:
        return
    try:
        with WithoutValues():
            model = models.build_model(section.name or "", section.args, seed=training.seed)
            dataset = data.load_dataset(settings.data.name or "", settings.data.args)
            batch = data.empty_batch(dataset, settings.data.batch_size)
        dtype = DTYPES[section.dtype]
        model, loss = model.to(dtype).train(), load_loss(training.loss, model)
        update = least_update(training.optimizer.model_dump())
        updates = {name: update for name, parameter in model.named_parameters() if parameter.requires_grad}
        micro_batches = training.micro_batches
        if plan is not None and plan.has(PIPELINE):
            plan = with_micro_batches(plan, batch, micro_batches)
            micro_batches = plan.micro_batches or 1
        given = maths_of(
            model, cast(first_samples(batch, micro_batches), dtype), lambda call, part: loss(call(part[0]), part[1]),
            autocast_dtype=None if section.autocast is None else DTYPES[section.autocast],
        )  # fmt: skip
    except InputError as error:
        if error.__cause__ is None:  # said by a check of arguments, not by torch about tensors without values
            raise
        return
    except Exception:
        return
    check_least(
        *given, updates, plan, int(mesh.alive.sum()), system, MemoryOptions(settings.memory.when_full),
        settings.formats, batch_size_of(batch) if micro_batches == 1 else None,
    )  # fmt: skip
