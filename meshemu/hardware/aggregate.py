"""From the figures of one unit to the DeviceSpec of a device made of many, and from a DeviceSpec to figures."""

from collections.abc import Mapping

from meshemu.hardware.device import DeviceSpec
from meshemu.hardware.figure import Figure

__all__ = ["device_spec", "spec_figures"]

_SIDES = ("m", "n", "k")


def device_spec(figures: Mapping[str, Figure], unit: str, n_units: int, name: str) -> DeviceSpec | None:
    """What `n_units` live units can do together; None where the figures say nothing of a unit's compute.

    Reads `<unit>.sram`, `.load_bandwidth`, `.store_bandwidth`, `.matrix.<format>`, `.vector.<format>` (FLOP/s, or
    FLOP/clk with `<unit>.clock`), and the costs per op of a device, `op_launch` and `combine`. Where there are any,
    also `<unit>.matrix_unit.m`, `.n`, `.k`, `<unit>.vector_width` and `<unit>.ingest_bandwidth`, all three of a node.
    """
    if f"{unit}.sram" not in figures:
        return None
    return DeviceSpec(
        name=name,
        n_nodes=n_units * (figures[f"{unit}.nodes"].number if f"{unit}.nodes" in figures else 1),
        matrix_flops_per_s=_rates(figures, unit, "matrix", n_units),
        vector_flops_per_s=_rates(figures, unit, "vector", n_units),
        sram_bytes=n_units * figures[f"{unit}.sram"].number,
        load_bytes_per_s=n_units * figures[f"{unit}.load_bandwidth"].number,
        store_bytes_per_s=n_units * figures[f"{unit}.store_bandwidth"].number,
        op_launch_ps=figures["op_launch"].number,
        combine_ps=figures["combine"].number,
        matrix_unit=_matrix_unit(figures, unit),
        vector_bytes=figures[f"{unit}.vector_width"].number if f"{unit}.vector_width" in figures else 0,
        ingest_bytes_per_s=figures[f"{unit}.ingest_bandwidth"].number if f"{unit}.ingest_bandwidth" in figures else 0,
    )


def spec_figures(spec: DeviceSpec, unit: str, source: str, grade: str) -> list[tuple[str, Figure]]:
    """The figures from which `device_spec` makes `spec` again."""
    values: list[tuple[str, int, str]] = [
        (f"{unit}.nodes", spec.n_nodes, "count"),
        *((f"{unit}.matrix.{name}", rate, "FLOP/s") for name, rate in spec.matrix_flops_per_s.items()),
        *((f"{unit}.vector.{name}", rate, "FLOP/s") for name, rate in spec.vector_flops_per_s.items()),
        (f"{unit}.sram", spec.sram_bytes, "B"),
        (f"{unit}.load_bandwidth", spec.load_bytes_per_s, "B/s"),
        (f"{unit}.store_bandwidth", spec.store_bytes_per_s, "B/s"),
        ("op_launch", spec.op_launch_ps, "ps"),
        ("combine", spec.combine_ps, "ps"),
    ]
    if spec.matrix_unit is not None:
        sides = zip(_SIDES, spec.matrix_unit, strict=True)
        values += [(f"{unit}.matrix_unit.{side}", length, "count") for side, length in sides]
        values.append((f"{unit}.vector_width", spec.vector_bytes, "B"))
        values.append((f"{unit}.ingest_bandwidth", spec.ingest_bytes_per_s, "B/s"))
    return [(key, Figure(value, kind, source, grade)) for key, value, kind in values]


def _matrix_unit(figures: Mapping[str, Figure], unit: str) -> tuple[int, int, int] | None:
    """The sides of a node's matrix unit, None where they are not known."""
    if f"{unit}.matrix_unit.m" not in figures:
        return None
    m, n, k = (figures[f"{unit}.matrix_unit.{side}"].number for side in _SIDES)
    return m, n, k


def _rates(figures: Mapping[str, Figure], unit: str, pipe: str, n_units: int) -> dict[str, int]:
    """FLOP/s by number format."""
    prefix = f"{unit}.{pipe}."
    return {
        key.removeprefix(prefix): n_units * figure.number * (
            figures[f"{unit}.clock"].number if figure.unit == "FLOP/clk" else 1
        )
        for key, figure in figures.items()
        if key.startswith(prefix)
    }
