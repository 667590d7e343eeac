"""One level of the nest that a machine is: a grid of equal units inside a larger unit."""

from dataclasses import dataclass

__all__ = ["Level"]


@dataclass(frozen=True)
class Level:
    """Units of one kind in a grid, joined by links of one class.

    unit: word for one of them ("die"). grid: key of the figure (rows, cols) of their grid ("dies"). link: the link
    class between them ("die_edge"): figures `<link>.bandwidth`, per direction over one whole edge of a unit, and
    `<link>.latency`. A level whose link class is that of a level inside it has the links of those inner units, as if
    there were no boundary: all that meet at the edge, each hop with its latency.
    switched: each unit has one link to a switch that joins all units of the grid, and one back, in place of links to
    its neighbours; `<link>.bandwidth` holds for each of the two, `<link>.latency` from unit to unit.
    dead: (row, col) in that grid of the units that do not work, where this level is the device granularity; dead_grid:
    the grid for which these were chosen.
    """

    unit: str
    grid: str
    link: str
    switched: bool = False
    dead: tuple[tuple[int, int], ...] = ()
    dead_grid: tuple[int, int] | None = None
