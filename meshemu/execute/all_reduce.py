"""Carry out an AllReduce: the very schedule that is timed, transfer by transfer, between devices.

Every participant has a buffer of its own, whichever rank it is on; transfers between ranks of one phase travel
together. The order of additions comes from the schedule, so results do not depend on the number of ranks.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Host, Key
from meshemu.execute.transport import Exchange
from meshemu.mesh import split_bounds
from meshemu.workload.kernels import merge_moments
from meshemu.workload.spmd import AllReduce

__all__ = ["AllReduceTask", "row_length"]

Blocks = dict[Key, torch.Tensor]


def row_length(instruction: AllReduce) -> int:
    """Numbers that belong together and are never cut apart: 3 for moments, 1 for sums."""
    return 3 if instruction.combine == "moments" else 1


@dataclass(frozen=True)
class _Transfer:
    src: int
    dst: int
    lo: int
    hi: int
    reduce: bool
    copy_first: bool


class AllReduceTask:
    """All groups of one AllReduce instruction that this rank has members of."""

    def __init__(self, instruction: AllReduce, schedule: Schedule, host: Host, comm: Comm) -> None:
        self.instruction = instruction
        members, _, _ = host.plan.groups(instruction.axes)
        self._groups = [_Group(instruction, schedule, group, host, comm) for group in members]

    def run(self, sources: list[Blocks]) -> list[Blocks]:
        """Blocks of the outputs from partial blocks of the sources."""
        results: list[Blocks] = [{} for _ in self.instruction.outputs]
        for group in self._groups:
            group.run(sources, results)
        return results


class _Group:
    """One group: its phases, sorted into what stays on this rank and what crosses."""

    def __init__(
        self, instruction: AllReduce, schedule: Schedule, positions: NDArray[np.int64], host: Host, comm: Comm
    ) -> None:
        self._instruction = instruction
        self._row = row_length(instruction)
        ranks = host.rank_of_position[positions]
        hosted = [i for i, rank in enumerate(ranks.tolist()) if rank == host.rank]
        self._source_keys = {
            i: [host.key(v.layout.axes, int(positions[i])) for v in instruction.sources] for i in hosted
        }
        first = int(positions[0])
        self._shapes = [host.local_shape(v, first) for v in instruction.sources]
        self._output_keys = [host.key(v.layout.axes, first) for v in instruction.outputs]
        n_rows = sum(torch.Size(s).numel() for s in self._shapes) // self._row
        self._phases = [
            _Phase(transfers, ranks, host.rank, comm, instruction.sources[0].dtype, self._row)
            for transfers in _phases(schedule, n_rows)
        ]
        self._active = bool(hosted)

    def run(self, sources: list[Blocks], results: list[Blocks]) -> None:
        """Reduce and store one copy of the result."""
        if not self._active:
            return
        buffers = {
            i: torch.cat([blocks[key].reshape(-1) for blocks, key in zip(sources, keys, strict=True)]).view(
                -1, self._row
            )
            for i, keys in self._source_keys.items()
        }
        for phase in self._phases:
            phase.run(buffers, self._instruction.combine)
        flat = next(iter(buffers.values())).view(-1)
        parts = torch.split(flat, [torch.Size(s).numel() for s in self._shapes])
        for result, key, part, shape in zip(results, self._output_keys, parts, self._shapes, strict=True):
            result[key] = part.view(shape)


class _Phase:
    """The transfers of one phase that touch this rank."""

    def __init__(
        self,
        transfers: list[_Transfer],
        ranks: NDArray[np.int64],
        rank: int,
        comm: Comm,
        dtype: torch.dtype,
        row: int,
    ) -> None:
        self._arriving = [(t, int(ranks[t.src])) for t in transfers if ranks[t.dst] == rank]
        self._sent: dict[int, list[_Transfer]] = defaultdict(list)
        sizes: dict[int, list[int]] = defaultdict(list)
        for t in transfers:
            if ranks[t.src] == rank != ranks[t.dst]:
                self._sent[int(ranks[t.dst])].append(t)
            if ranks[t.dst] == rank != ranks[t.src]:
                sizes[int(ranks[t.src])].append((t.hi - t.lo) * row)
        self._rank = rank
        self._row = row
        self._exchange = Exchange(comm, dtype, sizes) if self._sent or sizes else None

    def run(self, buffers: dict[int, torch.Tensor], combine: str) -> None:
        """Send from the state at the start of the phase, then combine in the order of the schedule."""
        landed: dict[int, list[torch.Tensor]] = {}
        if self._exchange is not None:
            landed = self._exchange.run(
                {peer: [buffers[t.src][t.lo : t.hi] for t in sent] for peer, sent in self._sent.items()}
            )
        queues = {peer: iter(tensors) for peer, tensors in landed.items()}
        arriving = []
        for t, rank in self._arriving:
            if rank == self._rank:
                data = buffers[t.src][t.lo : t.hi]
                arriving.append((t, data.clone() if t.copy_first else data))
            else:
                arriving.append((t, next(queues[rank]).view(-1, self._row)))
        for t, data in arriving:
            target = buffers[t.dst][t.lo : t.hi]
            if not t.reduce:
                target.copy_(data)
            elif combine == "sum":
                target.add_(data)
            else:
                target.copy_(merge_moments(target, data))


def _phases(schedule: Schedule, n_rows: int) -> list[list[_Transfer]]:
    """Transfers with row ranges in place of chunk ranges, phase by phase; chunks without rows are left out."""
    n_chunks = min(schedule.n_chunks, n_rows)
    if n_chunks == 0:
        return []
    bounds = split_bounds(n_rows, n_chunks)
    phases: dict[int, list[tuple[int, int, int, int, bool]]] = defaultdict(list)
    for phase, src, dst, lo, hi, reduce in zip(
        schedule.phase.tolist(),
        schedule.src.tolist(),
        schedule.dst.tolist(),
        schedule.chunk_lo.tolist(),
        schedule.chunk_hi.tolist(),
        schedule.reduce.tolist(),
        strict=True,
    ):
        if lo < n_chunks:
            phases[phase].append((src, dst, bounds[lo], bounds[min(hi, n_chunks)], reduce))
    result = []
    for phase in sorted(phases):
        written: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for _, dst, lo, hi, _ in phases[phase]:
            written[dst].append((lo, hi))
        result.append(
            [
                _Transfer(src, dst, lo, hi, reduce, any(a < hi and lo < b for a, b in written[src]))
                for src, dst, lo, hi, reduce in phases[phase]
            ]
        )
    return result
