"""Carry out Fetch and PushAdd: halos and their adjoints, with the very boxes that the Program times."""

from collections import defaultdict
from dataclasses import dataclass

import torch

from meshemu.comm import Comm
from meshemu.execute.blocks import Host, Key
from meshemu.execute.transport import Exchange
from meshemu.workload.spmd import Fetch, PushAdd
from meshemu.workload.windows import pieces

__all__ = ["FetchTask", "PushAddTask"]

Blocks = dict[Key, torch.Tensor]
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
            {peer: [blocks[m.source][m.source_box] for m in moves] for peer, moves in self._sent.items()}
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
        source, output = instruction.source, instruction.output
        self._shapes = {
            key: host.local_shape(output, p) for key, p in host.representatives(output.layout.axes).items()
        }
        self._moves = _Moves(_fetch_moves(instruction, host), host, comm, source.dtype)
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
        for move, data in self._moves.collect(blocks):
            target = result[move.target][move.target_box]
            target.copy_(data.view(target.shape))
        return result


class PushAddTask:
    """Add windows back to the blocks they came from, in the order of the devices that hold the windows."""

    def __init__(self, instruction: PushAdd, host: Host, comm: Comm) -> None:
        self.instruction = instruction
        output = instruction.output
        self._shapes = {
            key: host.local_shape(output, p) for key, p in host.representatives(output.layout.axes).items()
        }
        self._moves = _Moves(_push_moves(instruction, host), host, comm, instruction.source.dtype)

    def run(self, blocks: Blocks) -> Blocks:
        """Blocks of the output from windows of the source."""
        result = {key: torch.zeros(shape, dtype=self.instruction.output.dtype) for key, shape in self._shapes.items()}
        for move, data in self._moves.collect(blocks):
            target = result[move.target][move.target_box]
            target.add_(data.view(target.shape))
        return result


def _fetch_moves(instruction: Fetch, host: Host) -> list[_Move]:
    source, output = instruction.source, instruction.output
    boxes = pieces(source.shape, source.layout, output.layout, host.plan)
    ranks = sorted(set(host.rank_of_position.tolist()))
    targets = {r: host.representatives(output.layout.axes, r) for r in ranks}
    sources = {r: host.representatives(source.layout.axes, r) for r in ranks}
    n_dims = len(source.shape)
    moves = []
    for dst, src, lo, hi in zip(
        boxes.dst.tolist(), boxes.src.tolist(), boxes.lo.tolist(), boxes.hi.tolist(), strict=True
    ):
        rank = int(host.rank_of_position[dst])
        target = host.key(output.layout.axes, dst)
        if targets[rank][target] != dst:
            continue
        key = host.key(source.layout.axes, src)
        local = key in sources[rank]
        holder = sources[rank][key] if local else src
        moves.append(
            _Move(
                key,
                _box(lo, hi, host.origin(source.layout, n_dims, src)),
                target,
                _box(lo, hi, host.origin(output.layout, n_dims, dst)),
                torch.Size(h - low for low, h in zip(lo, hi, strict=True)).numel(),
                rank if local else int(host.rank_of_position[holder]),
                rank,
            )
        )
    return moves


def _push_moves(instruction: PushAdd, host: Host) -> list[_Move]:
    source, output = instruction.source, instruction.output
    boxes = pieces(output.shape, output.layout, source.layout, host.plan)
    ranks = sorted(set(host.rank_of_position.tolist()))
    owners = {r: host.representatives(output.layout.axes, r) for r in ranks}
    holders = {r: host.representatives(source.layout.axes, r) for r in ranks}
    n_dims = len(source.shape)
    moves = []
    for window, owner, lo, hi in zip(
        boxes.dst.tolist(), boxes.src.tolist(), boxes.lo.tolist(), boxes.hi.tolist(), strict=True
    ):
        rank = int(host.rank_of_position[owner])
        target = host.key(output.layout.axes, owner)
        if owners[rank][target] != owner:
            continue
        key = host.key(source.layout.axes, window)
        local = key in holders[rank]
        moves.append(
            _Move(
                key,
                _box(lo, hi, host.origin(source.layout, n_dims, window)),
                target,
                _box(lo, hi, host.origin(output.layout, n_dims, owner)),
                torch.Size(h - low for low, h in zip(lo, hi, strict=True)).numel(),
                rank if local else int(host.rank_of_position[window]),
                rank,
            )
        )
    return moves


def _box(lo: list[int], hi: list[int], origin: list[int]) -> Box:
    return tuple(slice(a - o, b - o) for a, b, o in zip(lo, hi, origin, strict=True))
