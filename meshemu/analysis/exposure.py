"""What each part of a step takes of its time: every collective, every kind of other message, every class of compute.

A part is exposed for as long as the critical path goes through it. Parts are told apart by what the ops and messages on
that path belong to, so that all of them together are the step exactly, and what is hidden behind others shows as the
difference between how long a part is under way and how long it is exposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.path_strip import PARTS as PATH_PARTS
from meshemu.analysis.path_strip import PathStrip
from meshemu.program.interfaces import ingest_ops
from meshemu.program.ir import OpKind, Program

__all__ = ["Exposure", "exposures"]

_I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Exposure:
    """One part of a step.

    kind: "compute", "combine" (outside collectives), "ingest", "spill" (what else is at interface processors),
    "point-to-point", or that of a collective; algorithm: of
    a collective, else ""; label: op class, or what the messages are for. collective: its row in the Program, else -1.
    start_ps to end_ps: from its first op to its last (of a collective and of messages, from the first hand-over).
    exposed_ps: what it takes of the critical path, and of that, by part of the path, those that are not zero.
    messages, size_bytes: sent in all.
    """

    kind: str
    algorithm: str
    label: str
    collective: int
    start_ps: int
    end_ps: int
    exposed_ps: int
    exposed_ps_by_part: dict[str, int]
    messages: int
    size_bytes: int

    @property
    def span_ps(self) -> int:
        """From its start to its end."""
        return self.end_ps - self.start_ps


def exposures(program: Program, start_ps: _I64, end_ps: _I64, strip: PathStrip) -> list[Exposure]:
    """All parts of a timed step, the most exposed first; their exposed_ps add up to the step.

    start_ps, end_ps: int64[n_ops]; strip: the critical path of the same times.
    """
    owner, owners = _owners(program)
    exposed = np.zeros((len(owners), len(PATH_PARTS)), np.int64)
    np.add.at(exposed, (owner[strip.op], strip.part), strip.end_ps - strip.start_ps)
    first, last = np.full(len(owners), np.iinfo(np.int64).max), np.zeros(len(owners), np.int64)
    begins = program.kind != OpKind.RECV  # a RECV may be posted long before
    np.minimum.at(first, owner[begins], start_ps[begins])
    np.maximum.at(last, owner, end_ps)
    messages, size_bytes = np.zeros((2, len(owners)), np.int64)
    np.add.at(messages, owner[program.send_op], 1)
    np.add.at(size_bytes, owner[program.send_op], program.size_bytes)
    parts = [
        Exposure(
            *names,
            start_ps=int(min(first[i], last[i])),
            end_ps=int(last[i]),
            exposed_ps=int(exposed[i].sum()),
            exposed_ps_by_part={name: int(ps) for name, ps in zip(PATH_PARTS, exposed[i], strict=True) if ps},
            messages=int(messages[i]),
            size_bytes=int(size_bytes[i]),
        )
        for i, names in enumerate(owners)
    ]
    return sorted(parts, key=lambda part: (-part.exposed_ps, part.start_ps))


def _owners(program: Program) -> tuple[_I64, list[tuple[str, str, str, int]]]:
    """int64[n_ops], the part that every op belongs to; (kind, algorithm, label, collective) of every part."""
    uses = program.collectives
    owner = program.collective.astype(np.int64)
    owners = [(use.kind, use.algorithm, use.label, number) for number, use in enumerate(uses)]
    alone = owner < 0
    for kind, ops, group, names in _kinds(program, alone):
        used, place = np.unique(group[ops], return_inverse=True)
        owner[ops] = len(owners) + place
        owners += [(kind, "", names[int(i)], -1) for i in used]
    return owner, owners


def _kinds(program: Program, alone: NDArray[np.bool_]) -> Iterator[tuple[str, _I64, _I64, tuple[str, ...]]]:
    """(kind, ops, number of their name, names) of what belongs to no collective."""
    is_compute, is_reduce = program.kind == OpKind.COMPUTE, program.kind == OpKind.REDUCE
    yield "compute", np.flatnonzero(alone & is_compute), program.op_class.astype(np.int64), program.op_classes
    yield "combine", np.flatnonzero(alone & is_reduce), program.label.astype(np.int64), program.labels
    moves, comes_in = alone & ~is_compute & ~is_reduce, ingest_ops(program)
    label = program.label.astype(np.int64)
    label[program.recv_op] = label[program.send_op]  # a message is called by its SEND
    yield "ingest", np.flatnonzero(moves & comes_in), label, program.labels
    spills = program.kind == OpKind.INTERFACE
    yield "spill", np.flatnonzero(moves & ~comes_in & spills), label, program.labels
    yield "point-to-point", np.flatnonzero(moves & ~comes_in & ~spills), label, program.labels
