"""Dead devices, dead links and slow links: reading them from user input and checking them against the grid."""

from collections.abc import Sequence

from meshemu.errors import InputError
from meshemu.hardware.topology import Position, neighbours

__all__ = [
    "LinkEnds",
    "Position",
    "SlowLink",
    "check_faults",
    "parse_dead",
    "parse_dead_links",
    "parse_slow_links",
]

LinkEnds = tuple[Position, Position]
SlowLink = tuple[Position, Position, int]


def parse_dead(value: object) -> tuple[Position, ...]:
    """[[row, col], ...] as sorted distinct positions; InputError if it is something else."""
    wrong = f"dead = {value!r} is not a list of [row, col] of devices"
    return tuple(sorted({_position(item, wrong) for item in _items(value, wrong)}))


def parse_dead_links(value: object) -> tuple[LinkEnds, ...]:
    """[[[row, col], [row, col]], ...] as sorted distinct pairs; InputError if it is something else."""
    wrong = f"dead_links = {value!r} is not a list of [[row, col], [row, col]] of neighbouring devices"
    pairs = set()
    for item in _items(value, wrong):
        ends = [_position(end, wrong) for end in _items(item, wrong)]
        if len(ends) != 2:
            raise InputError(wrong)
        pairs.add((min(ends), max(ends)))
    return tuple(sorted(pairs))


def parse_slow_links(value: object) -> tuple[SlowLink, ...]:
    """[[[row, col], [row, col], factor], ...], each a directed link and by what its bandwidth is divided, as a sorted
    tuple; InputError if it is something else, or a link is given twice.
    """
    wrong = f"slow_links = {value!r} is not a list of [[row, col], [row, col], factor], from one device to a neighbour"
    links: dict[LinkEnds, int] = {}
    for item in _items(value, wrong):
        parts = _items(item, wrong)
        factor = parts[2] if len(parts) == 3 else None
        if not isinstance(factor, int) or isinstance(factor, bool):
            raise InputError(wrong)
        ends = _position(parts[0], wrong), _position(parts[1], wrong)
        if factor < 1:
            raise InputError(f"slow_links: the factor of {ends[0]} to {ends[1]} is {factor}, it must be at least 1")
        if ends in links:
            raise InputError(f"slow_links: {ends[0]} to {ends[1]} is given twice")
        links[ends] = factor
    return tuple((src, dst, factor) for (src, dst), factor in sorted(links.items()))


def check_faults(
    rows: int,
    cols: int,
    dead: Sequence[Position],
    dead_links: Sequence[LinkEnds],
    slow_links: Sequence[SlowLink] = (),
    wrap: str = "none",
) -> None:
    """InputError unless all positions are in the grid, links join neighbours, and some device is alive."""
    slow = [ends[:2] for ends in slow_links]
    linked = {"dead_links": dead_links, "slow_links": slow}
    checked = {"dead": list(dead)} | {key: [end for ends in links for end in ends] for key, links in linked.items()}
    for key, positions in checked.items():
        for row, col in positions:
            if not (0 <= row < rows and 0 <= col < cols):
                raise InputError(f"{key}: there is no device ({row},{col}) in a grid of {rows} x {cols} devices")
    for key, links in linked.items():
        for (row, col), (other_row, other_col) in links:
            if not neighbours((row, col), (other_row, other_col), rows, cols, wrap):
                raise InputError(f"{key}: devices ({row},{col}) and ({other_row},{other_col}) are not neighbours")
    for src, dst in slow:
        if src in dead or dst in dead or (min(src, dst), max(src, dst)) in dead_links:
            raise InputError(f"slow_links: the link from {src} to {dst} is dead, or one of its ends is")
    if len(dead) == rows * cols:
        raise InputError(f"dead: all {rows} x {cols} devices are dead")


def _items(value: object, wrong: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(wrong)
    return value


def _position(value: object, wrong: str) -> Position:
    numbers = _items(value, wrong)
    row, col = (numbers[0], numbers[1]) if len(numbers) == 2 else (None, None)
    if not (isinstance(row, int) and isinstance(col, int)) or isinstance(row, bool) or isinstance(col, bool):
        raise InputError(wrong)
    return row, col
