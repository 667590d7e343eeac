"""The built-in data sets by name, and data from a file of the user's."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from meshemu.errors import InputError
from meshemu.workload.arguments import check_arguments
from meshemu.workload.data.dataset import Dataset, stored_dataset
from meshemu.workload.data.digits import digits
from meshemu.workload.data.driving import driving_scenes
from meshemu.workload.data.python_source import python_source
from meshemu.workload.data.synthetic import random_images, random_tokens
from meshemu.workload.user_function import call_user_function, is_file_reference

__all__ = ["DATASETS", "load_dataset", "load_from_file"]

DATASETS: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": digits,
        "driving_scenes": driving_scenes,
        "python_source": python_source,
        "random_images": random_images,
        "random_tokens": random_tokens,
    }
)


def load_dataset(name: str, args: Mapping[str, Any]) -> Dataset:
    """Load the data set `name`, one of DATASETS or "file.py:function", with keyword arguments `args`.

    Raises:
        InputError: an unknown name or argument, or a user's file that fails.
    """
    if is_file_reference(name):
        return load_from_file(name, args)
    if name not in DATASETS:
        raise InputError(f"data '{name}' is unknown; valid: {', '.join(DATASETS)}, or file.py:function")
    check_arguments(f"data {name}", DATASETS[name], args)
    return DATASETS[name](**args)


def load_from_file(reference: str, args: Mapping[str, Any]) -> Dataset:
    """The data that the user's function, "file.py:function", returns for the keyword arguments `args`.

    It returns a Dataset, or (train_inputs, train_targets, test_inputs, test_targets): each a tensor, or a nest of
    tensors where a model takes several inputs or has several heads.

    Raises:
        InputError: the file, the function or the call fails, or what it returns is neither.
    """
    data = call_user_function(reference, args)
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, tuple | list) or len(data) != 4 or not all(_is_nest_of_tensors(part) for part in data):
        raise InputError(
            f"'{reference}': must return four tensors (train_inputs, train_targets, test_inputs, test_targets), "
            f"not {_describe(data)}"
        )
    for leaf in pytree.tree_leaves(list(data)):
        if leaf.device.type != "cpu":
            raise InputError(f"'{reference}': a tensor is on device {leaf.device}: meshemu runs the maths on the CPU")
    train_inputs, train_targets, test_inputs, test_targets = data
    return stored_dataset(
        train_inputs=train_inputs, train_targets=train_targets, test_inputs=test_inputs, test_targets=test_targets,
        n_classes=_count_classes(train_targets, test_targets), description=reference,
    )


def _is_nest_of_tensors(part: Any) -> bool:
    leaves = pytree.tree_leaves(part)
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)


def _count_classes(*targets: Any) -> int | None:
    """One more than the greatest class number, or None where targets are not one tensor of whole numbers."""
    if not all(isinstance(target, Tensor) for target in targets):
        return None
    if any(target.is_floating_point() or target.is_complex() or target.numel() == 0 for target in targets):
        return None
    return 1 + max(int(target.max()) for target in targets)


def _describe(value: object) -> str:
    """The type of a value, with the types of its parts where it is a sequence."""
    if isinstance(value, tuple | list):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__
