"""From a module to a timed step: capture, partition, choose schedules, build the Program, time it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from meshemu.comm import Comm
from meshemu.emulator.auto_plan import choose_plan
from meshemu.emulator.build_step import BuiltStep, StepOptions, build_step
from meshemu.emulator.prepared_step import OfPreparedStep, PreparedStep
from meshemu.emulator.recaptured import PreparedSteps, Recaptured
from meshemu.emulator.timed_step import TimingOptions, time_step
from meshemu.errors import DataDependentError
from meshemu.execute.number_formats import check_formats, stored_updates
from meshemu.execute.optimizer import Optimizer, updates_of
from meshemu.execute.training import DType, Module, step_inputs
from meshemu.hardware import System
from meshemu.hardware.format_roles import NONE, Formats
from meshemu.mesh import flatten, regions
from meshemu.workload.candidates import candidates
from meshemu.workload.capture import capture_maths
from meshemu.workload.graph import Graph
from meshemu.workload.pipeline_candidates import pipeline_candidates
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import PIPELINE, Plan
from meshemu.workload.samples import first_samples, with_micro_batches
from meshemu.workload.step_maths import StepFunction, checked_maths

__all__ = ["FirstStep", "OfPreparedStep", "PreparedStep", "prepare"]


@dataclass(frozen=True, eq=False)
class FirstStep:
    """The values of the first step that will be run: its batch, the seed of random numbers, its number."""

    batch: Callable[[], Any]
    seed: int
    step: int = 0


def prepare(
    model: Module,
    batch: Any,
    step: StepFunction,
    *,
    system: System,
    plan: str | Mapping[str, Any],
    options: TimingOptions,
    comm: Comm,
    optimizer: Optimizer | None = None,
    gradients: bool = True,
    clip_norm: float | None = None,
    autocast_dtype: DType | None = None,
    micro_batches: int = 1,
    strict: bool = False,
    first: FirstStep | None = None,
    formats: Formats = NONE,
) -> PreparedStep:
    """Capture and partition one step of `model` on a global `batch`, and time it on `system`.

    plan: as for `make_plan`, or "auto". gradients: False for a step of evaluation, which passes through a pipeline as
    one micro-batch. clip_norm, autocast_dtype, micro_batches, strict: as in `partition` and `capture`. first: the
    values of the first step, None where no maths is run; a step whose path depends on values is captured along the path
    that they decide. formats: number formats of values by role.

    Raises InputError (or a subclass) for anything that does not fit, before any maths runs.
    """
    if formats:
        check_formats(model, autocast_dtype)
    mesh = flatten(system)
    regions(mesh.rows, mesh.cols, comm.size)  # refuses more ranks than devices before the work of capturing
    placed = None if plan == "auto" else make_plan(plan, mesh)
    if placed is not None and placed.has(PIPELINE):
        placed = with_micro_batches(placed, batch, micro_batches) if gradients else replace(placed, micro_batches=1)
        micro_batches = placed.micro_batches or 1
    maths, leaves = checked_maths(
        model, first_samples(batch, micro_batches), step, gradients=gradients, autocast_dtype=autocast_dtype
    )
    settings = StepOptions(
        stored_updates(updates_of(model, optimizer), formats),
        options.collective,
        options.bucket_bytes,
        micro_batches,
        strict,
        clip_norm,
        formats,
    )

    @cache
    def graph_of(count: int) -> Graph:
        """The graph of one of so many micro-batches."""
        part = first_samples(batch, count)
        return capture_maths(*checked_maths(model, part, step, gradients=gradients, autocast_dtype=autocast_dtype))

    def built(graph: Graph, wanted: Plan | None) -> PreparedStep:
        def build(tried: Plan) -> BuiltStep:
            count = tried.micro_batches or micro_batches
            part = graph if count == micro_batches else graph_of(count)
            return build_step(part, tried, mesh, system, replace(settings, micro_batches=count))

        if wanted is not None:
            one, reason = build(wanted), ""
        else:
            plans = [*candidates(graph, mesh), *pipeline_candidates(graph, mesh, batch, micro_batches)]
            one, reason = choose_plan(plans, build, mesh, system, options, comm)
        timed = time_step(one.program, system, one.peak_memory_bytes, options, comm)
        return PreparedStep(one.plan, one.spmd, one.schedules, timed, reason, formats)

    try:
        return built(capture_maths(maths, leaves), placed)
    except DataDependentError as question:
        values = _values(question, first, micro_batches, formats)
        steps = Recaptured(maths, built, placed, comm)
        found = steps.prepare(step_inputs(model, values.batch()), seed=values.seed, step=values.step)
        return PreparedSteps.following(found, steps, str(question))


def _values(question: DataDependentError, first: FirstStep | None, micro_batches: int, formats: Formats) -> FirstStep:
    """The values that decide the path of the first step. Raises DataDependentError where they cannot."""
    if first is None:
        raise DataDependentError(f"{question}: without values it has no step to time; execute it") from question
    if formats:
        raise DataDependentError(f"{question}: values that formats round are not decided on") from question
    if micro_batches > 1:
        raise DataDependentError(
            f"{question}: with micro_batches = {micro_batches}, one graph must serve all micro-batches"
        ) from question
    return first
