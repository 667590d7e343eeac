"""What can be chosen for one plan besides its axes: where they lie, how a pipeline flows, collectives and overlap."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from meshemu.config.schema import Timing
from meshemu.study.study_file import as_toml
from meshemu.study.tuning_space import n_devices, sharded

__all__ = ["COLLECTIVES", "IN_NETWORK", "Choice", "Options"]

COLLECTIVES = ("auto", "ring", "rows_columns", "tree")
"""auto: the fastest by formula for the size of each message."""

IN_NETWORK = "in_network"
"""Where routers fork and merge messages."""

ROUTINGS = ("xy", "yx")
PREFETCH = (0, 1, 2, 4)
ORDERS = ("1f1b", "gpipe")
PARTS_OF_GRADIENTS = (2, 4, 8)
"""Buckets of so many parts of all gradients, beside one for all."""


@dataclass(frozen=True)
class Choice:
    """What is chosen. plan: one line of TOML, with the placement and the cuts; the others as in [timing]."""

    plan: str
    collective: str
    bucket_bytes: int
    prefetch: int
    routing: str

    @classmethod
    def of(cls, table: Mapping[str, Any], timing: Timing) -> "Choice":
        """A plan with what a configuration says otherwise."""
        return cls(as_toml(table), timing.collective, timing.bucket_bytes, timing.prefetch, timing.routing)

    def timing(self, timing: Timing) -> Timing:
        """The section with this choice."""
        changes = {"collective": self.collective, "bucket_bytes": self.bucket_bytes, "prefetch": self.prefetch}
        return timing.model_copy(update={**changes, "routing": self.routing})


@dataclass(frozen=True)
class Options:
    """The alternatives for one plan: key -> values, of which the first is what the plan and the configuration have.

    Keys: layout and stages (tables that change the plan's), replicas (ZeRO level, None for whole ones, and prefetch),
    order, collective, bucket_bytes, routing.
    """

    table: Mapping[str, Any]
    values: Mapping[str, Sequence[Any]]

    @classmethod
    def of(
        cls,
        table: Mapping[str, Any],
        timing: Timing,
        *,
        layouts: Sequence[Mapping[str, Any]],
        cuts: Sequence[tuple[str, ...]],
        collectives: Sequence[str],
        gradient_bytes: int,
    ) -> "Options":
        """layouts, cuts: alternatives to those of the plan (`placements`, `stage_cuts`). gradient_bytes: of all.

        One device alone has none: it sends nothing.
        """
        if n_devices(table) == 1:
            return cls(table, {})
        given: dict[str, Sequence[Any]] = {
            "layout": [{}, *layouts],
            "stages": [{}, *({"stages": list(names)} for names in cuts)],
            "order": [table.get("order", ORDERS[0]), *ORDERS] if "pipeline" in table else [],
            "collective": [timing.collective, *collectives],
            "bucket_bytes": _buckets(timing.bucket_bytes, gradient_bytes),
            "replicas": _replicas(table, timing.prefetch),
            "routing": [timing.routing, *ROUTINGS],
        }
        return cls(table, {key: _distinct(values) for key, values in given.items() if len(_distinct(values)) > 1})

    @property
    def count(self) -> int:
        """How many combinations there are."""
        return prod(len(values) for values in self.values.values())

    def all(self) -> Iterator[dict[str, int]]:
        """Every combination, as numbers of values."""
        for numbers in product(*(range(len(values)) for values in self.values.values())):
            yield dict(zip(self.values, numbers, strict=True))

    def single_changes(self) -> Iterator[dict[str, int]]:
        """Combinations that differ from the first in one key: the first alternative of each key, then the second."""
        usual = dict.fromkeys(self.values, 0)
        for number in range(1, max(map(len, self.values.values()), default=1)):
            yield from ({**usual, key: number} for key, values in self.values.items() if number < len(values))

    def choice(self, numbers: Mapping[str, int], timing: Timing) -> tuple[Choice, dict[str, Any]]:
        """A combination, and its plan as a table."""
        chosen = {key: values[numbers[key]] for key, values in self.values.items()}
        table = {**self.table, **chosen.pop("layout", {}), **chosen.pop("stages", {})}
        replicas = chosen.pop("replicas", None)
        if numbers.get("replicas"):
            zero, chosen["prefetch"] = replicas
            table = sharded(table, zero)
        order = chosen.pop("order", None)
        if order is not None and order != table.get("order", ORDERS[0]):
            table["order"] = order
        return Choice.of(table, timing.model_copy(update=chosen)), table


def _replicas(table: Mapping[str, Any], prefetch: int) -> list[tuple[int | None, int]]:
    """(ZeRO level, prefetch) of the plan, and the others if it has replicas of one kind."""
    if ("data" in table) == ("shard" in table):
        return []
    levels = [(None, prefetch), (2, prefetch), (1, prefetch), *((3, ahead) for ahead in (prefetch, *PREFETCH))]
    return [(table.get("zero", 3) if "shard" in table else None, prefetch), *levels]


def _buckets(own_bytes: int, gradient_bytes: int) -> list[int]:
    """The size at hand and parts of all gradients; sizes that all gradients fit into are the same choice."""
    sizes = [-(-gradient_bytes // parts) for parts in PARTS_OF_GRADIENTS if gradient_bytes >= parts]
    whole = [] if own_bytes >= gradient_bytes else [gradient_bytes]
    return [own_bytes, *whole, *sizes]


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]
