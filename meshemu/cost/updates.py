"""What the optimizer's step of one parameter asks of a device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from meshemu.cost.op_classes import OPTIMIZERS
from meshemu.cost.work import TensorSpec, Work, op_work

__all__ = ["Update"]

_SECOND_MOMENTS: Mapping[str, int] = MappingProxyType({
    **dict.fromkeys(("adam", "adamw", "nadam", "nadamw", "radam", "radamw", "adamax", "adagrad"), 1),
    **dict.fromkeys(("adam_amsgrad", "adamw_amsgrad", "adadelta"), 2),
    **dict.fromkeys(("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum"), 1),
})  # fmt: skip
"""Op class of an optimizer -> how many of its state tensors hold squares or magnitudes, which are never negative."""


@dataclass(frozen=True)
class Update:
    """op_class: one of OPTIMIZERS. weight_decay: whether the parameter decays. state_itemsizes: bytes of an element of
    each state tensor; without them states have the number format of the parameter.
    """

    op_class: str
    weight_decay: bool = False
    state_itemsizes: tuple[int, ...] | None = None

    @property
    def n_states(self) -> int:
        """Tensors of the parameter's shape that the optimizer keeps."""
        return OPTIMIZERS[self.op_class][2]

    def stored(self, itemsize: int, second_moment_itemsize: int) -> "Update":
        """The same with so many bytes for an element of a state; second moments are those that are never negative."""
        n_second = _SECOND_MOMENTS.get(self.op_class, 0)
        sizes = (itemsize,) * (self.n_states - n_second) + (second_moment_itemsize,) * n_second
        return replace(self, state_itemsizes=sizes)

    def work(self, parameter: TensorSpec, gradient: TensorSpec | None = None) -> Work:
        """The work of stepping one block of the parameter; `gradient` and states are blocks of its shape."""
        sizes = self.state_itemsizes or (parameter.itemsize,) * self.n_states
        states = [TensorSpec(parameter.shape, itemsize) for itemsize in sizes]
        attributes = {"weight_decay": float(self.weight_decay)}
        return op_work(self.op_class, [parameter, gradient or parameter, *states], [parameter, *states], attributes)
