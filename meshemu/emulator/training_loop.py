"""The loop over training steps, shared by configured runs and by `emulate`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshemu.emulator.recording import Recorder
from meshemu.execute.training import StepOutcome, Tensor, Trainer

__all__ = ["History", "train"]

NOT_EVALUATED = float("nan")


@dataclass
class History:
    """What the steps left behind, the same on every rank; one item per step, except that accuracies are by step and
    gradients are those of the last.
    """

    losses: list[float] = field(default_factory=list)
    losses_by_name: dict[str, list[float]] = field(default_factory=dict)
    gradient_norms: list[float] = field(default_factory=list)
    learning_rates: list[tuple[float, ...]] = field(default_factory=list)
    accuracies: dict[int, float] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def add(self, outcome: StepOutcome) -> None:
        """Append one step."""
        self.losses.append(outcome.loss)
        for name, loss in outcome.losses.items():
            self.losses_by_name.setdefault(name, []).append(loss)
        if outcome.gradient_norm is not None:
            self.gradient_norms.append(outcome.gradient_norm)
        self.learning_rates.append(outcome.learning_rates)
        self.gradients = dict(outcome.gradients)


def train(
    trainer: Trainer | None,
    n_steps: int,
    batch_of: Callable[[int], Any],
    *,
    recorder: Recorder | None,
    evaluate: Callable[[int], float | None],
    progress: Callable[[float, float | None], None],
) -> History:
    """Run `n_steps` steps; without a trainer they are recorded as timed only (loss NaN).

    evaluate(step) gives the accuracy after a step, or None if it is not due.
    """
    history = History()
    for step in range(n_steps):
        started = time.perf_counter()
        outcome = (
            StepOutcome(NOT_EVALUATED, "", {}) if trainer is None else trainer.step(batch_of(step), step)
        )
        accuracy = None if trainer is None else evaluate(step)
        history.add(outcome)
        if accuracy is not None:
            history.accuracies[step] = accuracy
        if recorder is not None:
            recorder.step(
                loss=outcome.loss,
                accuracy=NOT_EVALUATED if accuracy is None else accuracy,
                parameters_sha256=outcome.parameters_sha256,
                wall_s=time.perf_counter() - started,
            )
        progress(outcome.loss, accuracy)
    return history
