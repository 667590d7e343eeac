"""What the messages of a Program are for, and the message class of a router that each kind of them travels in.

Only a class of its own keeps one kind of traffic from waiting behind another in the buffers of routers.
"""

import re

import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import Program

__all__ = ["TRAFFIC", "message_classes", "stage_label"]

TRAFFIC = ("halos and fetches", "collectives", "moves between pipeline stages")
"""Kinds of traffic; the number of one is its message class, where there are so many."""

_FETCHES, _COLLECTIVES, _STAGES = range(3)
_TO_STAGE = re.compile(r" to (all stages|stage \d+(, \d+)*)$")


def stage_label(label: str, stages: tuple[int, ...]) -> str:
    """The label of a move to other stages of a pipeline, () for all of them; `message_classes` knows it again."""
    return f"{label} to " + (f"stage {', '.join(map(str, stages))}" if stages else "all stages")


def message_classes(program: Program, n_classes: int) -> NDArray[np.int64]:
    """Message class of every message, int64[n_messages], 0 <= class < n_classes.

    With two classes, collectives have one of their own; with three or more, moves between stages too.
    """
    moves = np.array([_TO_STAGE.search(label) is not None for label in program.labels], np.bool_)
    kind = np.full(program.n_messages, _FETCHES, np.int64)
    if program.n_messages:
        kind[moves[program.label[program.send_op]]] = _STAGES
        kind[program.collective[program.send_op] >= 0] = _COLLECTIVES
    return np.where(kind < n_classes, kind, _FETCHES)
