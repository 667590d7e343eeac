"""Which curves over training steps a run has: losses, accuracy, norm of gradients, learning rates, time of a step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy, and made by whoever calls
    import pandas as pd

__all__ = ["charts_of"]


def charts_of(steps: "pd.DataFrame", loss_names: Sequence[str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(title, kind of quantity, [(name, column of steps)]) of every chart with any value; without constant times."""
    losses = [("training", "loss"), ("held out", "held_out_loss")]
    losses += [(name, f"loss_{name}") for name in loss_names]
    losses += [(f"{name}, held out", f"held_out_loss_{name}") for name in loss_names]
    rates = [(column.replace("_", " "), column) for column in steps if str(column).startswith("learning_rate")]
    charts = [
        ("Loss", "number", losses),
        ("Held-out accuracy", "share", [("accuracy", "accuracy")]),
        ("Norm of gradients", "number", [("before clipping", "gradient_norm")]),
        ("Learning rate", "number", rates),
        ("Time of the step", "time", [("step", "time_ps")] if steps["time_ps"].nunique() > 1 else []),
    ]
    with_values = [
        (title, kind, [(name, column) for name, column in curves if column in steps and steps[column].notna().any()])
        for title, kind, curves in charts
    ]
    return [chart for chart in with_values if chart[2]]
