"""What a step writes: one value for every column that grows by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meshemu.errors import CheckError, RecordError
from meshemu.record.schema import columns_of
from meshemu.record.step_record import StepRecord

__all__ = ["check_rows", "step_rows"]

_WHERE_DUE = {f"/results/steps/{name}" for name in ("held_out_loss", "held_out_loss_by_name", "accuracy")}
"""What is evaluated after the last step in any case: whether it is there depends on how many steps a run has."""


def step_rows(record: StepRecord, loss_names: Sequence[str], n_parameter_groups: int) -> dict[str, Any]:
    """Path of the column -> what `record` has for it.

    Raises:
        RecordError: a loss has a name that is not in `loss_names`, or there are not so many learning rates.
    """
    training = record.training
    rates = training.learning_rate or (float("nan"),) * n_parameter_groups
    if len(rates) != n_parameter_groups:
        raise RecordError(f"learning_rate has {len(rates)} entries where the file holds {n_parameter_groups}")
    figures = {
        **vars(record),
        **vars(training),
        "learning_rate": rates,
        "loss_by_name": _in_order(training.loss_by_name, loss_names),
        "held_out_loss_by_name": _in_order(training.held_out_loss_by_name, loss_names),
    }
    return {
        **{column.path: figures[column.name] for column in columns_of("/results/steps")},
        **{column.path: getattr(record.links, column.name) for column in columns_of("/results/links")},
        "/results/devices/compute_ps": record.device_compute_ps,
        "/results/devices/idle_ps": record.device_idle_ps,
        "/run/wall_s": record.wall_s,
    }


def check_rows(step: int, stored: Mapping[str, Any], rows: Mapping[str, Any], where: str) -> None:
    """Compare what a step gives when it is run again with what was stored, bit for bit.

    Raises:
        CheckError: names the first column that differs, with both values.
    """
    for path, old in stored.items():
        values = np.asarray(old)
        again = np.asarray(rows[path], values.dtype)
        if values.tobytes() == again.tobytes():
            continue
        if path in _WHERE_DUE and (np.isnan(values).all() or np.isnan(again).all()):
            continue
        raise CheckError(
            f"step {step}, run again, gives another {path}: {_first(again, values)} where {where} holds "
            f"{_first(values, again)}; a file of the model, the libraries or the kind of host have changed"
        )


def _first(values: Any, other: Any) -> str:
    """The first entry that differs from `other`, by its bits."""
    flat, against = values.reshape(-1), other.reshape(-1)
    i = next(i for i in range(len(flat)) if flat[i].tobytes() != against[i].tobytes())
    text = str(flat[i].decode() if isinstance(flat[i], bytes) else flat[i])
    return f"{text} at {i}" if values.ndim else text


def _in_order(losses: Mapping[str, float], loss_names: Sequence[str]) -> list[float]:
    for name in losses:
        if name not in loss_names:
            known = ", ".join(loss_names) or "none"
            raise RecordError(f"there is no column for the loss {name!r}; there are {known}")
    return [losses.get(name, float("nan")) for name in loss_names]
