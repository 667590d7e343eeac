"""Where on the mesh a step is held up: links that the critical path waits for, crowded links, crowded lines."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.path_strip import PARTS, PathStrip
from meshemu.mesh import Mesh, Order, link_rates, message_routes
from meshemu.program.ir import Program
from meshemu.program.trees import message_trees
from meshemu.record import Run

if TYPE_CHECKING:  # heavy, and needed only when a table is made
    import pandas as pd

__all__ = ["Cut", "charged_links", "cuts", "hot_links", "short_name"]

_I64 = NDArray[np.int64]
_DIRECTIONS = ("north", "east", "south", "west")  # in the order of Mesh.out_link
_SERIALISATION, _WAITING = PARTS.index("serialisation"), PARTS.index("waiting")


@dataclass(frozen=True)
class Cut:
    """All links of one direction over one line between devices.

    where: in words, "east of column 9". links: their number; mean_bytes: carried by each; ratio: that over the mean of
    all links that lead between neighbours.
    """

    where: str
    links: int
    mean_bytes: float
    ratio: float


def short_name(mesh: Mesh, link: int) -> str:
    """A link as "r3c9 -> r3c10 east", by row and column of its ends; a port as "r3c9 injection", one of a switch or
    of the Z-plane in the words of `Mesh.link_name`.
    """
    direction = mesh.direction_of(link)
    if direction in ("up", "down", "z-plane"):
        return mesh.link_name(link)
    ends = [f"r{mesh.row[end]}c{mesh.col[end]}" for end in (mesh.link_src[link], mesh.link_dst[link])]
    return f"{ends[0]} {direction}" if ends[0] == ends[1] else f"{ends[0]} -> {ends[1]} {direction}"


def hot_links(run: Run, step: int = -1, count: int = 10) -> "pd.DataFrame":
    """Links where packets waited longest in all (ties: lowest id), those without waiting left out.

    Columns: name (as `short_name`), class, wait_ps, wait_share (of all waiting), max_queue, bytes, of_mean (bytes over
    the mean of its class), utilisation.
    """
    table = run.links(step)
    mesh = run.mesh()
    table["of_mean"] = table["bytes"] / table.groupby("class", observed=True)["bytes"].transform("mean")
    table["wait_share"] = table["wait_ps"] / max(int(table["wait_ps"].sum()), 1)
    ranked = table[table["wait_ps"] > 0].sort_values("wait_ps", ascending=False, kind="stable").head(count)
    ranked = ranked.assign(name=[short_name(mesh, int(link)) for link in ranked.index])
    return ranked[["name", "class", "wait_ps", "wait_share", "max_queue", "bytes", "of_mean", "utilisation"]]


def cuts(mesh: Mesh, link_bytes: _I64) -> list[Cut]:
    """Traffic over every line between rows or columns, by direction, the most crowded first.

    link_bytes: int64[n_links]. None where devices are joined by switches.
    """
    if mesh.switches is not None:
        return []
    inner = np.flatnonzero(mesh.on_grid)
    mean = float(link_bytes[inner].mean()) if len(inner) else 0.0
    if not mean:
        return []
    found = []
    for number, direction in enumerate(_DIRECTIONS):
        place, line = (mesh.row, "row") if direction in ("north", "south") else (mesh.col, "column")
        links = mesh.out_link[:, number]
        devices = np.flatnonzero(links >= 0)
        for at in np.unique(place[devices]):
            over = links[devices[place[devices] == at]]
            carried = float(link_bytes[over].mean())
            found.append(Cut(f"{direction} of {line} {at}", len(over), carried, carried / mean))
    return sorted(found, key=lambda cut: -cut.ratio)


def charged_links(
    program: Program, mesh: Mesh, strip: PathStrip, wait_ps: _I64, order: Order
) -> list[tuple[int, int]]:
    """(link, ps) of the time that messages on the critical path take to be put on links or wait for them.

    Serialisation is charged to the slowest link of a message's route (the first of equals), waiting to the link of its
    route where packets waited longest in the step, wait_ps: int64[n_links]. Together they are all of both; the most
    charged link comes first. Of a multicast, the route to its first receiver counts.
    """
    charged = np.zeros(mesh.n_links, np.int64)
    length_ps = strip.end_ps - strip.start_ps
    pieces = np.flatnonzero(np.isin(strip.part, (_SERIALISATION, _WAITING)) & np.isin(strip.op, program.send_op))
    if not len(pieces):
        return []
    by_send = np.argsort(program.send_op, kind="stable")
    message = by_send[np.searchsorted(program.send_op[by_send], strip.op[pieces])]
    in_tree = ~message_trees(program).alone[message]
    size_bytes = program.size_bytes[message]
    paths = message_routes(
        mesh, program.src[message], program.dst[message], size_bytes, order, to_self=True, stays=in_tree
    )
    num, den = link_rates(mesh)
    ps_per_byte = num / den
    for i, route in zip(pieces, paths.index, strict=True):
        links = paths.links(int(route))
        if len(links):
            by = ps_per_byte if strip.part[i] == _SERIALISATION else wait_ps
            charged[links[int(by[links].argmax())]] += length_ps[i]
    ranked = np.argsort(-charged, kind="stable")
    return [(int(link), int(charged[link])) for link in ranked[: np.count_nonzero(charged)]]
