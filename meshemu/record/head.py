"""What a results file holds before the first step: attributes, the empty layout, the machine and the Program."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.cost.memory_use import MemoryUse
from meshemu.mesh.mesh import Mesh
from meshemu.program.ir import Program
from meshemu.record.attributes import put_attribute
from meshemu.record.layout import create_groups
from meshemu.record.memory_columns import LABELS, memory_columns
from meshemu.record.program_io import program_arrays, program_tables
from meshemu.record.putting import fill_columns, seal_head
from meshemu.record.schema import (
    CONVENTIONS,
    LOSS_NAMES,
    PROGRAM_TABLES,
    SCHEMA_VERSION,
    TITLE,
    columns_of,
)
from meshemu.version import __version__

__all__ = ["Head", "write_head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """Everything that is known before the first step.

    system_json: `System.to_json()` of the system that `mesh` was made from. config_text: resolved configuration as
    TOML. n_steps: steps that will be recorded. assumptions: named assumptions that the figures rest on. loss_names: of
    the loss's terms, if it has several. n_parameter_groups: how many learning rates a step has. memory: what
    devices hold over the step, None where it is not known.
    """

    system_json: str
    mesh: Mesh
    program: Program
    config_text: str
    n_steps: int
    assumptions: Sequence[str] = ()
    loss_names: Sequence[str] = ()
    n_parameter_groups: int = 1
    memory: MemoryUse | None = None


def write_head(file: h5py.File, head: Head) -> None:
    """Write all of it into a new file, and create every dataset of the schema."""
    attributes: dict[str, str | np.generic] = {
        "Conventions": CONVENTIONS,
        "title": TITLE,
        "meshemu_version": __version__,
        "schema_version": np.int32(SCHEMA_VERSION),
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_steps_planned": np.int64(head.n_steps),
        "config": head.config_text,
        "complete": np.int8(0),
    }
    for name, value in attributes.items():
        put_attribute(file, name, value)
    put_attribute(file.require_group("/system"), "system_json", head.system_json)
    seal_head(file)
    _create_layout(file, head)
    memory = memory_columns(head.memory, head.mesh.n_devices)
    fill_columns(file, _system_columns(head.mesh) | _program_columns(head.program) | memory)
    file.flush()


def _create_layout(file: h5py.File, head: Head) -> None:
    mesh, program = head.mesh, head.program
    points = () if head.memory is None else head.memory.points
    sizes = {
        "device": mesh.n_devices,
        "link": mesh.n_links,
        "op": program.n_ops,
        "op_bound": len(program.dep_ptr),
        "message": program.n_messages,
        "dependency": len(program.dep),
        "step": head.n_steps,
        "assumption": len(head.assumptions),
        "memory_point": len(points),
        "loss_name": len(head.loss_names),
        "parameter_group": head.n_parameter_groups,
    }
    flags = {
        "@link_class": mesh.class_names,
        "@op_class": program.op_classes,
        "@number_format": program.number_formats,
    }
    text: dict[str, str | Sequence[str]] = {
        PROGRAM_TABLES: program_tables(program),
        "/results/notes/assumptions": head.assumptions,
        LABELS: points,
        LOSS_NAMES: head.loss_names,
    }
    create_groups(file, sizes, flags, text)


def _system_columns(mesh: Mesh) -> dict[str, NDArray[Any]]:
    """The columns of /system by path."""
    devices: dict[str, NDArray[Any]] = {
        "id": np.arange(mesh.n_devices),
        "row": mesh.row,
        "col": mesh.col,
        "tile_row": mesh.tile_row,
        "tile_col": mesh.tile_col,
        "alive": mesh.alive,
    }
    links: dict[str, NDArray[Any]] = {
        "id": np.arange(mesh.n_links),
        "src": mesh.link_src,
        "dst": mesh.link_dst,
        "class": mesh.link_class,
        "bandwidth_bytes_per_s": mesh.bandwidth_bytes_per_s,
        "latency_ps": mesh.latency_ps,
    }
    groups = {"/system/devices": devices, "/system/links": links}
    return {f"{group}/{name}": values for group, columns in groups.items() for name, values in columns.items()}


def _program_columns(program: Program) -> dict[str, NDArray[Any]]:
    """The columns of /program by path."""
    arrays = program_arrays(program)
    groups = ("/program/ops", "/program/messages", "/program/dependencies")
    return {column.path: arrays[column.name] for group in groups for column in columns_of(group)}
