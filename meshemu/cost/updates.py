"""What the optimizer's step of one parameter asks of a device."""

from dataclasses import dataclass

from meshemu.cost.op_classes import OPTIMIZERS
from meshemu.cost.work import TensorSpec, Work, op_work

__all__ = ["Update"]


@dataclass(frozen=True)
class Update:
    """op_class: one of OPTIMIZERS. weight_decay: whether the parameter decays."""

    op_class: str
    weight_decay: bool = False

    @property
    def n_states(self) -> int:
        """Tensors of the parameter's shape that the optimizer keeps."""
        return OPTIMIZERS[self.op_class][2]

    def work(self, block: TensorSpec) -> Work:
        """The work of stepping one block of the parameter; gradient and states are blocks like it."""
        states = [block] * self.n_states
        attributes = {"weight_decay": float(self.weight_decay)}
        return op_work(self.op_class, [block, block, *states], [block, *states], attributes)
