"""Flops and bytes of one op on one device's block of the tensors.

Flops of matrix products and convolutions are those of torch.utils.flop_counter: two per multiplication, none for the
bias or for padding. One difference: torch counts the weight gradient of a grouped convolution `groups` times too often
(as if every input channel met every output channel); here it is what a kernel does, the forward's count.
Bytes are each input read once and each output written once, unless a formula below says otherwise.
Shapes say what the flops are over, for devices whose units fit some shapes better than others: matrix products, of
which a convolution is one by its implicit form (rows are output positions, columns output channels, the sum runs over
input channels and kernel positions, groups are a batch), or the elements of the op's largest tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from meshemu.program.ir import Shape

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
    """What an op asks of a device: arithmetic, bytes read from and bytes written to its memory.

    shape: what the arithmetic is over, as in a Program; empty where it is not known. It follows from the op, so that
    works are equal if their amounts are.
    """

    flops: int
    read_bytes: int
    write_bytes: int
    shape: Shape = field(default=(), compare=False)


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
    flops = _convolution_flops(x, outputs[0], weight, attributes)
    groups, positions, inner, outer, kernel = _implicit(x, outputs[0], weight, attributes)
    product = (groups, positions, outer, inner * kernel, x.n_elements, weight.n_elements)
    return _with_bytes(flops, inputs, outputs, _products(product))


def _convolution_backward(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Input and weight gradient cost a forward each; of one that is masked out, the other operand is not read."""
    grad_out, x, weight = inputs[:3]
    present = [spec.shape for spec in outputs]
    wants_input, wants_weight, *_ = attributes.get("output_mask", (x.shape in present, weight.shape in present))
    read = [grad_out] + [weight] * bool(wants_input) + [x] * bool(wants_weight)
    flops = (bool(wants_input) + bool(wants_weight)) * _convolution_flops(x, grad_out, weight, attributes)
    groups, positions, inner, outer, kernel = _implicit(x, grad_out, weight, attributes)
    of_input = (groups, positions, inner, outer * kernel, grad_out.n_elements, weight.n_elements)
    of_weight = (groups, outer, inner * kernel, positions, grad_out.n_elements, x.n_elements)
    wanted = [of_input] * bool(wants_input) + [of_weight] * bool(wants_weight)
    return _with_bytes(flops, read, outputs, _products(*wanted))


def _implicit(
    x: TensorSpec, y: TensorSpec, weight: TensorSpec, attributes: Attributes
) -> tuple[int, int, int, int, int]:
    """(groups, positions, input channels of a group, output channels of a group, kernel positions) of x -> y.

    Positions are those that meet every weight: of the output, or of the input if transposed. Their product with the
    others is half the flops, also for blocks whose channels are no whole groups: these count as one group.
    """
    transposed = bool(attributes.get("transposed", False))
    own, shared = weight.shape[:2]
    positions = x.shape[0] * prod((x if transposed else y).shape[2:])
    channels = (y if transposed else x).shape[1]
    groups = max(1, channels // shared) if shared else 1
    if own % groups:
        groups = 1
    inner, outer = (own // groups, shared) if transposed else (shared, own // groups)
    return groups, positions, inner, outer, prod(weight.shape[2:])


def _products(*products: tuple[int, ...]) -> Shape:
    """Those with something to multiply."""
    return tuple(product for product in products if prod(product[:4]))


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
    rows = a.shape[-2] if len(a.shape) > 1 else 1
    product = (prod(a.shape[:-2]), rows, b_shape[-1], a.shape[-1], a.n_elements, b.n_elements)
    return _with_bytes(2 * a.n_elements * b_shape[-1], inputs, outputs, _products(product))


def _attention(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Two matrix products forward, five backward (the scores are made again); a causal mask saves nothing."""
    backward = name.endswith("_backward")
    query, key, value = inputs[1:4] if backward else inputs[:3]
    *batch_heads, n_queries, width = query.shape
    batch, n_keys, value_width = prod(batch_heads), key.shape[-2], value.shape[-1]
    scores = batch * n_queries * n_keys
    flops = 2 * scores * (3 * width + 2 * value_width if backward else width + value_width)
    q, k, v, out = (spec.n_elements for spec in (query, key, value, inputs[0] if backward else outputs[0]))
    of_scores = (batch, n_queries, n_keys, width, q, k)
    if not backward:
        shape = _products(of_scores, (batch, n_queries, value_width, n_keys, scores, v))
    else:
        shape = _products(
            of_scores,
            (batch, n_queries, n_keys, value_width, out, v),
            (batch, n_keys, value_width, n_queries, scores, out),
            (batch, n_queries, width, n_keys, scores, k),
            (batch, n_keys, width, n_queries, scores, q),
        )
    return _with_bytes(flops, inputs, outputs, shape)


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
    return Work(0, indices.size_bytes + outputs[0].size_bytes, outputs[0].size_bytes, _elements(outputs))


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
    return Work(0, indices + outputs[0].size_bytes, outputs[0].size_bytes, _elements(outputs))


def _nll_loss(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One element per target is picked and added."""
    log_probabilities, targets = inputs[:2]
    picked_bytes = targets.n_elements * log_probabilities.itemsize
    written = sum(spec.size_bytes for spec in outputs)
    return Work(targets.n_elements, targets.size_bytes + picked_bytes, written, _elements([targets]))


def _nll_loss_backward(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """One element per target is set, in zeros; the log probabilities are not read."""
    grad_out, _, targets = inputs[:3]
    written = sum(spec.size_bytes for spec in outputs)
    return Work(targets.n_elements, grad_out.size_bytes + targets.size_bytes, written, _elements(outputs))


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
    elements = sum(spec.n_elements for spec in inputs)
    return _with_bytes(2 * elements, inputs, outputs, ((elements,),) if elements else ())


def _clip_scale(name: str, inputs: Specs, outputs: Specs, attributes: Attributes) -> Work:
    """Every element of every output is multiplied by the coefficient."""
    elements = sum(spec.n_elements for spec in outputs)
    return _with_bytes(elements, inputs, outputs, ((elements,),) if elements else ())


def _with_bytes(flops: int, read: Specs, written: Specs, shape: Shape | None = None) -> Work:
    """`flops`, with every block of `read` read once and every one of `written` written once; over the elements of the
    largest of them unless `shape` says otherwise.
    """
    over = _elements([*read, *written]) if shape is None else shape
    return Work(flops, sum(spec.size_bytes for spec in read), sum(spec.size_bytes for spec in written), over)


def _elements(specs: Specs) -> Shape:
    """The shape of an op over the elements of the largest tensor."""
    most = max((spec.n_elements for spec in specs), default=0)
    return ((most,),) if most else ()


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
