"""`meshemu.evaluate`: a forward pass of a user's own module on an emulated machine, without gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meshemu.emulator.batches import apply
from meshemu.emulator.memory_policy import memory_options
from meshemu.emulator.prepare import FirstStep, OfPreparedStep, PreparedStep, prepare
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.evaluation import evaluating
from meshemu.execute.precision import checked_autocast
from meshemu.execute.training import DType, Module, Tensor, run_step
from meshemu.hardware import Router, System
from meshemu.hardware.format_roles import formats_of
from meshemu.runtime.mpi import as_comm
from meshemu.workload.index_limits import check_indices

__all__ = ["EvaluationResult", "evaluate"]


@dataclass(frozen=True, eq=False)
class EvaluationResult(OfPreparedStep):
    """metrics: what the metric function returned, by name (empty if it was not executed); the timed step."""

    metrics: dict[str, Tensor]
    prepared: PreparedStep


def evaluate(
    model: Module,
    batch: Any,
    metric_fn: Callable[..., Any] | None = None,
    *,
    autocast: DType | None = None,
    system: System,
    plan: str | Mapping[str, Any] = "data",
    seed: int = 0,
    formats: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    execute: bool = True,
    options: TimingOptions | None = None,
    router: Router | None = None,
    comm: Any = None,
) -> EvaluationResult:
    """Run `model` forward on a global `batch`, in evaluation mode and without gradients, and time it on `system`.

    batch: as in `emulate`. metric_fn(outputs, targets), for a dict batch metric_fn(outputs, batch), returns a tensor of
    any shape, such as a loss, a share or predictions, or a dict or tuple of them; without it the outputs themselves
    are the metrics. A metric without a name is called "metric", those of a tuple "0", "1" and so on. Other arguments
    are those of `emulate`.

    The model is left as it was, each of its modules in its mode. Raises InputError for anything that does not fit.
    """
    roles = formats_of(formats)
    room = memory_options(memory)
    ranks = as_comm(comm)
    make_deterministic()

    def forward(call: Callable[..., Any], item: Any) -> Any:
        outputs, targets = apply(call, item)
        return outputs if metric_fn is None else metric_fn(outputs, targets)

    with evaluating(model):
        prepared = prepare(
            model,
            batch,
            forward,
            system=system,
            plan=plan,
            options=timing_options(options, router),
            comm=ranks,
            gradients=False,
            formats=roles,
            memory=room,
            autocast_dtype=checked_autocast(model, autocast),
            first=FirstStep(lambda: batch, seed) if execute else None,
        )
        if execute:
            check_indices(prepared.spmd.index_limits, batch, "batch")
        metrics = run_step(prepared.executor(ranks), model, batch, seed, 0).metrics if execute else {}
    return EvaluationResult(metrics, prepared)
