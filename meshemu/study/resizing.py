"""A configuration on a system of another size: its grid of units, its plan, its batch."""

from math import isqrt, prod
from typing import Any

from meshemu.config import Config
from meshemu.config.schema import PlanShape
from meshemu.errors import InputError
from meshemu.hardware import System as Machine

__all__ = ["resized"]

REPLICAS = ("data", "shard")


def resized(config: Config, machine: Machine, n_devices: int, *, weak: bool) -> Config:
    """The configuration with `n_devices` devices. machine: its system as it is.

    Whole outer units are added or taken away, in the squarest grid (in a line where the system has a line of them). A
    plan by name is of the whole mesh; of a table, the outermost axis of replicas ("data", or else "shard") grows with
    the devices, and where there is none, "data" replicates what there is. weak: the batch grows with the devices.
    Raises InputError where that is no whole number.
    """
    changes = {"system": _system(config, machine, n_devices), "plan": _plan(config, machine.n_alive, n_devices)}
    if weak:
        size = _ratio(config.data.batch_size, n_devices, machine.n_alive, "data.batch_size")
        changes["data"] = config.data.model_copy(update={"batch_size": size})
    return config.model_copy(update=changes)


def _system(config: Config, machine: Machine, n_devices: int) -> Any:
    section = config.system
    if section.grid is not None:
        rows, cols = _squarest(n_devices)
        return section.model_copy(update={"grid": section.grid.model_copy(update={"rows": rows, "cols": cols})})
    if machine.dead_devices():
        raise InputError(f"--devices {n_devices}: {machine.name} has dead devices, whose places follow from its size")
    overrides, left = dict(section.overrides), n_devices
    for level in machine.outer_levels:
        shape = machine.figure(level.grid).shape
        outermost = level is machine.outer_levels[-1]
        if not outermost and left % prod(shape) == 0:
            left //= prod(shape)
            continue
        if not outermost and left > prod(shape):
            raise InputError(
                f"--devices {n_devices}: {left} is no multiple of the {prod(shape)} {level.unit}s ({level.grid}) of "
                f"{machine.name}"
            )
        line = 1 in shape and prod(shape) > 1
        overrides[level.grid] = list((left, 1) if line and shape[1] == 1 else (1, left) if line else _squarest(left))
        left = 1
    return section.model_copy(update={"overrides": overrides})


def _plan(config: Config, before: int, after: int) -> Any:
    if isinstance(config.plan, str):
        return config.plan
    table = config.plan.model_dump(exclude_none=True)
    kind = next((kind for kind in REPLICAS if kind in table), None)
    if kind is None:
        table["data"] = _ratio(1, after, before, "the plan")
    else:
        extent = table[kind]
        count = extent if isinstance(extent, int) else prod(extent)
        table[kind] = _ratio(count, after, before, f"plan.{kind}")
    return PlanShape.model_validate(table)


def _ratio(value: int, after: int, before: int, what: str) -> int:
    if value * after % before:
        raise InputError(
            f"--devices {after}: {what} = {value} x {after} / {before} devices is no whole number"
        )
    return value * after // before


def _squarest(count: int) -> tuple[int, int]:
    rows = next(rows for rows in range(isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows
