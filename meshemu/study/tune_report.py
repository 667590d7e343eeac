"""What tuning found: a configuration that `meshemu run` takes, why it wins, and the table of what was tried."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.table import percent, table
from meshemu.config import to_toml
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.study.tune import Trial, Tuned
from meshemu.study.where import PARTS
from meshemu.units import format_bytes, format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["plot", "render", "save", "to_csv", "to_json"]

_SHOWN = 12


def render(found: Tuned) -> str:
    """The best, why it wins, and the best of the others."""
    best, base = found.best, found.baseline
    timed = [trial for trial in found.trials if trial.step_ps is not None]
    lines = [f"{found.title}: fastest of {len(timed)} timed choices ({len(found.trials):,} considered)"]
    lines.append(f"  {_words(found, best)}: {_time(best)} a step")
    if best.memory_remark:
        lines.append(f"  {best.memory_remark}")
    if base is None or not base.step_ps or not best.step_ps:
        lines.append("  plain data parallelism is not possible or does not fit")
    else:
        ratio = f"{base.step_ps / best.step_ps:.2f}"
        lines.append(f"  {ratio} times as fast as plain data parallelism, {_words(found, base)}")
        if base.memory_remark:
            lines.append(f"  (that too: {base.memory_remark})")
    shown = found.trials[:_SHOWN]
    cells = [
        [_time(t), format_time(t.bound_ps), _memory(t), _words(found, t), _parts(t) or t.why] for t in shown
    ]
    heading = ["step", "bound", "memory", "choice", "where its time goes, or why it was not timed"]
    reasons = Counter(_reason(trial) for trial in found.trials if trial.step_ps is None)
    others = [f"  {count:,} not timed: {why}" for why, count in reasons.items()]
    return "\n".join([*lines, "", _evidence(found), "", table(heading, cells, left=0, right_to=3), *others])


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
        | {name: None if t.where is None else getattr(t.where, name) for name in PARTS}
        | {"memory_remark": t.memory_remark, "why_not": t.why}
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
    """Where the time of a step goes by the fastest choices, the fastest on top, and by plain data parallelism below."""
    rows = [t for t in found.trials if t.step_ps is not None][:_SHOWN]
    if found.baseline is not None and found.baseline not in rows:
        rows.append(found.baseline)
    rows = rows[::-1]
    figure = new_figure(10, 1.2 + 0.34 * len(rows))
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    for name, words in PARTS.items():
        widths = [0.0 if t.where is None else getattr(t.where, name) / 1e6 for t in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=left, label=words)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [_words(found, t) for t in rows], fontsize=7)
    axes.set(xlabel="time of a step in us", xlim=(0, 1.03 * max(left, default=1.0)))
    axes.set_title(found.title, fontsize=10)
    axes.legend(fontsize=8)
    return figure


def _evidence(found: Tuned) -> str:
    """Where the time goes, before and after."""
    before, after = None if found.baseline is None else found.baseline.where, found.best.where
    if before is None or after is None:
        return f"  where the time goes: {_parts(found.best)}"
    rows = []
    for name, words in [*PARTS.items(), ("total_ps", "step")]:
        was, is_now = getattr(before, name), getattr(after, name)
        if was or is_now:
            change = f"{(is_now - was) / 1e6:+,.2f} us"
            rows.append([words, format_time(was), percent(was, before.total_ps), format_time(is_now),
                         percent(is_now, after.total_ps), change])  # fmt: skip
    return table(["where the time goes", "plain data", "", "tuned", "", "change"], rows, left=1)


def _words(found: Tuned, trial: Trial) -> str:
    """The plan, and what else differs from the configuration."""
    choice, given = trial.choice, found.given
    words = [f"plan {choice.plan}"]
    if choice.collective != given.collective:
        words.append(f"collectives {choice.collective}")
    if choice.bucket_bytes != given.bucket_bytes:
        words.append(f"buckets of {format_bytes(choice.bucket_bytes)}")
    if choice.prefetch != given.prefetch:
        words.append(f"prefetch {choice.prefetch}")
    if choice.routing != given.routing:
        words.append(f"routing {choice.routing}")
    return ", ".join(words)


def _time(trial: Trial) -> str:
    return "-" if trial.step_ps is None else format_time(trial.step_ps)


def _memory(trial: Trial) -> str:
    return "-" if trial.memory_bytes is None else format_bytes(trial.memory_bytes)


def _parts(trial: Trial) -> str:
    where = trial.where
    if where is None:
        return ""
    parts = {words: getattr(where, name) for name, words in PARTS.items()}
    return ", ".join(f"{words} {percent(ps, where.total_ps)}" for words, ps in parts.items() if ps)


def _reason(trial: Trial) -> str:
    """Why not, without what differs from plan to plan."""
    return trial.why if "bound" in trial.why or "trials" in trial.why else "refused, or too large for the memory"
