"""Units: what ops of a device occupy, in the order in which they are ready (of several at once, by op id).

Every device has a compute unit, which may be split in two (a matrix and a vector unit), and a communication unit; an
interface processor beside it has its PCIe and its link, each way for itself (`program.interfaces`). SEND, RECV and what
is in flight over such a link occupy none.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from meshemu.program.interfaces import LINK_LATENCY
from meshemu.program.ir import OpKind, Program

__all__ = ["NO_UNIT", "Unit", "Units", "one_thread_each"]

NO_UNIT = -1


class Unit(IntEnum):
    """Units that every device has; what interface processors beside it have is numbered from there on."""

    COMBINE = 0
    COMPUTE = 1
    VECTOR = 2


@dataclass(frozen=True, eq=False)
class Units:
    """of_op: int32[n_ops], the unit of its device that an op occupies, NO_UNIT for none. combining: how many
    combinations a device runs at a time; of all else, a unit runs one.
    """

    of_op: NDArray[np.int32]
    combining: int = 1


def one_thread_each(program: Program) -> Units:
    """One unit for all compute of a device and one for its combinations."""
    computes, combines, at = (program.kind == int(kind) for kind in (OpKind.COMPUTE, OpKind.REDUCE, OpKind.INTERFACE))
    shift = computes * np.int8(Unit.COMPUTE - NO_UNIT) + combines * np.int8(Unit.COMBINE - NO_UNIT)
    found = np.add(shift, np.int8(NO_UNIT), out=shift).astype(np.int32)
    at_interface = np.flatnonzero(at)
    if len(at_interface):
        occupies = np.array([name != LINK_LATENCY for name in program.op_classes])
        at_interface = at_interface[occupies[program.op_class[at_interface]]]
        found[at_interface] = len(Unit) + _at_interfaces(program, at_interface)
    return Units(found)


def _at_interfaces(program: Program, op: NDArray[np.int64]) -> NDArray[np.int64]:
    """Units at interface processors, one for ops of one class at one of them; those beside a device count from 0."""
    names = np.stack((program.device[op], program.interface[op], program.op_class[op])).astype(np.int64)
    distinct, which = np.unique(names, axis=1, return_inverse=True)
    of_device = distinct[0]
    return np.asarray((np.arange(len(of_device)) - np.searchsorted(of_device, of_device))[which.ravel()])
