"""Arguments of the timing functions: whole numbers in range, and an error that names the row where they are not."""

from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import InputError
from meshemu.mesh import Mesh

__all__ = ["LARGEST", "check_ends", "integers", "packet_size"]

LARGEST = 2**62  # of times in ps and of sizes in bytes


def integers(name: str, values: ArrayLike, row: str, least: int | None = None) -> NDArray[Any]:
    """`values` as an integer array of at most one dimension; row: what an error calls a row.

    least: the values are at least that and at most LARGEST, and the result is int64. None: their type stays.
    """
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    whole = array.dtype.kind in "iu" or (array.dtype == object and all(type(value) is int for value in array.flat))
    if not whole or array.ndim > 1:
        raise InputError(f"{name} must be one list of integers, not {array.dtype} of shape {array.shape}")
    if least is None:
        return array
    if not _within(array, least):
        for wrong, bound in ((array < least, f"least {least}"), (array > LARGEST, "most 2**62")):
            if wrong.any():
                at = int(np.argmax(wrong))
                raise InputError(f"{row} {at}: {name} = {array.flat[at]} must be at {bound}")
    return array.astype(np.int64, copy=False)


def _within(array: NDArray[Any], least: int) -> bool:
    """Whether all are at least `least` and at most LARGEST: one pass where the least is 0, as of times."""
    if array.size == 0:
        return True
    if least == 0 and array.dtype == np.int64:  # without its sign a negative number is a large one
        return bool(array.view(np.uint64).max() <= LARGEST)
    return bool(array.min() >= least and array.max() <= LARGEST)


def packet_size(packet_bytes: object) -> int:
    """The size of packets, an integer of at least 1."""
    try:
        size = index(packet_bytes)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if isinstance(packet_bytes, (bool, np.bool_)) or not 1 <= size <= LARGEST:
        raise InputError(f"packet_bytes = {packet_bytes!r} must be a whole number of at least 1 and at most 2**62")
    return size


def check_ends(mesh: Mesh, src: NDArray[Any], dst: NDArray[Any], to_self: bool) -> None:
    """Raise InputError, with the row, for what is no live device and, unless `to_self`, for one at both ends."""
    all_alive = bool(mesh.alive.all())
    for name, device in (("src", src), ("dst", dst)):
        if device.size and (device.min() < 0 or device.max() >= mesh.n_devices):
            at = int(np.argmax((device < 0) | (device >= mesh.n_devices)))
            raise InputError(f"row {at}: {name} = {device[at]} is no device, 0 <= {name} < {mesh.n_devices}")
        if not all_alive and not mesh.alive[device.astype(np.int64)].all():
            at = int(np.argmin(mesh.alive[device.astype(np.int64)]))
            raise InputError(f"row {at}: {name} = {device[at]} is dead ({mesh.place(int(device[at]))})")
    if not to_self and (src == dst).any():
        at = int(np.argmax(src == dst))
        raise InputError(f"row {at}: src = dst = {src[at]}, a message needs two devices")
