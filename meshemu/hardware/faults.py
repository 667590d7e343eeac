"""Dead devices and dead links: reading them from user input and checking them against the grid."""

from collections.abc import Sequence

from meshemu.errors import InputError

__all__ = ["LinkEnds", "Position", "check_faults", "parse_dead", "parse_dead_links"]

Position = tuple[int, int]
LinkEnds = tuple[Position, Position]


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


def check_faults(rows: int, cols: int, dead: Sequence[Position], dead_links: Sequence[LinkEnds]) -> None:
    """InputError unless all positions are in the grid, links join neighbours, and some device is alive."""
    for key, positions in (("dead", dead), ("dead_links", [end for ends in dead_links for end in ends])):
        for row, col in positions:
            if not (0 <= row < rows and 0 <= col < cols):
                raise InputError(f"{key}: there is no device ({row},{col}) in a grid of {rows} x {cols} devices")
    for (row, col), (other_row, other_col) in dead_links:
        if abs(row - other_row) + abs(col - other_col) != 1:
            raise InputError(f"dead_links: devices ({row},{col}) and ({other_row},{other_col}) are not neighbours")
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
