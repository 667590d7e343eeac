"""How the edges of a mesh are joined beyond links between neighbours: wrap-around links, and the Z-plane."""

from collections.abc import Sequence

from meshemu.errors import InputError

__all__ = [
    "EDGES",
    "WRAPS",
    "WRAP_LINK",
    "Z_PLANE_FIGURES",
    "check_wrap",
    "neighbours",
    "parse_edges",
    "parse_wrap",
    "parse_z_plane",
    "wraps",
]

Position = tuple[int, int]

WRAPS = ("none", "rows", "columns", "both")
"""Which lines of devices are closed to rings by a link between their ends."""

WRAP_LINK = "wrap_edge"
"""Class of the wrap-around links. Its figures are those of the outermost class of links until they are given."""

EDGES = ("north", "east", "south", "west")

Z_PLANE_FIGURES = (
    "interface.per_edge",
    "interface.link_bandwidth",
    "interface.link_latency",
    "interface.ethernet_bandwidth",
    "interface.ethernet_latency",
)
"""What has to be known of interface processors so that Ethernet can join them."""

_Z_PLANE_EDGES = ("west", "east")  # of a tray, where published pictures show interface processors
_SHORTEST_RING = 3  # of two devices the link between them joins both ends already


def parse_wrap(value: object) -> str:
    """One of WRAPS; InputError lists them for anything else."""
    if not isinstance(value, str) or value not in WRAPS:
        raise InputError(f"wrap = {value!r} is not one of {', '.join(WRAPS)}")
    return value


def parse_z_plane(value: object) -> tuple[str, ...]:
    """The edges whose interface processors Ethernet joins: none for false, west and east for true, or a list of edges.

    Raises InputError for anything else.
    """
    if isinstance(value, bool):
        return _Z_PLANE_EDGES if value else ()
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return parse_z_plane(value.strip().lower() == "true")
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InputError(f"z_plane = {value!r} is neither true nor false nor a list of {', '.join(EDGES)}")
    return parse_edges(value, "z_plane")


def parse_edges(names: Sequence[object], key: str) -> tuple[str, ...]:
    """Edges of the mesh, each once. InputError names `key` where one is none, or is there twice."""
    for name in names:
        if name not in EDGES:
            raise InputError(f"{key}: {name!r} is not one of {', '.join(EDGES)}")
    if len(set(names)) < len(names):
        raise InputError(f"{key}: an edge is named twice in {', '.join(map(str, names))}")
    return tuple(map(str, names))


def wraps(wrap: str) -> tuple[bool, bool]:
    """Whether columns are rings, and whether rows are."""
    return wrap in ("columns", "both"), wrap in ("rows", "both")


def check_wrap(wrap: str, rows: int, cols: int) -> None:
    """InputError where a line that is to be a ring is too short for one."""
    for closed, line, length in zip(wraps(wrap), ("column", "row"), (rows, cols), strict=True):
        if closed and length < _SHORTEST_RING:
            have = f"{length} device{'s' if length > 1 else ''}"
            raise InputError(f"wrap = {wrap}: a {line} of {rows} x {cols} devices has {have}, a ring takes 3")


def neighbours(one: Position, other: Position, rows: int, cols: int, wrap: str) -> bool:
    """Whether a link joins two devices of a grid: they are side by side, or at both ends of a ring."""
    down, along = abs(one[0] - other[0]), abs(one[1] - other[1])
    column_rings, row_rings = wraps(wrap)
    ends = (down == rows - 1 and along == 0 and column_rings) or (along == cols - 1 and down == 0 and row_rings)
    return down + along == 1 or ends
