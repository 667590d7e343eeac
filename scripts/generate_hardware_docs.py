"""Write docs/hardware.md: every figure of every preset, with source and grade, from the presets themselves."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from meshemu.hardware import System, preset_names
from meshemu.hardware.figure import GRADES, Figure
from meshemu.hardware.presets import preset
from meshemu.hardware.published import NOT_MODELLED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hardware.md"

_HEAD = """# Hardware

<!-- Written by scripts/generate_hardware_docs.py. Change meshemu/hardware and run it again. -->

A system is a nest of levels: nodes in a die, dies in a tile, tiles in the machine. Each level has its own
class of links. The device granularity (`devices`) says which of these units hold shards and compute; whatever
lies inside one device is added up.

- Bandwidth is per direction. That of an edge is for the whole edge of a unit: the device links across it
  share it equally. With dies as devices, the five links over a tile's edge have 4.5 TB/s / 5 = 900 GB/s each;
  with tiles as devices, one link has it all.
- Injection and ejection are links of their own only where nodes are the devices (64 B per clock each way).
  The 354 network interfaces of a die together offer 45 TB/s against 8 TB/s out of its edges, so that a die or
  tile never waits for them.
- Dead nodes: 354 of 360 are usable, which ones is unpublished. With nodes as devices, six positions in every
  die are taken to be dead, point-symmetric, no two in one row or column, none at an edge or beside the
  middle, so that edges and bisections keep all their links. `dead` and `dead_links` replace them. With larger
  devices only the count matters. `slow_links = [[[row, col], [row, col], 10]]` leaves a directed link a tenth.
- Where a class of links goes on across the border of a larger unit, as the fabric of a wafer-scale engine does, a
  link between larger devices is all the links along their border, and as long as the hops through one of them.
- GPUs are joined by switches, not by links to neighbours: each has a link up and a link down of the full bandwidth,
  and each node has such links to the network, which its GPUs share. The latency of a class is from unit to unit,
  half of it each way. Switches are taken to be non-blocking.
- `<unit>.power` is rated power; the report multiplies it by the time of a step, as an estimate. `<link>.energy` is
  off until set.
- Every figure can be replaced by its key: `system.tile_edge.bandwidth = "9 TB/s"`.
- Interface processors at edges of the mesh bring in batches ([ingest.md](ingest.md)) and may join edges: see below.

## Topology

The edges of a mesh are open unless `[system]` (or `--set system.KEY=VALUE`, for a run or a stored one) joins them.

| key | value | what it does |
| --- | --- | --- |
| `wrap` | `"none"`, `"rows"`, `"columns"`, `"both"` | a link between the ends of every row, of every column, or both |
| `wrap_edge.bandwidth`, `wrap_edge.latency` | as `tile_edge` | figures of these links, a class of their own |
| `z_plane` | `false`, `true`, or edges such as `["west", "east"]` | Ethernet between their interface processors |

    [system]
    preset = "dojo-tray"
    wrap = "both"
    wrap_edge.latency = "500 ns"        # without it, what a link over the outermost boundary has
    z_plane = true                      # west and east

No published machine has wrap-around links; they are there to be tried. A line of devices needs three to be a ring. A
message goes the way round with the least latency (of two, the one with fewer hops; to the opposite side of an even
ring, by turns of the place that it is at), in each dimension by itself, so that a lone message is never later than
on the mesh, as long as these links are no slower. Around dead devices and links, of which links around the mesh may
be some, it takes the way with the least latency. Rings of collectives along whole rows or columns run once around,
with equal hops, where on a mesh they are folded, and an odd grid has a ring of single hops; unless links around the
mesh are slower than the slowest between, as over the edge of a single tile, and would hold up every chunk. With
routers of finite buffers, a packet that closes a ring goes up to virtual channels of its own, as around dead devices
([back-pressure.md](back-pressure.md)).

The Z-plane lets a message leave the mesh at an interface processor in the fewest hops from its source and come in at
one in the fewest hops from its destination (of several as near, by turns over source + destination), in four links:
to the interface processor, to the Ethernet switch, from it, to the device. Each has its capacity, in a class
`interface_edge` or `ethernet`. A message goes this way if it would, alone on all links, arrive sooner: latencies and
its bytes over the slowest link. On a tray, corner to corner is 2.6 us over the mesh and 1.7 us over Ethernet for one
byte; from 48 kB on, the mesh is sooner again. Published is one way of 1.3 us for the protocol, taken to be from one
interface processor to another; the switch is taken to be non-blocking, and without losses. Left out: that ingest and
spilled tensors use the links of interface processors too; multicast and reduction over Ethernet (trees stay on the
mesh); the Z-plane with routers of finite buffers or nodes as devices, which is refused; devices that dead ones part
from others stay parted.

`meshemu whatif` times a stored run with each of these ([study.md](study.md)).

"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, "## Grades\n\n", _table(("grade", "meaning"), GRADES.items()), "## Presets\n\n", _presets()]
    seen: set[tuple[str, Figure]] = set()
    for name in preset_names():
        for devices in (level.unit for level in preset(name).levels):
            fresh = [item for item in System.preset(name, devices).figures() if item not in seen]
            seen.update(fresh)
            if fresh:
                parts += [f"## Figures of {name}, devices = {devices}{' (further ones)' if len(parts) > 5 else ''}\n\n"]
                parts += [_figures(fresh)]
    parts += ["## Figures to choose between\n\n", _alternatives()]
    parts += ["Published totals beside the model's: [machine-model.md](machine-model.md), or `meshemu validate`.\n\n"]
    parts += ["## Published, not modelled\n\n", _figures(NOT_MODELLED)]
    return "".join(parts).rstrip() + "\n"


def _presets() -> str:
    systems = [System.preset(name) for name in preset_names()]
    return _table(
        ("preset", "what it is", "devices by default", "other granularities"),
        (
            (
                f"`{system.name}`",
                preset(system.name).summary,
                f"{system.rows} x {system.cols} {system.devices}s, {system.n_alive} alive",
                ", ".join(level.unit for level in system.levels if level.unit != system.devices),
            )
            for system in systems
        ),
    )


def _figures(figures: Iterable[tuple[str, Figure]]) -> str:
    return _table(
        ("key", "value", "grade", "source", "note"),
        ((f"`{key}`", figure.text(), figure.grade, figure.source, figure.note) for key, figure in figures),
    )


def _alternatives() -> str:
    alternatives = {choice: options for name in preset_names() for choice, options in preset(name).alternatives.items()}
    rows = (
        (f'`{choice} = "{option}"`', f"`{key}`", figure.text(), figure.grade, figure.source)
        for choice, options in alternatives.items()
        for option, figures in options.items()
        for key, figure in figures
    )
    text = 'The first option is the default; choose by `figures = {noc_width = "narrow"}`.\n\n'
    return text + _table(("option", "key", "value", "grade", "source"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


if __name__ == "__main__":
    main()
