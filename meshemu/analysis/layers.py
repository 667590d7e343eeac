"""What bounds each layer: the compute of every module of the model, forward and backward together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.cost import CostOptions
from meshemu.cost.duration import BOUNDS, bounds
from meshemu.hardware import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["DEPTH", "Layer", "layer_of", "layers"]

_I64 = NDArray[np.int64]

DEPTH = 2
"""Parts of a module's dotted name that tell layers apart: "blocks.0" for "blocks.0.attention.query"."""


@dataclass(frozen=True)
class Layer:
    """COMPUTE ops of one layer. device_ps: their time on all devices. op_class: the class with most of it. bound: what
    bounds most of it, one of cost.BOUNDS, and share, how much of it.
    """

    name: str
    ops: int
    device_ps: int
    op_class: str
    bound: str
    share: float


def layer_of(label: str) -> str:
    """The layer of an op by its label, "module:node"; "" for what belongs to no module."""
    module, colon, _ = label.partition(":")
    return ".".join(module.split(".")[:DEPTH]) if colon else ""


def layers(
    program: Program, device: DeviceSpec, duration_ps: _I64, options: CostOptions | None = None
) -> list[Layer]:
    """Every layer whose compute takes time, in the order of the forward pass; duration_ps: int64[n_ops]."""
    codes = bounds(program, device, options or CostOptions())
    names = list(dict.fromkeys(map(layer_of, program.labels)))
    place = {name: i for i, name in enumerate(names)}
    by_label = np.array([place[layer_of(label)] for label in program.labels], np.int64)
    timed = np.flatnonzero((program.kind == OpKind.COMPUTE) & (duration_ps > 0))
    layer, taken = by_label[program.label[timed]], duration_ps[timed]
    of_class = np.zeros((len(names), len(program.op_classes)), np.int64)
    of_bound = np.zeros((len(names), len(BOUNDS)), np.int64)
    np.add.at(of_class, (layer, program.op_class[timed]), taken)
    np.add.at(of_bound, (layer, codes[timed]), taken)
    ops, total = np.bincount(layer, minlength=len(names)), of_bound.sum(axis=1)
    return [
        Layer(
            name=name,
            ops=int(ops[i]),
            device_ps=int(total[i]),
            op_class=program.op_classes[int(of_class[i].argmax())],
            bound=BOUNDS[int(of_bound[i].argmax())],
            share=float(of_bound[i].max() / total[i]),
        )
        for i, name in enumerate(names)
        if total[i]
    ]
