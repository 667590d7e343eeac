"""Carry out a Collective: the very schedule that is timed, transfer by transfer, between devices.

The buffer of every participant exists in thought only: a piece of it is a view of the block that it stands for, and
sums are made in the memory of the result as far as the schedule allows (see `dataflow`). Transfers between ranks of one
phase travel together. The operands of an addition come from the schedule, so results do not depend on the number of
ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, block_box, unfolded_values
from meshemu.execute.carrying import Carrier
from meshemu.execute.dataflow import Phase, Share, make_flow
from meshemu.execute.transport import Exchange
from meshemu.workload.chunks import chunk_bounds, row_length
from meshemu.workload.combines import COMBINES
from meshemu.workload.spmd import Collective, Value

__all__ = ["CollectiveTask"]

Shape = tuple[int, ...]


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
        self._groups = [
            kinds[instruction.kind](instruction, schedule, group, host, comm)
            for group in members
            if (host.rank_of_position[group] == host.rank).any()
        ]

    def run(self, sources: list[Blocks], carrier: Carrier | None = None) -> list[Blocks]:
        """Blocks of the outputs from blocks of the sources. carrier: rounds terms to the format that they travel in."""
        results: list[Blocks] = [{} for _ in self.instruction.outputs]
        for group in self._groups:
            group.run(sources, results, carrier)
        return results


class _Group(ABC):
    """One group with members on this rank. Pieces are given by their shapes, in the order of the buffer."""

    def __init__(
        self, instruction: Collective, schedule: Schedule, positions: NDArray[np.int64], host: Host, comm: Comm
    ) -> None:
        self.instruction = instruction
        self.host = host
        self.positions = [int(p) for p in positions]
        self.row = row_length(instruction)
        self.dtype = instruction.sources[0].dtype
        ranks = host.rank_of_position[positions]
        self.hosted = np.flatnonzero(ranks == host.rank).tolist()
        bounds = chunk_bounds(instruction, schedule.n_chunks, positions, host.plan).tolist()
        self.shapes = self.cut(bounds)
        ends = list(accumulate((prod(shape) // self.row for shape in self.shapes), initial=0))
        self._flow = make_flow(schedule, bounds, ends, ranks, host.rank, self.wanted())
        self._exchanges = [self._exchange(phase, comm) for phase in self._flow.phases]

    @abstractmethod
    def cut(self, bounds: Sequence[int]) -> list[Shape]:
        """Shapes of the pieces, none of them empty, that no chunk (rows `bounds`) and no value cuts."""

    @abstractmethod
    def wanted(self) -> list[Share]:
        """What the members of this rank need at the end."""

    @abstractmethod
    def term(self, sources: list[Blocks], member: int, piece: int) -> torch.Tensor:
        """What a member has of a piece before the first phase; never written to."""

    @abstractmethod
    def origin(self, piece: int) -> tuple[Value, int]:
        """The source that a piece belongs to, and an element number that no other piece of it has for its first."""

    @abstractmethod
    def outputs(self, results: list[Blocks]) -> Callable[[Share], torch.Tensor]:
        """Put new blocks into `results`; returns where each wanted share lies in them."""

    def run(self, sources: list[Blocks], results: list[Blocks], carrier: Carrier | None) -> None:
        """Carry out the schedule and fill in this group's blocks of the results."""
        flow, place = self._flow, self.outputs(results)
        nodes = {node: self.term(sources, member, flow.pieces[node]) for node, member in flow.terms.items()}
        for i, (phase, exchange) in enumerate(zip(flow.phases, self._exchanges, strict=True)):
            if carrier is not None:
                self._round(phase.leaving, nodes, i, carrier)
            if exchange is not None:
                self._receive(phase, exchange, nodes)
            for merge in phase.merges:
                left, right = nodes[merge.left], nodes[merge.right]
                if self.instruction.combine != "sum":
                    nodes[merge.node] = COMBINES[self.instruction.combine].merge(left, right)
                elif merge.into is not None:
                    nodes[merge.node] = torch.add(left, right, out=nodes.pop(merge.into))
                elif merge.node in flow.places:
                    nodes[merge.node] = torch.add(left, right, out=place(flow.places[merge.node]))
                else:
                    nodes[merge.node] = torch.add(left, right)
            for node in phase.dead:
                del nodes[node]
        for share, node in flow.results.items():
            target = place(share)
            if nodes[node].data_ptr() != target.data_ptr():
                target.copy_(nodes[node])

    def _round(
        self, leaving: Iterable[tuple[int, int]], nodes: dict[int, torch.Tensor], phase: int, carrier: Carrier
    ) -> None:
        """Round what is sent, where it is: its sender keeps what it sends. Own terms are not written to."""
        for node, sender in leaving:
            value, start = self.origin(self._flow.pieces[node])
            holder = int(self.host.plan.index(value.layout.axes)[self.positions[sender]])
            rounded = carrier(nodes[node], start, holder, phase)
            if node in self._flow.terms:
                nodes[node] = rounded
            else:
                nodes[node].copy_(rounded)

    def _exchange(self, phase: Phase, comm: Comm) -> Exchange | None:
        if not phase.sends and not phase.receives:
            return None
        sizes = {
            peer: [sum(prod(self.shapes[self._flow.pieces[node]]) for node in message) for message in messages]
            for peer, messages in phase.receives.items()
        }
        return Exchange(comm, self.dtype, sizes)

    def _receive(self, phase: Phase, exchange: Exchange, nodes: dict[int, torch.Tensor]) -> None:
        landed = exchange.run(
            {
                peer: [[nodes[node] for node in message] for message in messages]
                for peer, messages in phase.sends.items()
            }
        )
        for peer, messages in phase.receives.items():
            for message, data in zip(messages, landed[peer], strict=True):
                shapes = [self.shapes[self._flow.pieces[node]] for node in message]
                parts = torch.split(data, [prod(shape) for shape in shapes])
                nodes.update((n, part.view(shape)) for n, part, shape in zip(message, parts, shapes, strict=True))


class _AllReduce(_Group):
    """The buffer is the sources one after the other; one copy of the result is stored."""

    def cut(self, bounds: Sequence[int]) -> list[Shape]:
        first = self.host.plan.at(self.positions[0])
        sizes = [prod(v.layout.local_shape(v.shape, first)) // self.row for v in self.instruction.sources]
        ends = list(accumulate(sizes, initial=0))
        edges = sorted({*bounds, *ends})
        owners = np.searchsorted(ends, edges[:-1], side="right") - 1
        self._pieces = [
            (int(owner), slice(lo - ends[owner], hi - ends[owner]))
            for owner, (lo, hi) in zip(owners, pairwise(edges), strict=True)
        ]
        return [(hi - lo, self.row) for lo, hi in pairwise(edges)]

    def wanted(self) -> list[Share]:
        return [(self.hosted[0], piece) for piece in range(len(self.shapes))]

    def term(self, sources: list[Blocks], member: int, piece: int) -> torch.Tensor:
        owner, rows = self._pieces[piece]
        layout = self.instruction.sources[owner].layout
        return sources[owner][self.host.key(layout.axes, self.positions[member])].reshape(-1, self.row)[rows]

    def origin(self, piece: int) -> tuple[Value, int]:
        owner, rows = self._pieces[piece]
        return self.instruction.sources[owner], rows.start * self.row

    def outputs(self, results: list[Blocks]) -> Callable[[Share], torch.Tensor]:
        first = self.positions[0]
        flat = []
        for value, blocks in zip(self.instruction.outputs, results, strict=True):
            block = torch.empty(self.host.local_shape(value, first), dtype=self.dtype)
            blocks[self.host.key(value.layout.axes, first)] = block
            flat.append(block.view(-1, self.row))
        places = [flat[owner][rows] for owner, rows in self._pieces]
        return lambda share: places[share[1]]


class _ByBlocks(_Group):
    """Chunk i holds the blocks of member i, one value after the other; each of them is a piece."""

    def cut(self, bounds: Sequence[int]) -> list[Shape]:
        pairs = [unfolded_values(*p) for p in zip(self.instruction.blocks, self.instruction.whole, strict=True)]
        blocks = [
            (member, value, self.host.local_shape(block, position), block_box(block, whole.layout, place))
            for member, position in enumerate(self.positions)
            for place in (self.host.plan.at(position),)
            for value, (block, whole) in enumerate(pairs)
        ]
        kept = [item for item in blocks if prod(item[2])]
        self.owners = [(member, value) for member, value, _, _ in kept]
        self.boxes = [box for _, _, _, box in kept]
        self.whole_shapes = [self.host.local_shape(whole, self.positions[0]) for _, whole in pairs]
        return [shape for _, _, shape, _ in kept]

    def origin(self, piece: int) -> tuple[Value, int]:
        member, value = self.owners[piece]
        return self.instruction.sources[value], member * prod(self.whole_shapes[value])

    def block(self, blocks: Blocks, value: Value, member: int) -> torch.Tensor:
        """The block of a value that a member has."""
        return blocks[self.host.key(value.layout.axes, self.positions[member])]


class _ReduceScatter(_ByBlocks):
    """Every participant ends with the sum of its own block."""

    def wanted(self) -> list[Share]:
        hosted = set(self.hosted)
        return [(member, piece) for piece, (member, _) in enumerate(self.owners) if member in hosted]

    def term(self, sources: list[Blocks], member: int, piece: int) -> torch.Tensor:
        value = self.owners[piece][1]
        whole = self.block(sources[value], self.instruction.sources[value], member)
        return whole.reshape(self.whole_shapes[value])[self.boxes[piece]]

    def outputs(self, results: list[Blocks]) -> Callable[[Share], torch.Tensor]:
        for member in self.hosted:
            for value, blocks in zip(self.instruction.outputs, results, strict=True):
                position = self.positions[member]
                shape = self.host.local_shape(value, position)
                blocks[self.host.key(value.layout.axes, position)] = torch.empty(shape, dtype=self.dtype)

        def place(share: Share) -> torch.Tensor:
            member, value = self.owners[share[1]]
            return self.block(results[value], self.instruction.outputs[value], member).view(self.shapes[share[1]])

        return place


class _AllGather(_ByBlocks):
    """Every participant ends with the blocks of all; one copy of them is stored."""

    def wanted(self) -> list[Share]:
        return [(self.hosted[0], piece) for piece in range(len(self.shapes))]

    def term(self, sources: list[Blocks], member: int, piece: int) -> torch.Tensor:
        value = self.owners[piece][1]
        return self.block(sources[value], self.instruction.sources[value], member).reshape(self.shapes[piece])

    def outputs(self, results: list[Blocks]) -> Callable[[Share], torch.Tensor]:
        first = self.positions[0]
        joined = [torch.empty(shape, dtype=self.dtype) for shape in self.whole_shapes]
        for value, tensor, blocks in zip(self.instruction.outputs, joined, results, strict=True):
            blocks[self.host.key(value.layout.axes, first)] = tensor.view(self.host.local_shape(value, first))
        return lambda share: joined[self.owners[share[1]][1]][self.boxes[share[1]]]
