"""From a module to a timed step: capture, partition, choose schedules, build the Program, time it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from meshemu.comm import Comm
from meshemu.cost.interfaces import interface_rates
from meshemu.emulator.auto_plan import choose_plan
from meshemu.emulator.build_step import BuiltStep, PlacedStep, StepOptions, build_step, place_step, with_program
from meshemu.emulator.fitting import Fitting, fitted
from meshemu.emulator.least_memory import check_least
from meshemu.emulator.memory_policy import REFUSE, MemoryOptions
from meshemu.emulator.prepared_step import OfPreparedStep, PreparedStep
from meshemu.emulator.recaptured import PreparedSteps, Recaptured
from meshemu.emulator.spilling import check_spilling
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
from meshemu.workload.samples import batch_size_of, first_samples, with_micro_batches
from meshemu.workload.step_maths import StepFunction, StepMaths, checked_maths, maths_of

__all__ = ["Capture", "FirstStep", "OfPreparedStep", "PreparedStep", "prepare"]


Capture = Callable[[StepMaths, Sequence[Any]], Graph]
"""As `capture_maths`."""


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
    memory: MemoryOptions = REFUSE,
    ingest_edges: tuple[str, ...] = (),
    capture: Capture = capture_maths,
) -> PreparedStep:
    """Capture and partition one step of `model` on a global `batch`, and time it on `system`.

    plan: as for `make_plan`, or "auto". gradients: False for a step of evaluation, which passes through a pipeline as
    one micro-batch. clip_norm, autocast_dtype, micro_batches, strict: as in `partition` and `capture`. first: the
    values of the first step, None where no maths is run; a step whose path depends on values is captured along the path
    that they decide. formats: number formats of values by role. memory: what to do about a step that does not
    fit. ingest_edges: of the mesh, over which batches come in; () where they are on the devices already.
    capture: how a step that asks for no values is captured; a study passes one that remembers.

    Raises InputError (or a subclass) for anything that does not fit, before any maths runs.
    """
    if formats:
        check_formats(model, autocast_dtype)
    mesh = flatten(system)
    if ingest_edges:
        interface_rates(system)
    if memory.when_full == "spill":
        check_spilling(system)
    regions(mesh.rows, mesh.cols, comm.size)  # refuses more ranks than devices before the work of capturing
    placed = None if plan == "auto" else make_plan(plan, mesh)
    if placed is not None and placed.has(PIPELINE):
        placed = with_micro_batches(placed, batch, micro_batches) if gradients else replace(placed, micro_batches=1)
        micro_batches = placed.micro_batches or 1
    updates = stored_updates(updates_of(model, optimizer), formats)
    part, n_samples = first_samples(batch, micro_batches), batch_size_of(batch)
    check_least(
        *maths_of(model, part, step, gradients=gradients, autocast_dtype=autocast_dtype), updates, placed,
        int(mesh.alive.sum()), system, memory, formats, n_samples if micro_batches == 1 else None,
    )  # fmt: skip
    maths, leaves = checked_maths(model, part, step, gradients=gradients, autocast_dtype=autocast_dtype)
    settings = StepOptions(
        updates,
        options.collective,
        options.bucket_bytes,
        micro_batches,
        strict,
        clip_norm,
        formats,
        ingest_edges,
        options.prefetch,
        options.threads.compute,
    )

    @cache
    def graph_of(count: int) -> Graph:
        """The graph of one of so many micro-batches."""
        part = first_samples(batch, count)
        return capture(*checked_maths(model, part, step, gradients=gradients, autocast_dtype=autocast_dtype))

    def built(graph: Graph, wanted: Plan | None) -> PreparedStep:
        def part_of(tried: Plan) -> tuple[Graph, StepOptions]:
            count = tried.micro_batches or micro_batches
            return graph if count == micro_batches else graph_of(count), replace(settings, micro_batches=count)

        def build(tried: Plan) -> BuiltStep:
            part, its_settings = part_of(tried)
            return build_step(part, tried, mesh, system, its_settings)

        if wanted is not None:
            its_graph, its_settings = part_of(wanted)
            chosen, reason = place_step(its_graph, wanted, mesh, system, its_settings), ""
        else:
            plans = [*candidates(graph, mesh), *pipeline_candidates(graph, mesh, batch, micro_batches)]
            fastest, reason = choose_plan(plans, build, mesh, system, options, comm)
            its_graph, its_settings = part_of(fastest.plan)
            chosen = PlacedStep(fastest.plan, fastest.spmd, fastest.schedules, fastest.memory)
        fit = fitted(chosen, Fitting(its_graph, mesh, system, its_settings, n_samples), memory)
        one = with_program(fit.step, mesh, system, its_settings)
        timed = time_step(one.program, system, one.peak_memory_bytes, options, comm, one.memory)
        return PreparedStep(one.plan, one.spmd, one.schedules, timed, reason, formats, fit.remark)

    try:
        return built(capture(maths, leaves), placed)
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
