"""Carry out Fetch and PushAdd: halos and their adjoints, with the very boxes that the Program times."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from meshemu.comm import Comm
from meshemu.execute.blocks import Blocks, Host, Key, unfolded_values
from meshemu.execute.transport import Exchange
from meshemu.workload.spmd import Fetch, PushAdd, Value
from meshemu.workload.windows import pieces

__all__ = ["FetchTask", "PushAddTask"]

Box = tuple[slice, ...]


@dataclass(frozen=True)
class _Move:
    """One box: from block `source` at `source_box` to block `target` at `target_box`, from rank to rank."""

    source: Key
    source_box: Box
    target: Key
    target_box: Box
    n_elements: int
    source_rank: int
    target_rank: int


class _Moves:
    """The boxes that concern one rank, and the exchange of those that cross ranks."""

    def __init__(self, moves: list[_Move], host: Host, comm: Comm, dtype: torch.dtype) -> None:
        rank = host.rank
        self.arriving = [m for m in moves if m.target_rank == rank]
        self._sent: dict[int, list[_Move]] = defaultdict(list)
        sizes: dict[int, list[int]] = defaultdict(list)
        for move in moves:
            if move.source_rank == move.target_rank:
                continue
            if move.source_rank == rank:
                self._sent[move.target_rank].append(move)
            if move.target_rank == rank:
                sizes[move.source_rank].append(move.n_elements)
        self._rank = rank
        self._exchange = Exchange(comm, dtype, sizes)

    def collect(self, blocks: Blocks) -> list[tuple[_Move, torch.Tensor]]:
        """(move, its data) for every box that ends on this rank, in order."""
        landed = self._exchange.run(
            {peer: [[blocks[m.source][m.source_box]] for m in moves] for peer, moves in self._sent.items()}
        )
        queues = {peer: iter(tensors) for peer, tensors in landed.items()}
        return [
            (m, blocks[m.source][m.source_box] if m.source_rank == self._rank else next(queues[m.source_rank]))
            for m in self.arriving
        ]


class FetchTask:
    """Bring windows of a value together."""

    def __init__(self, instruction: Fetch, host: Host, comm: Comm) -> None:
        self.instruction = instruction
        source, output = unfolded_values(instruction.source, instruction.output)
        self._source_shapes = _shapes(source, host)
        self._shapes = _shapes(output, host)
        self._result_shapes = _shapes(instruction.output, host)
        boxes = pieces(source.shape, source.layout, output.layout, host.plan)
        pairs = zip(boxes.src.tolist(), boxes.dst.tolist(), boxes.lo.tolist(), boxes.hi.tolist(), strict=True)
        self._moves = _Moves(_moves_of(source, output, pairs, host), host, comm, source.dtype)
        covered: dict[Key, int] = defaultdict(int)
        for move in self._moves.arriving:
            covered[move.target] += move.n_elements
        self._complete = {key for key, shape in self._shapes.items() if covered[key] == torch.Size(shape).numel()}

    def run(self, blocks: Blocks) -> Blocks:
        """Blocks of the output from blocks of the source."""
        output = self.instruction.output
        result = {
            key: torch.empty(shape, dtype=output.dtype)
            if key in self._complete
            else torch.full(shape, self.instruction.fill, dtype=output.dtype)
            for key, shape in self._shapes.items()
        }
        sources = {key: block.reshape(self._source_shapes[key]) for key, block in blocks.items()}
        for move, data in self._moves.collect(sources):
            target = result[move.target][move.target_box]
            target.copy_(data.view(target.shape))
        return {key: tensor.view(self._result_shapes[key]) for key, tensor in result.items()}


class PushAddTask:
    """Add windows back to the blocks they came from, in the order of the devices that hold the windows."""

    def __init__(self, instruction: PushAdd, host: Host, comm: Comm) -> None:
        self.instruction = instruction
        source, output = instruction.source, instruction.output
        self._shapes = _shapes(output, host)
        boxes = pieces(output.shape, output.layout, source.layout, host.plan)
        pairs = zip(boxes.dst.tolist(), boxes.src.tolist(), boxes.lo.tolist(), boxes.hi.tolist(), strict=True)
        self._moves = _Moves(_moves_of(source, output, pairs, host), host, comm, source.dtype)

    def run(self, blocks: Blocks) -> Blocks:
        """Blocks of the output from windows of the source."""
        result = {key: torch.zeros(shape, dtype=self.instruction.output.dtype) for key, shape in self._shapes.items()}
        for move, data in self._moves.collect(blocks):
            target = result[move.target][move.target_box]
            target.add_(data.view(target.shape))
        return result


def _shapes(value: Value, host: Host) -> dict[Key, tuple[int, ...]]:
    """Shape of every block of a value that a rank holds."""
    return {key: host.local_shape(value, p) for key, p in host.representatives(value.layout).items()}


def _moves_of(
    source: Value, target: Value, pairs: Iterable[tuple[int, int, list[int], list[int]]], host: Host
) -> list[_Move]:
    """Moves of the boxes (source position, target position, lo, hi), one for each block that a rank holds.

    A rank that holds the source block itself, whichever of its devices has it, sends nothing.
    """
    ranks = sorted(set(host.rank_of_position.tolist()))
    targets = {rank: host.representatives(target.layout, rank) for rank in ranks}
    sources = {rank: host.representatives(source.layout, rank) for rank in ranks}
    n_dims = len(source.shape)
    moves = []
    for source_position, target_position, lo, hi in pairs:
        rank = int(host.rank_of_position[target_position])
        key = host.key(target.layout.axes, target_position)
        if targets[rank][key] != target_position:
            continue
        source_key = host.key(source.layout.axes, source_position)
        held_here = source_key in sources[rank]
        moves.append(
            _Move(
                source_key,
                _box(lo, hi, host.origin(source.layout, n_dims, source_position)),
                key,
                _box(lo, hi, host.origin(target.layout, n_dims, target_position)),
                prod(b - a for a, b in zip(lo, hi, strict=True)),
                rank if held_here else int(host.rank_of_position[source_position]),
                rank,
            )
        )
    return moves


def _box(lo: list[int], hi: list[int], origin: list[int]) -> Box:
    return tuple(slice(a - o, b - o) for a, b, o in zip(lo, hi, origin, strict=True))
