"""Carry out a Collective: the very schedule that is timed, transfer by transfer, between devices.

Where sums are made, every participant has a buffer of its own, whichever rank it is on; transfers between ranks of one
phase travel together. The order of additions comes from the schedule, so results do not depend on the number of ranks.
In an all-gather nothing is combined: the participants of a rank share one buffer.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, block_box, unfolded_values
from meshemu.execute.transport import Exchange
from meshemu.workload.chunks import chunk_bounds, row_length
from meshemu.workload.combines import COMBINES
from meshemu.workload.spmd import Collective

__all__ = ["CollectiveTask"]


@dataclass(frozen=True)
class _Transfer:
    src: int
    dst: int
    lo: int
    hi: int
    reduce: bool
    copy_first: bool


class CollectiveTask:
    """All groups of one Collective instruction that this rank has members of."""

    def __init__(self, instruction: Collective, schedule: Schedule, host: Host, comm: Comm) -> None:
        self.instruction = instruction
        kinds: dict[str, Callable[..., _Group]] = {
            "all_reduce": _AllReduce,
            "reduce_scatter": _ReduceScatter,
            "all_gather": _AllGather,
        }
        members, _, _ = host.plan.groups(instruction.axes, instruction.stages)
        self._groups = [kinds[instruction.kind](instruction, schedule, group, host, comm) for group in members]

    def run(self, sources: list[Blocks]) -> list[Blocks]:
        """Blocks of the outputs from blocks of the sources."""
        results: list[Blocks] = [{} for _ in self.instruction.outputs]
        for group in self._groups:
            if group.hosted:
                buffers = group.load(sources)
                for phase in group.phases:
                    phase.run(buffers, self.instruction.combine)
                group.store(buffers, results)
        return results


class _Group(ABC):
    """One group: its phases, sorted into what stays on this rank and what crosses. Buffers are (rows, row length)."""

    def __init__(
        self, instruction: Collective, schedule: Schedule, positions: NDArray[np.int64], host: Host, comm: Comm
    ) -> None:
        self.instruction = instruction
        self.host = host
        self.positions = [int(p) for p in positions]
        self.row = row_length(instruction)
        ranks = host.rank_of_position[positions]
        self.hosted = np.flatnonzero(ranks == host.rank).tolist()
        self.bounds = chunk_bounds(instruction, schedule.n_chunks, positions, host.plan).tolist()
        self.dtype = instruction.sources[0].dtype
        self.phases = [
            _Phase(transfers, ranks, host.rank, comm, self.dtype, self.row)
            for transfers in _phases(schedule, self.bounds)
        ]

    @abstractmethod
    def load(self, sources: list[Blocks]) -> dict[int, torch.Tensor]:
        """The buffer of every participant on this rank before the first phase."""

    @abstractmethod
    def store(self, buffers: dict[int, torch.Tensor], results: list[Blocks]) -> None:
        """Cut the results out of the buffers after the last phase."""


class _AllReduce(_Group):
    """The buffer is the sources one after the other; one copy of the result is stored."""

    def load(self, sources: list[Blocks]) -> dict[int, torch.Tensor]:
        values = self.instruction.sources
        return {
            i: torch.cat(
                [
                    blocks[self.host.key(v.layout.axes, self.positions[i])].reshape(-1)
                    for v, blocks in zip(values, sources, strict=True)
                ]
            ).view(-1, self.row)
            for i in self.hosted
        }

    def store(self, buffers: dict[int, torch.Tensor], results: list[Blocks]) -> None:
        first = self.positions[0]
        values = self.instruction.outputs
        shapes = [self.host.local_shape(v, first) for v in values]
        parts = torch.split(next(iter(buffers.values())).view(-1), [prod(s) for s in shapes])
        for value, part, shape, result in zip(values, parts, shapes, results, strict=True):
            result[self.host.key(value.layout.axes, first)] = part.view(shape)


class _ByBlocks(_Group):
    """Chunk i holds the blocks of member i, one value after the other."""

    def __init__(
        self, instruction: Collective, schedule: Schedule, positions: NDArray[np.int64], host: Host, comm: Comm
    ) -> None:
        super().__init__(instruction, schedule, positions, host, comm)
        pairs = [unfolded_values(*pair) for pair in zip(instruction.blocks, instruction.whole, strict=True)]
        self.shapes = [[host.local_shape(block, p) for block, _ in pairs] for p in self.positions]
        self.boxes = [
            [block_box(block, whole.layout, host.plan.at(p)) for block, whole in pairs] for p in self.positions
        ]
        self.whole_shapes = [host.local_shape(whole, self.positions[0]) for _, whole in pairs]

    def parts(self, buffer: torch.Tensor, member: int) -> list[torch.Tensor]:
        """Chunk `member` of a buffer as blocks: views of it."""
        chunk = buffer[self.bounds[member] : self.bounds[member + 1]].view(-1)
        flat = torch.split(chunk, [prod(shape) for shape in self.shapes[member]])
        return [part.view(shape) for part, shape in zip(flat, self.shapes[member], strict=True)]

    def empty(self) -> torch.Tensor:
        """A buffer of nothing in particular."""
        return torch.empty(self.bounds[-1], self.row, dtype=self.dtype)


class _ReduceScatter(_ByBlocks):
    """Every participant ends with the sum of its own block."""

    def load(self, sources: list[Blocks]) -> dict[int, torch.Tensor]:
        buffers = {}
        for i in self.hosted:
            buffers[i] = self.empty()
            terms = [
                blocks[self.host.key(v.layout.axes, self.positions[i])].reshape(shape)
                for v, blocks, shape in zip(self.instruction.sources, sources, self.whole_shapes, strict=True)
            ]
            for member, boxes in enumerate(self.boxes):
                for part, box, term in zip(self.parts(buffers[i], member), boxes, terms, strict=True):
                    part.copy_(term[box])
        return buffers

    def store(self, buffers: dict[int, torch.Tensor], results: list[Blocks]) -> None:
        for i, buffer in buffers.items():
            for value, part, result in zip(self.instruction.outputs, self.parts(buffer, i), results, strict=True):
                shape = self.host.local_shape(value, self.positions[i])
                result[self.host.key(value.layout.axes, self.positions[i])] = part.clone().view(shape)


class _AllGather(_ByBlocks):
    """Every participant ends with the blocks of all."""

    def load(self, sources: list[Blocks]) -> dict[int, torch.Tensor]:
        shared = self.empty()
        for i in self.hosted:
            for value, part, blocks in zip(self.instruction.sources, self.parts(shared, i), sources, strict=True):
                part.copy_(blocks[self.host.key(value.layout.axes, self.positions[i])].reshape(part.shape))
        return dict.fromkeys(self.hosted, shared)

    def store(self, buffers: dict[int, torch.Tensor], results: list[Blocks]) -> None:
        first = self.positions[0]
        shared = next(iter(buffers.values()))
        outputs = self.instruction.outputs
        joined = [torch.empty(shape, dtype=self.dtype) for shape in self.whole_shapes]
        for member, boxes in enumerate(self.boxes):
            for target, box, part in zip(joined, boxes, self.parts(shared, member), strict=True):
                target[box] = part
        for value, tensor, result in zip(outputs, joined, results, strict=True):
            result[self.host.key(value.layout.axes, first)] = tensor.view(self.host.local_shape(value, first))


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
            if rank == self._rank and buffers[t.src] is buffers[t.dst]:
                continue
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
                target.copy_(COMBINES[combine].merge(target, data))


def _phases(schedule: Schedule, bounds: list[int]) -> list[list[_Transfer]]:
    """Transfers with row ranges in place of chunk ranges, phase by phase; those of no rows are left out."""
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
        if bounds[lo] < bounds[hi]:
            phases[phase].append((src, dst, bounds[lo], bounds[hi], reduce))
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
