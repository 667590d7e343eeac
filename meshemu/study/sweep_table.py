"""The results of a sweep as one tidy table: a row for each run, in the order of the study."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.critical_path import PARTS
from meshemu.analysis.summary import as_dict
from meshemu.analysis.table import table
from meshemu.analysis.verdict import bound_by
from meshemu.errors import InputError
from meshemu.record.reader import open_run
from meshemu.study.output import write_text
from meshemu.study.study_file import Study, as_toml
from meshemu.study.sweep import files_of
from meshemu.units import format_time

if TYPE_CHECKING:  # heavy, and needed only when a table is made
    import pandas as pd

__all__ = ["render", "save", "sweep_table"]

_STEP = ("compute_ps", "exposed_comm_ps", "flops", "loss")
_PATH = tuple(f"{part}_ps" for part in PARTS)


def sweep_table(study: Study, into: Path) -> "pd.DataFrame":
    """One row per run: run, the swept keys, status ("done" or "failed"), message, file, retimed, n_devices,
    step_time_ps, compute_ps, exposed_comm_ps, flops, loss (of the last step), parts of the critical path (path_..._ps),
    peak_memory_bytes, bound_by, verdict.

    What a run that failed does not tell is missing. A swept key whose values are not all numbers is a column of texts.
    """
    import pandas as pd

    rows = [
        {"run": number, **{key: study.runs[number].values.get(key) for key in study.keys}}
        | {"status": "failed" if fault else "done", "message": fault, "file": str(path.relative_to(into))}
        | ({} if fault else {"retimed": retimed, **_figures(path)})
        for number, path, fault, retimed in files_of(study, into)
    ]
    found = pd.DataFrame(rows)
    for key in study.keys:
        values = [run.values.get(key) for run in study.runs]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[key] = [value if value is None or isinstance(value, str) else as_toml(value) for value in values]
    return found.convert_dtypes()


def render(study: Study, found: "pd.DataFrame") -> str:
    """The table for people, and how many runs failed."""
    head = ["run", *study.keys, "step", "loss", "bound by"]
    cells = []
    for row in found.to_dict("records"):
        if row["status"] == "done":
            loss = row.get("loss")
            told = [format_time(row["step_time_ps"]), f"{loss:.4f}" if _known(loss) else "-", row["bound_by"]]
        else:
            told = ["-", "-", f"failed: {row['message']}"]
        cells.append([str(row["run"]), *(str(row[key]) if _known(row[key]) else "-" for key in study.keys), *told])
    failed = int((found["status"] == "failed").sum())
    done = f"{len(found) - failed} of {len(found)} runs done" + (f", {failed} failed" if failed else "")
    return f"{table(head, cells, left=1, right_to=len(head) - 1)}\n\n{done}"


def save(found: "pd.DataFrame", into: Path) -> Sequence[Path]:
    """results.csv and results.parquet in the folder of the sweep. Raises InputError if they cannot be written."""
    csv, parquet = into / "results.csv", into / "results.parquet"
    write_text(csv, found.to_csv(index=False).rstrip("\n"))
    try:
        found.to_parquet(parquet, index=False)
    except OSError as error:
        raise InputError(f"{parquet}: cannot be written: {error}") from None
    return csv, parquet


def _known(value: Any) -> bool:
    import pandas as pd

    return not pd.isna(value)


def _figures(path: Path) -> dict[str, Any]:
    run = open_run(path)
    content = json.loads(json.dumps(as_dict(run), default=str))
    step, parts = content["last_step"], content["critical_path"] or {}
    return {
        "n_devices": content["system"]["n_alive"],
        "step_time_ps": step["time_ps"],
        **{name: step.get(name) for name in _STEP},
        **{f"path_{name}": parts.get(name) for name in _PATH},
        "peak_memory_bytes": int(run.column("/results/devices/peak_memory_bytes").max()),
        "bound_by": bound_by(content),
        "verdict": content["verdict"],
    }
