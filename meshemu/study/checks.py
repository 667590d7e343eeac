"""What `meshemu validate` compares: each published figure with how the model comes to its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from meshemu.hardware import Figure, System
from meshemu.hardware.published import EXACT, NOT_MODELLED, RESULTS, TOTALS, wafer_chain_reduce
from meshemu.study import experiments
from meshemu.study.quantities import model_value

__all__ = ["CALIBRATED", "KINDS", "PREDICTED", "UNMODELLED", "Check", "Machine", "checks"]

PREDICTED = "predicted"
CALIBRATED = "calibrated"
UNMODELLED = "not modelled"

KINDS = {
    EXACT: "a sum or product of published inputs; it must agree to the rounding of the source",
    "inferred": "inputs that nobody published were chosen with this figure in view: no evidence for the model",
    CALIBRATED: "a constant was fitted to this figure: no evidence for the model",
    PREDICTED: "nothing was fitted to this figure",
    UNMODELLED: "published, but not part of the model",
}


class Machine(Protocol):
    """Makes the preset of a name, at a granularity, with a choice of figures."""

    def __call__(self, name: str, devices: str | None = None, figures: dict[str, str] | None = None) -> System:
        """The system; InputError as `System.preset`."""


@dataclass(frozen=True)
class Check:
    """A figure to compare. model: its value by the model, in the figure's unit; None if there is none."""

    quantity: str
    published: Figure
    kind: str
    model: Callable[[], int] | None
    tolerance: float = 0.0
    note: str = ""


def checks(machine: Machine) -> Iterator[Check]:
    """All checks, on the systems that `machine` makes."""
    for known in TOTALS:
        value = partial(_total, machine, known.preset, known.quantity)
        name = f"{known.preset} {known.quantity}"
        yield Check(name, known.figure, known.kind, value, known.tolerance, known.figure.note)
    yield from _traffic(machine)
    yield from _all_reduces(machine)
    yield from _wafer(machine)
    for quantity, figure in NOT_MODELLED:
        yield Check(quantity, figure, UNMODELLED, None, note=figure.note)


def _total(machine: Machine, preset: str, quantity: str) -> int:
    return model_value(machine(preset), quantity)


def _traffic(machine: Machine) -> Iterator[Check]:
    notes = {"dojo-die": "detours around the six dead nodes crowd the columns beside them"}
    for known in TOTALS:
        if known.quantity == "bisection":
            rate = partial(_of, experiments.bisection_traffic_bytes_per_s, machine, known.preset)
            name = f"{known.preset} traffic across the middle"
            yield Check(name, known.figure, PREDICTED, rate, note=notes.get(known.preset, "XY routes, all at once"))


def _all_reduces(machine: Machine) -> Iterator[Check]:
    size = f"{experiments.BATCH_NORM_BYTES} B"
    yield Check(
        "dojo-tile batch-norm all-reduce, 25 dies", RESULTS["all-reduce dojo-tile"], CALIBRATED,
        partial(_of, experiments.all_reduce_ps, machine, "dojo-tile"),
        note=f"{size}; the cost of a combination was fitted to it",
    )  # fmt: skip
    for protocol in ("ll", "ll128", "simple"):
        yield Check(
            f"a100-24 batch-norm all-reduce, 24 GPUs, {protocol}", RESULTS["all-reduce a100-24"], PREDICTED,
            partial(_of, experiments.all_reduce_ps, machine, "a100-24", {"protocol": protocol}),
            note=f"{size}; latencies of NCCL's steps alone: launches and software are left out",
        )  # fmt: skip
    for key, protocol in (("best", "ll"), ("NCCL", "simple")):
        yield Check(
            f"a100-8 all-reduce, {protocol}", RESULTS[f"all-reduce a100-8 {key}"], PREDICTED,
            partial(_of, experiments.all_reduce_ps, machine, "a100-8", {"protocol": protocol}),
            note=f"{size}; {RESULTS[f'all-reduce a100-8 {key}'].note}",
        )  # fmt: skip
    one_way = RESULTS["one way nvlink"]
    yield Check(
        "a100-8 one way", one_way, PREDICTED, partial(_of, experiments.one_way_ps, machine, "a100-8"),
        note="by protocol LL; the published one has software in it",
    )  # fmt: skip


def _wafer(machine: Machine) -> Iterator[Check]:
    across = RESULTS["across wse2-wafer"]
    yield Check(
        "wse2-wafer edge to edge", across, PREDICTED,
        lambda: experiments.across_ps(machine("wse2-wafer", "block")), note="1078 cores, a cycle each",
    )  # fmt: skip
    for n_cores, n_wavelets in ((16, 64), (64, 256), (64, 1024)):
        for additions in (False, True):
            words = "with additions" if additions else "additions free"
            yield Check(
                f"wse2-die reduce along {n_cores} cores, {n_wavelets} wavelets, {words}, cycles",
                wafer_chain_reduce(n_cores, n_wavelets), PREDICTED,
                partial(_chain, machine, n_cores, n_wavelets, additions),
                note="published: a model that hardware meets within 4 %",
            )  # fmt: skip


def _of(measure: Callable[[System], int], machine: Machine, name: str, figures: dict[str, str] | None = None) -> int:
    return measure(machine(name, None, figures))


def _chain(machine: Machine, n_cores: int, n_wavelets: int, additions: bool) -> int:
    system = machine("wse2-die", "core")
    return experiments.chain_reduce_cycles(n_cores, n_wavelets, additions=additions, system=system)
