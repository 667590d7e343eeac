"""What back-pressure mode refuses of a Program: messages that fork or merge on their way."""

import numpy as np

from meshemu.errors import InputError
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees

__all__ = ["refuse_trees"]


def refuse_trees(program: Program) -> None:
    """Raise InputError, naming the first collective or message concerned, if messages fork or merge in routers."""
    first = message_trees(program).first
    if not first.size:
        return
    message = int(first[0])
    op = int(program.send_op[message])
    use = int(program.collective[op])
    if use < 0:
        what, instead = f"message {message} ({program.labels[program.label[op]]!r})", "send it to each device by itself"
    else:
        collective = program.collectives[use]
        what = f"{collective.kind} {collective.label!r} by {collective.algorithm}"
        instead = "choose another algorithm (timing.collective = ring, rows_columns or tree)"
    n_more = len(np.unique(program.collective[program.send_op[first]])) - 1
    more = f" ({n_more} more like it)" if n_more else ""
    raise InputError(
        f"{what}{more}: routers with finite buffers neither fork nor merge messages; {instead}, or time it without them"
    )
