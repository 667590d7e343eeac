"""Curves of a training run for the page: losses, accuracy, norm of gradients, learning rates, time of a step."""

from typing import Any

import numpy as np
import pandas as pd

from meshemu.analysis.curves import charts_of
from meshemu.analysis.page.arrays import packed
from meshemu.record import Run

__all__ = ["training"]

_MOST_POINTS = 2000


def training(run: Run) -> dict[str, Any] | None:
    """Charts over the committed steps, at most some thousand of them; None where nothing changes from step to step."""
    if not run.n_steps:
        return None
    every = -(-run.n_steps // _MOST_POINTS)
    steps = run.steps
    kept = np.unique(np.append(np.arange(0, run.n_steps, every), run.n_steps - 1))
    charts = []
    for title, kind, curves in charts_of(steps, run.loss_names):
        values = [(name, _sampled(steps[column], kept)) for name, column in curves]
        charts.append({"title": title, "kind": kind, "curves": [{"name": n, "values": packed(v)} for n, v in values]})
    return {"steps": packed(steps.index.to_numpy()[kept]), "charts": charts} if charts else None


def _sampled(column: pd.Series, kept: Any) -> Any:
    """Values at the steps kept; of a column that is known at a few steps only, each of them at the next step kept."""
    values = column.to_numpy(np.float64)
    if len(kept) == len(values):
        return values
    known = np.flatnonzero(~np.isnan(values))
    sampled = values[kept].copy()
    places = np.searchsorted(kept, known)
    missing = np.isnan(sampled[places])
    sampled[places[missing]] = values[known[missing]]
    return sampled
