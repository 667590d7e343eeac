"""Which stream of random bits each rounding of a step draws from, so that what is made again is rounded the same way.

Streams are numbered in the order in which roundings are written down. A rounding is known by what is rounded, and a
value by how it came to be: the operator and micro-batch whose result it is, and what was done to it since. An operator
that repeats another has the name of the other, so its values have the same names, and their roundings the same numbers.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

from torch import fx

from meshemu.workload.spmd import Value

__all__ = ["Streams"]

SALT = 1 << 40
"""Of the first stream of random bits; random operators of the model have smaller ones."""

Name = tuple[Hashable, ...]


class Streams:
    """Names of values and numbers of streams. copies: operator -> the one that it repeats."""

    def __init__(self, copies: Mapping[fx.Node, fx.Node]) -> None:
        self._copies = copies
        self._names: dict[int, Name] = {}
        self._operator: Name = ()
        self._repeats = False
        self._n_before = 0
        self._n_unnamed: Counter[Name] = Counter()
        self._n_lowered: Counter[Name] = Counter()
        self._n_asked: Counter[tuple[int, Hashable]] = Counter()
        self._numbers: dict[Name, tuple[int, int]] = {}  # and the first value that asked
        self._first: dict[Name, int] = {}
        self._n_streams = 0

    def begin(self, node: fx.Node, micro_batch: int) -> None:
        """What comes is written down for this operator, until `end`."""
        original = self._copies.get(node)
        known: Name = ((original or node).name, micro_batch)
        self._repeats, self._n_before = original is not None, self._n_streams
        self._operator = (*known, 0 if self._repeats else self._n_lowered[known])
        self._n_lowered[known] += not self._repeats
        self._n_unnamed[self._operator] = 0

    def end(self, results: Iterable[Value]) -> None:
        """The operator has these results."""
        for place, value in enumerate(results):
            self._names.setdefault(value.id, (*self._operator, place))
        self._operator, self._repeats = (), False

    def derived(self, source: Value, output: Value, how: Hashable) -> None:
        """`output` is what became of `source`."""
        self._names.setdefault(output.id, (self._name(source), how, self._next(source, (how, "derived"))))

    def number(self, what: str, value: Value) -> int:
        """The seed's part that tells this rounding of `value` from others; what: it is rounded for."""
        asked = (what, self._name(value), self._next(value, what))
        if asked not in self._numbers:
            self._n_streams += 1
            self._numbers[asked] = self._n_streams, value.id
        return SALT + self._numbers[asked][0]

    def first(self, value: Value) -> int:
        """The id of the first value of this name."""
        return self._first.setdefault(self._name(value), value.id)

    def roll_back(self, n_values: int) -> None:
        """Forget values from this number on. What an operator asked for that repeats another has not been asked."""
        self._names = {i: name for i, name in self._names.items() if i < n_values}
        self._numbers = {asked: (n, i) for asked, (n, i) in self._numbers.items() if i < n_values}
        self._first = {name: i for name, i in self._first.items() if i < n_values}
        self._n_asked = Counter({key: n for key, n in self._n_asked.items() if key[0] < n_values})
        if self._repeats:
            self._n_streams = self._n_before

    def _name(self, value: Value) -> Name:
        if value.id not in self._names:
            self._names[value.id] = (*self._operator, "within", self._n_unnamed[self._operator])
            self._n_unnamed[self._operator] += 1
        return self._names[value.id]

    def _next(self, value: Value, what: Hashable) -> int:
        """How often this has been asked before."""
        number = self._n_asked[value.id, what]
        self._n_asked[value.id, what] += 1
        return number
