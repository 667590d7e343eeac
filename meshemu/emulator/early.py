"""Refuse a configured step that cannot fit before anything heavy is loaded: model and data are built without values."""

from typing import Any

from meshemu.config import Config
from meshemu.emulator.configured_system import system_of
from meshemu.emulator.least_memory import check_least
from meshemu.emulator.memory_policy import MemoryOptions
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
    """Raise PlanError as `prepare` would, for a built-in model on built-in data.

    Whatever else is wrong with the configuration is left to the run, which finds it in its own order. So are functions
    of the user's, which need not be able to do without values, and number formats, whose rules take long to load.
    """
    section, training = settings.model, settings.training
    if section.build is not None or settings.data.build is not None or settings.formats:
        return
    try:
        system = system_of(settings)
        mesh = flatten(system)
        with WithoutValues():
            model = models.build_model(section.name or "", section.args, seed=training.seed)
            dataset = data.load_dataset(settings.data.name or "", settings.data.args)
            batch = data.empty_batch(dataset, settings.data.batch_size)
        dtype = DTYPES[section.dtype]
        model, loss = model.to(dtype).train(), load_loss(training.loss, model)
        update = least_update(training.optimizer.model_dump())
        updates = {name: update for name, parameter in model.named_parameters() if parameter.requires_grad}
        micro_batches, plan = training.micro_batches, None
        if settings.plan != "auto":
            table: Any = settings.plan
            plan = make_plan(table if isinstance(table, str) else table.model_dump(exclude_none=True), mesh)
        if plan is not None and plan.has(PIPELINE):
            plan = with_micro_batches(plan, batch, micro_batches)
            micro_batches = plan.micro_batches or 1
        given = maths_of(
            model, cast(first_samples(batch, micro_batches), dtype), lambda call, part: loss(call(part[0]), part[1]),
            autocast_dtype=None if section.autocast is None else DTYPES[section.autocast],
        )  # fmt: skip
    except Exception:  # the run says what it is
        return
    check_least(
        *given, updates, plan, int(mesh.alive.sum()), system, MemoryOptions(settings.memory.when_full),
        settings.formats, batch_size_of(batch) if micro_batches == 1 else None,
    )  # fmt: skip
