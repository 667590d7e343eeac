"""The loop over training steps, shared by configured runs and by `emulate`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from typing import Any

from meshemu.emulator.prepared_step import OfPreparedStep
from meshemu.emulator.recording import Recorder
from meshemu.emulator.timed_step import TimedStep
from meshemu.errors import InputError
from meshemu.execute.evaluation import HeldOut
from meshemu.execute.training import StepOutcome, Tensor, Trainer
from meshemu.record.step_record import TrainingRecord

__all__ = ["History", "OfTraining", "train"]


@dataclass
class History:
    """What the steps left behind, the same on every rank: one item per step, NaN where it was not executed.

    losses_by_name: terms of the loss, if there are several. gradient_norms: before clipping. learning_rates: that of
    each parameter group. held_out: step -> scores after it, where it was evaluated. gradients: those of the last step.
    """

    losses: list[float] = field(default_factory=list)
    losses_by_name: dict[str, list[float]] = field(default_factory=dict)
    gradient_norms: list[float] = field(default_factory=list)
    learning_rates: list[tuple[float, ...]] = field(default_factory=list)
    held_out: dict[int, HeldOut] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def recorded(cls, records: Sequence[TrainingRecord]) -> "History":
        """Of steps whose records are in a file, from the first one on."""
        history = cls()
        for record in records:
            history.add(_outcome(record), _scores(record))
        return history

    @property
    def accuracies(self) -> dict[int, float]:
        """Step -> accuracy on held-out data after it, where targets are class numbers."""
        return {step: scores.accuracy for step, scores in self.held_out.items() if scores.accuracy is not None}

    def add(self, outcome: StepOutcome, scores: HeldOut | None) -> None:
        """Append one step, and what it scores on held-out data if it was evaluated.

        Raises:
            InputError: its loss has other terms than that of the steps before.
        """
        step = len(self.losses)
        if step and set(outcome.losses) != set(self.losses_by_name):
            now, before = (", ".join(names) or "none" for names in (outcome.losses, self.losses_by_name))
            raise InputError(f"loss: its terms in step {step} are {now}, before they were {before}")
        self.losses.append(outcome.loss)
        for name, loss in outcome.losses.items():
            self.losses_by_name.setdefault(name, []).append(loss)
        self.gradient_norms.append(outcome.gradient_norm)
        self.learning_rates.append(outcome.learning_rates)
        self.gradients = dict(outcome.gradients)
        if scores is not None:
            self.held_out[step] = scores


class OfTraining(OfPreparedStep):
    """What every result of a training tells of its steps."""

    history: History

    @property
    def losses(self) -> list[float]:
        """Loss of every step (NaN if it was not executed)."""
        return self.history.losses

    @property
    def losses_by_name(self) -> dict[str, list[float]]:
        """The terms of every step's loss; empty if there is but one."""
        return self.history.losses_by_name

    @property
    def gradient_norms(self) -> list[float]:
        """Norm of every step's gradients over all parameters, before clipping (NaN if it was not executed)."""
        return self.history.gradient_norms

    @property
    def learning_rates(self) -> list[tuple[float, ...]]:
        """Every step's learning rate, one for each parameter group."""
        return self.history.learning_rates


def train(
    trainer: Trainer | None,
    steps: range,
    batch_of: Callable[[int], Any],
    *,
    history: History,
    recorder: Recorder | None,
    timed: Callable[[], TimedStep],
    evaluate: Callable[[int], HeldOut | None] = lambda _step: None,
    progress: Callable[[float, HeldOut | None], None] = lambda _loss, _scores: None,
    passed: Callable[[int], None] = lambda _n_done: None,
) -> History:
    """Run `steps`, and add them to `history`; without a trainer they are recorded as timed only (loss NaN).

    evaluate(step) gives the scores on held-out data after a step, or None if they are not due. timed() is the virtual
    time of the step that was run last. passed(n) is called when n steps of the run are done and recorded.
    """
    for step in steps:
        started = time.perf_counter()
        outcome = StepOutcome(nan, "", {}) if trainer is None else trainer.step(batch_of(step), step)
        scores = None if trainer is None else evaluate(step)
        history.add(outcome, scores)
        if recorder is not None:
            recorder.step(step, _record(outcome, scores), wall_s=time.perf_counter() - started, timed=timed())
        progress(outcome.loss, scores)
        passed(step + 1)
    return history


def _record(outcome: StepOutcome, scores: HeldOut | None) -> TrainingRecord:
    record = TrainingRecord(
        loss=outcome.loss,
        loss_by_name=outcome.losses,
        learning_rate=outcome.learning_rates,
        gradient_norm=outcome.gradient_norm,
        parameters_sha256=outcome.parameters_sha256,
    )
    if scores is None:
        return record
    accuracy = nan if scores.accuracy is None else scores.accuracy
    return replace(record, held_out_loss=scores.loss, held_out_loss_by_name=scores.losses, accuracy=accuracy)


def _outcome(record: TrainingRecord) -> StepOutcome:
    """What `_record` made a record of, without the gradients."""
    if not record.parameters_sha256:
        return StepOutcome(nan, "", {})
    return StepOutcome(
        record.loss, record.parameters_sha256, {}, record.loss_by_name, record.gradient_norm, record.learning_rate
    )


def _scores(record: TrainingRecord) -> HeldOut | None:
    if isnan(record.held_out_loss):
        return None
    accuracy = None if isnan(record.accuracy) else record.accuracy
    return HeldOut(record.held_out_loss, dict(record.held_out_loss_by_name), accuracy)
