"""Sort the parameters of a model into groups with options of their own, by globs over their names."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from meshemu.errors import InputError

__all__ = ["grouped"]


def grouped(model: nn.Module, globs: Sequence[str], section: str) -> list[list[nn.Parameter]]:
    """The trainable parameters that match each glob and no earlier one, then those that match none.

    A glob matches the whole dotted name; * also spans dots. A tied parameter has several names, and each counts.

    Raises:
        InputError: a glob matches no trainable parameter, or only such as an earlier one has taken.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    groups: list[list[nn.Parameter]] = [[] for _ in globs]
    rest: list[nn.Parameter] = []
    for parameter, aliases in names.items():
        matching = (i for i, glob in enumerate(globs) if any(fnmatchcase(name, glob) for name in aliases))
        first = next(matching, None)
        (rest if first is None else groups[first]).append(parameter)
    for i, (glob, members) in enumerate(zip(globs, groups, strict=True)):
        if not members:
            raise InputError(f"{section}[{i}].match = {glob!r} {_reason(glob, model, names)}")
    return [*groups, rest]


def _reason(glob: str, model: nn.Module, trainable: Mapping[nn.Parameter, Sequence[str]]) -> str:
    aliases = [name for names in trainable.values() for name in names]
    if any(fnmatchcase(name, glob) for name in aliases):
        return "matches only parameters that an earlier group has"
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if any(fnmatchcase(name, glob) for name in every):
        return "matches only parameters that are frozen"
    few = ", ".join(aliases[:4]) + (f" and {len(aliases) - 4} more" if len(aliases) > 4 else "")
    return f"matches no parameter; there are {few}"
