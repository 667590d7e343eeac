"""How long one op takes, for whoever has no Program yet."""

import numpy as np

from meshemu.cost.op_classes import ALLOCATIONS, VIEWS, base_name
from meshemu.cost.terms import Ops, terms
from meshemu.cost.work import Work
from meshemu.hardware.device import DeviceSpec

__all__ = ["work_ps"]


def work_ps(device: DeviceSpec, op_class: str, number_format: str, work: Work) -> int:
    """Duration of one COMPUTE op with this work: what `durations_ps` gives it in a Program, in ps.

    Raises:
        InputError: the device has a rate or bandwidth that is not positive.
    """
    amounts = work.flops, work.read_bytes, work.write_bytes
    if base_name(op_class) in VIEWS | ALLOCATIONS or not any(amounts):
        return 0
    flops, read_bytes, write_bytes = (np.array([amount], np.int64) for amount in amounts)
    ops = Ops(
        op_class=np.zeros(1, np.int16),
        number_format=np.zeros(1, np.int8),
        shape=np.array([0 if work.shape else -1], np.int32),
        is_reduce=np.zeros(1, np.bool_),
        launched=np.ones(1, np.bool_),
        flops=flops,
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        op_classes=(op_class,),
        number_formats=(number_format,),
        shapes=(work.shape,) if work.shape else (),
    )
    return int(terms(ops, device).total_ps[0])
