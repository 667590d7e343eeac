"""Flops and bytes of one op on one device's block of the tensors.

Flops of matrix products and convolutions are those of torch.utils.flop_counter: two per multiplication, none for the
bias or for padding. One difference: torch counts the weight gradient of a grouped convolution `groups` times too often
(as if every input channel met every output channel); here it is what a kernel does, the forward's count.
Bytes are each input read once and each output written once, unless a formula below says otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from meshemu.cost.op_classes import (
    ALLOCATIONS,
    ATTENTION,
    MOVEMENTS,
    OPTIMIZERS,
    PER_INPUT_ELEMENT,
    PER_OUTPUT_ELEMENT,
    POOLINGS,
    VIEWS,
    base_name,
)
from meshemu.errors import ScheduleError

__all__ = ["TensorSpec", "Work", "op_work"]


@dataclass(frozen=True)
class TensorSpec:
    """Shape of a block and bytes per element."""

    shape: tuple[int, ...]
    itemsize: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the block."""
        return self.n_elements * self.itemsize


@dataclass(frozen=True)
class Work:
    """What an op asks of a device: arithmetic, bytes read from and bytes written to its memory."""

    flops: int
    read_bytes: int
    write_bytes: int


Specs = Sequence[TensorSpec]
Attributes = Mapping[str, Any]


def op_work(op_class: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """The work of one op on blocks `inputs` -> `outputs` (tensors only, in the operator's order).

    Attributes are the operator's other arguments by their ATen names. Those that count: `transposed` (convolution,
    convolution_backward; False if absent), `output_mask` (convolution_backward; from the outputs if absent),
    `kernel_size` (pooling), `exponent` (pow), `weight_decay` (optimizer steps). Optimizer steps read
    (parameter, gradient, states ...) and write (parameter, states ...). An op class that is not listed counts as
    pointwise: one flop per element of its first output.

    Raises:
        ScheduleError: tensors that the op class cannot have.
    """
    name = base_name(op_class)
    if name in VIEWS or name in ALLOCATIONS:
        return Work(0, 0, 0)
    formula = _FORMULAS.get(name, _elementwise)
    try:
        return formula(name, inputs, outputs, attributes)
    except (IndexError, ValueError) as error:
        shapes = f"{[spec.shape for spec in inputs]} -> {[spec.shape for spec in outputs]}"
        raise ScheduleError(f"work of {op_class}: the shapes {shapes} do not fit ({error})") from error


def _elementwise(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Flops in proportion to the elements of the first input or the first output."""
    if name in MOVEMENTS:
        return _with_bytes(0, inputs, outputs)
    if name in PER_INPUT_ELEMENT:
        return _with_bytes(PER_INPUT_ELEMENT[name] * inputs[0].n_elements, inputs, outputs)
    elements = outputs[0].n_elements if outputs else 0
    return _with_bytes(PER_OUTPUT_ELEMENT.get(name, 1) * elements, inputs, outputs)


def _convolution(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Every position of the output (of the input, if transposed) meets every weight of the kernel."""
    x, weight = inputs[:2]
    return _with_bytes(_convolution_flops(x, outputs[0], weight, attributes), inputs, outputs)


def _convolution_backward(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Input and weight gradient cost a forward each; of one that is masked out, the other operand is not read."""
    grad_out, x, weight = inputs[:3]
    present = [spec.shape for spec in outputs]
    wants_input, wants_weight, *_ = attributes.get("output_mask", (x.shape in present, weight.shape in present))
    read = [grad_out] + [weight] * bool(wants_input) + [x] * bool(wants_weight)
    flops = (bool(wants_input) + bool(wants_weight)) * _convolution_flops(x, grad_out, weight, attributes)
    return _with_bytes(flops, read, outputs)


def _convolution_flops(x: TensorSpec, y: TensorSpec, weight: TensorSpec, attributes: Attributes) -> int:
    """Flops of the forward convolution x (N, C, ...) -> y (N, K, ...), weight (K, C / groups, ...) or transposed."""
    positions = x if attributes.get("transposed", False) else y
    return 2 * x.shape[0] * prod(positions.shape[2:]) * weight.n_elements


def _matrix_product(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """2 M N K for each matrix of the batch; the operands are the last two inputs."""
    a, b = inputs[-2:]
    b_shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    if a.shape[-1] != b_shape[-2]:
        raise ValueError(f"{a.shape[-1]} columns meet {b_shape[-2]} rows")
    return _with_bytes(2 * a.n_elements * b_shape[-1], inputs, outputs)


def _attention(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Two matrix products forward, five backward (the scores are made again); a causal mask saves nothing."""
    backward = name.endswith("_backward")
    query, key, value = inputs[1:4] if backward else inputs[:3]
    *batch_heads, n_queries, width = query.shape
    scores = prod(batch_heads) * n_queries * key.shape[-2]
    value_width = value.shape[-1]
    flops = 2 * scores * (3 * width + 2 * value_width if backward else width + value_width)
    return _with_bytes(flops, inputs, outputs)


def _pooling(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One comparison or addition per element of every window; the backward of a maximum follows its index instead.

    Without `kernel_size` the windows are taken to tile the larger of the two tensors.
    """
    backward = name.endswith("_backward")
    small, large = (inputs[0], outputs[0]) if backward else (outputs[0], inputs[0])
    if backward and name.startswith("max"):
        return _with_bytes(small.n_elements, [inputs[0], inputs[-1]], outputs)
    sides = attributes.get("kernel_size")
    if sides is None:
        flops = large.n_elements
    else:
        sides = [sides] if isinstance(sides, int) else list(sides)
        n_dims = int(name[name.index("pool") + len("pool")])
        flops = small.n_elements * (prod(sides) if len(sides) == n_dims else sides[0] ** n_dims)
    return _with_bytes(flops, inputs[:1], outputs)


def _embedding(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Rows are copied: of the table, only those are read that are asked for."""
    indices = inputs[-1]
    return Work(0, indices.size_bytes + outputs[0].size_bytes, outputs[0].size_bytes)


def _scatter_add(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One addition per element of the gradient, into zeros."""
    return _with_bytes(inputs[0].n_elements, inputs, outputs)


def _scatter_source(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One addition or comparison per element of what is scattered, the last input; the rest is copied."""
    return _with_bytes(inputs[-1].n_elements, inputs, outputs)


def _distances(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Subtract, square and add per coordinate of every pair of points; backward a division more."""
    backward = name.endswith("_backward")
    points, others = inputs[1:3] if backward else inputs[:2]
    return _with_bytes((5 if backward else 3) * points.n_elements * others.shape[-2], inputs, outputs)


def _gather(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Elements are copied: of the source, only those are read that are asked for."""
    indices = sum(spec.size_bytes for spec in inputs[1:])
    return Work(0, indices + outputs[0].size_bytes, outputs[0].size_bytes)


def _nll_loss(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One element per target is picked and added."""
    log_probabilities, targets = inputs[:2]
    picked_bytes = targets.n_elements * log_probabilities.itemsize
    return Work(targets.n_elements, targets.size_bytes + picked_bytes, sum(spec.size_bytes for spec in outputs))


def _nll_loss_backward(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One element per target is set, in zeros; the log probabilities are not read."""
    grad_out, _, targets = inputs[:3]
    written = sum(spec.size_bytes for spec in outputs)
    return Work(targets.n_elements, grad_out.size_bytes + targets.size_bytes, written)


def _pow(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """A square or a cube is multiplications; other powers are an exponential of a logarithm."""
    exponent = attributes.get("exponent")
    per_element = int(exponent) - 1 if exponent in (2, 3) else PER_OUTPUT_ELEMENT["pow"]
    return _with_bytes(per_element * outputs[0].n_elements, inputs, outputs)


def _sort(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """log2(n) comparisons per element, n along the last dim."""
    n = inputs[0].shape[-1] if inputs[0].shape else 1
    return _with_bytes(inputs[0].n_elements * max(1, (n - 1).bit_length()), inputs, outputs)


def _optimizer(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """A fixed number of flops per parameter; every state is read and written."""
    flops, decay_flops, n_states = OPTIMIZERS[name]
    if (len(inputs), len(outputs)) != (2 + n_states, 1 + n_states):
        raise ValueError(f"{name} has {2 + n_states} inputs and {1 + n_states} outputs")
    per_parameter = flops + (decay_flops if attributes.get("weight_decay", 0) else 0)
    return _with_bytes(per_parameter * outputs[0].n_elements, inputs, outputs)


def _square_sum(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Every element of every input is squared and added."""
    return _with_bytes(2 * sum(spec.n_elements for spec in inputs), inputs, outputs)


def _clip_scale(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Every element of every output is multiplied by the coefficient."""
    return _with_bytes(sum(spec.n_elements for spec in outputs), inputs, outputs)


def _with_bytes(flops: int, read: Specs, written: Specs) -> Work:
    """`flops`, with every block of `read` read once and every one of `written` written once."""
    return Work(flops, sum(spec.size_bytes for spec in read), sum(spec.size_bytes for spec in written))


_FORMULAS: Mapping[str, Callable[[str, Specs, Specs, Attributes], Work]] = MappingProxyType({
    **dict.fromkeys(("mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv", "dot"), _matrix_product),
    **dict.fromkeys(ATTENTION, _attention),
    "convolution": _convolution, "convolution_backward": _convolution_backward,
    **dict.fromkeys(POOLINGS, _pooling),
    "embedding": _embedding, "embedding_dense_backward": _scatter_add,
    "index": _gather, "index_select": _gather, "gather": _gather,
    "nll_loss_forward": _nll_loss, "nll_loss2d_forward": _nll_loss,
    "nll_loss_backward": _nll_loss_backward, "nll_loss2d_backward": _nll_loss_backward,
    "pow": _pow, **dict.fromkeys(("argsort", "sort", "topk", "kthvalue", "median", "mode", "nanmedian"), _sort),
    **dict.fromkeys(("scatter_add", "scatter_reduce", "index_add"), _scatter_source),
    "_cdist_forward": _distances, "_cdist_backward": _distances,
    **dict.fromkeys(OPTIMIZERS, _optimizer),
    "square_sum": _square_sum, "clip_scale": _clip_scale,
})  # fmt: skip
