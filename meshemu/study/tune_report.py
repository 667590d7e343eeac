"""What tuning found: a configuration that `meshemu run` takes, and the table of what was tried."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.table import percent, table
from meshemu.config import to_toml
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.study.tune import Trial, Tuned
from meshemu.units import format_bytes, format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["plot", "render", "save", "to_csv", "to_json"]

_SHOWN = 12


def render(found: Tuned) -> str:
    """The best, why it wins, and the best of the others."""
    best, base = found.best, found.baseline
    timed = [trial for trial in found.trials if trial.step_ps is not None]
    lines = [f"{found.title}: fastest of {len(timed)} timed choices ({len(found.trials)} considered)"]
    lines.append(f"  {_words(best)}: {_time(best)} a step, {_parts(best)}")
    if base is None:
        lines.append("  plain data parallelism is not possible or does not fit")
    elif base.step_ps and best.step_ps:
        lines.append(f"  {base.step_ps / best.step_ps:.2f} times as fast as plain data parallelism")
        lines.append(f"  {_words(base)}: {_time(base)} a step, {_parts(base)}")
    shown = found.trials[:_SHOWN]
    cells = [[_time(t), format_time(t.bound_ps), _memory(t), _words(t), _parts(t) or t.why] for t in shown]
    heading = ["step", "bound", "memory", "choice", "where its time goes, or why it was not timed"]
    reasons: dict[str, int] = {}
    for trial in found.trials:
        if trial.step_ps is None:
            reasons[_reason(trial)] = reasons.get(_reason(trial), 0) + 1
    others = [f"  {count} not timed: {why}" for why, count in reasons.items()]
    return "\n".join([*lines, "", table(heading, cells, left=0, right_to=3), *others])


def to_json(found: Tuned) -> str:
    """The trials, the baseline and the configuration as JSON."""
    content: dict[str, Any] = {
        "title": found.title,
        "best": asdict(found.best),
        "baseline": None if found.baseline is None else asdict(found.baseline),
        "config": to_toml(found.config),
        "trials": [asdict(trial) for trial in found.trials],
    }
    return json.dumps(content, indent=2)


def to_csv(found: Tuned) -> str:
    """One row per trial."""
    return csv_text([
        asdict(t.choice)
        | {"bound_ps": t.bound_ps, "step_ps": t.step_ps, "memory_bytes": t.memory_bytes}
        | {name: None if t.where is None else getattr(t.where, name) for name in _NAMES}
        | {"why_not": t.why}
        for t in found.trials
    ])


def save(found: Tuned, into: Path) -> list[Path]:
    """tuned.toml (the configuration), tune.txt, .json, .csv and .png in a folder.

    Raises InputError if they cannot be written.
    """
    texts = {"tuned.toml": to_toml(found.config), "tune.txt": render(found)}
    texts |= {"tune.json": to_json(found), "tune.csv": to_csv(found)}
    return leave(into, texts, {"tune.png": plot(found)})


def plot(found: Tuned) -> "Figure":
    """Where the time of a step goes by the fastest choices, the fastest on top."""
    timed = [t for t in found.trials if t.step_ps is not None][:_SHOWN][::-1]
    figure = new_figure(10, 1.2 + 0.34 * len(timed))
    axes = figure.add_subplot()
    left = [0.0] * len(timed)
    for name, words in _NAMES.items():
        widths = [0.0 if t.where is None else getattr(t.where, name) / 1e6 for t in timed]
        if any(widths):
            axes.barh(range(len(timed)), widths, left=left, label=words)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(timed)), [_words(t) for t in timed], fontsize=7)
    axes.set_xlabel("time of a step in us")
    axes.set_title(f"{found.title}: the fastest choices", fontsize=10)
    axes.legend(fontsize=8)
    return figure


_NAMES = {
    "compute_ps": "compute",
    "bubble_ps": "bubble",
    "collectives_ps": "collectives",
    "halos_ps": "halos and fetches",
    "stages_ps": "moves between stages",
}


def _words(trial: Trial) -> str:
    choice = trial.choice
    return f"plan {choice.plan}, {choice.collective}, buckets of {format_bytes(choice.bucket_bytes)}"


def _time(trial: Trial) -> str:
    return "-" if trial.step_ps is None else format_time(trial.step_ps)


def _memory(trial: Trial) -> str:
    return "-" if trial.memory_bytes is None else format_bytes(trial.memory_bytes)


def _parts(trial: Trial) -> str:
    where = trial.where
    if where is None:
        return ""
    parts = {words: getattr(where, name) for name, words in _NAMES.items()}
    return ", ".join(f"{words} {percent(ps, where.total_ps)}" for words, ps in parts.items() if ps)


def _reason(trial: Trial) -> str:
    """Why not, without what differs from plan to plan."""
    return trial.why if "bound" in trial.why or "trials" in trial.why else "refused, or too large for the memory"
