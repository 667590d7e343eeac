"""The first and the last step of a run side by side, as lines of text: for the report and for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from meshemu.analysis.table import fraction, percent
from meshemu.units import format_time

__all__ = ["step_rows"]

_Steps = Sequence[Mapping[str, Any]]


def step_rows(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of the figures of a report's first and last step (one column if they are the same step): times,
    what the maths gave, without what was computed in neither, and the wall time. Both empty before the first step.
    """
    first, last = content["first_step"], content["last_step"]
    if last is None:
        return [], []
    steps = [first] if first["step"] == last["step"] else [first, last]
    lines = [
        ["time of the step", *(format_time(step["time_ps"]) for step in steps)],
        ["compute (busiest device)", *_with_share(steps, "compute_ps")],
        ["exposed communication", *_with_share(steps, "exposed_comm_ps")],
        *_training_rows(content["loss_names"], steps),
        ["wall time of emulation", *(f"{step['wall_s']:.3g} s" for step in steps)],
    ]
    return ["", *(f"step {step['step']}" for step in steps)], lines


def _with_share(steps: _Steps, key: str) -> list[str]:
    return [f"{format_time(step[key])} ({percent(step[key], step['time_ps'])})" for step in steps]


def _training_rows(loss_names: Sequence[str], steps: _Steps) -> list[list[str]]:
    """What the maths of each step gave, without what was computed in none of them; the loss in any case."""
    optional = [("loss, held out", "held_out_loss", _number)]
    optional += [(f"  {name}, held out", f"held_out_loss_{name}", _number) for name in loss_names]
    optional += [("accuracy, held out", "accuracy", fraction), ("norm of gradients", "gradient_norm", _number)]
    rates = [key for key in steps[0] if key.startswith("learning_rate")]
    lines = [("loss", "loss", _number), *((f"  {name}", f"loss_{name}", _number) for name in loss_names)]
    lines += [line for line in optional if any(step[line[1]] is not None for step in steps)]
    rows = [[label, *(form(step[key]) for step in steps)] for label, key, form in lines]
    if any(step[key] is not None for step in steps for key in rates):
        rows.append(["learning rate", *(", ".join(_number(step[key]) for key in rates) for step in steps)])
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
