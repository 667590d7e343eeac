"""What kind of work each op class is, and its flops per element where elements are what counts.

An op class is the name of an ATen operator without overload and without the underscore of an in-place variant, or one
of meshemu's own: batch_norm_*, optimizer steps, reduce_*. Weights of transcendental functions are those of a range
reduction and a polynomial on a multiply-add unit, to within a factor of two: they matter only where a vector unit and
not the memory is the limit.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "ALLOCATIONS",
    "ATTENTION",
    "MATRIX",
    "MOVEMENTS",
    "OPTIMIZERS",
    "PER_INPUT_ELEMENT",
    "PER_OUTPUT_ELEMENT",
    "POINTWISE",
    "POOLINGS",
    "VIEWS",
    "base_name",
    "is_listed",
]

_DIVIDE = 4  # reciprocal estimate and a Newton step
_ROOT = 4  # reciprocal square root estimate and a Newton step
_EXP = 8  # range reduction, then a polynomial of degree 3 (6 flops)
_SIGMOID = _EXP + 1 + _DIVIDE
_TANH = _EXP + 2 + _DIVIDE
_ERF = _EXP + 6  # exponential times a rational polynomial

ATTENTION = frozenset(
    f"_scaled_dot_product_{kind}{end}"
    for kind in (
        "attention_math", "efficient_attention", "flash_attention", "flash_attention_for_cpu", "cudnn_attention",
        "fused_attention_overrideable",
    )
    for end in ("", "_backward")
)

MATRIX = ATTENTION | {
    "mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv", "dot", "convolution", "convolution_backward",
}
"""Op classes that run on the matrix unit."""

VIEWS = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand", "flatten", "getitem",
    "lift_fresh", "movedim", "narrow", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze",
    "round_format", "swapaxes", "t", "transpose", "unbind", "unfold", "unsafe_split",
    "unsafe_split_with_sizes", "unsqueeze", "view",
})  # fmt: skip
"""Op classes that only rename what is in memory, or round it as it gets there: no work."""

ALLOCATIONS = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
"""Op classes that reserve memory and write nothing: no work."""

MOVEMENTS = frozenset({
    "_to_copy", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "arange",
    "as_strided_scatter", "cat", "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy",
    "diagonal_backward", "eye",
    "fill", "flip", "full", "full_like", "gather", "im2col", "index", "index_copy", "index_fill", "index_put",
    "index_select", "lift_fresh_copy", "linspace", "masked_fill", "max_unpool2d", "max_unpool3d", "new_full",
    "new_ones", "new_zeros", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "repeat", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "roll", "scalar_tensor", "scatter", "select_backward", "select_scatter", "slice_backward", "slice_scatter",
    "stack", "tril", "triu", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "where", "zero", "zeros",
    "zeros_like",
})  # fmt: skip
"""Op classes that move or set bytes and calculate nothing."""

PER_INPUT_ELEMENT: Mapping[str, int] = MappingProxyType({
    # Reductions: one addition or comparison per element; second moments subtract, square and add twice.
    **dict.fromkeys(
        ("sum", "mean", "prod", "amax", "amin", "max", "min", "any", "all", "argmax", "argmin", "cumsum", "cumprod",
         "cummax", "cummin", "aminmax", "col2im", "unfold_backward"), 1
    ),
    "softmax_backward_sums": 2,
    "logcumsumexp": 2 * _EXP + 3, "norm": 2, "_weight_norm_interface": 3, "_weight_norm_interface_backward": 6,
    **dict.fromkeys(("var", "std", "var_mean", "std_mean", "batch_norm_statistics"), 4),
    "linalg_vector_norm": 2, "logsumexp": 3 + _EXP,
    "adaptive_avg_pool2d": 1, "_adaptive_avg_pool2d": 1, "adaptive_max_pool2d": 1,
    "_adaptive_avg_pool3d": 1, "adaptive_max_pool3d": 1,
    **{f"{kind}{n}d_backward": 1 for kind in ("upsample_nearest", "_upsample_nearest_exact", "reflection_pad",
                                              "replication_pad") for n in (1, 2, 3)},
    "mse_loss": 3, "smooth_l1_loss": 5, "huber_loss": 5, "soft_margin_loss": 2 * _EXP + 2,
    "binary_cross_entropy": 2 * _EXP + 4, "binary_cross_entropy_with_logits": 2 * _EXP + 6,
    # Softmax: maximum, subtract, exponential, sum, then scale (or subtract the logarithm of the sum).
    "_softmax": 4 + _EXP, "_safe_softmax": 4 + _EXP, "_log_softmax": 4 + _EXP,
    # Sums of the gradient and of gradient times deviation.
    "batch_norm_backward_sums": 4,
    # Whole normalisations: second moments (4), then subtract, scale, multiply and add the affine part.
    "native_batch_norm": 8, "_native_batch_norm_legit": 8, "_native_batch_norm_legit_functional": 8,
    "native_layer_norm": 8, "native_group_norm": 8, "_fused_rms_norm": 6,
})  # fmt: skip
"""Flops per element of the first input."""

PER_OUTPUT_ELEMENT: Mapping[str, int] = MappingProxyType({
    "batch_norm_normalise": 2,  # one multiply-add with folded scale and shift
    "batch_norm_backward_input": 5,  # (gradient - a - deviation * b) * c
    "batch_norm_running": 3, "batch_norm_parameters": 1,  # per channel: a moving average; scaled sums
    # Backward of whole normalisations, per element of the input gradient: two sums (4), the input (5), parameters (3).
    "native_batch_norm_backward": 9, "native_layer_norm_backward": 12, "native_group_norm_backward": 12,
    "_fused_rms_norm_backward": 10,
    "_softmax_backward_data": 4,  # multiply, sum, subtract, multiply
    "_log_softmax_backward_data": 3 + _EXP,  # sum, exponential, multiply, subtract
    "div": _DIVIDE, "reciprocal": _DIVIDE, "remainder": _DIVIDE + 3, "fmod": _DIVIDE + 3, "addcdiv": _DIVIDE + 2,
    "sqrt": _ROOT, "rsqrt": _ROOT,
    "exp": _EXP, "exp2": _EXP, "expm1": _EXP, "log": _EXP, "log2": _EXP, "log10": _EXP, "log1p": _EXP,
    "sin": _EXP, "cos": _EXP, "erf": _ERF, "tanh": _TANH, "sigmoid": _SIGMOID,
    "tan": 2 * _EXP + _DIVIDE, "atan": 2 * _EXP, "atan2": 2 * _EXP + _DIVIDE, "sinh": _TANH, "cosh": _TANH,
    "pow": 2 * _EXP + 1,  # exp(y log x); small whole exponents are multiplications, see work.py
    "gelu": _ERF + 4, "gelu_backward": _ERF + _EXP + 7,
    "silu": _SIGMOID + 1, "silu_backward": _SIGMOID + 5, "mish": _EXP + _TANH + 1 + _EXP,
    "softplus": 2 * _EXP + 1, "softplus_backward": _EXP + 1 + _DIVIDE + 1, "elu": _EXP + 2, "elu_backward": _EXP + 2,
    "hardswish": 4 + _DIVIDE, "hardsigmoid": 3 + _DIVIDE,
    "sigmoid_backward": 3, "tanh_backward": 3,
    "addcmul": 3, "lerp": 3, "clamp": 2, "leaky_relu": 2, "leaky_relu_backward": 2, "mse_loss_backward": 2,
    "smooth_l1_loss_backward": 4, "huber_loss_backward": 4, "soft_margin_loss_backward": _EXP + _DIVIDE + 2,
    "binary_cross_entropy_backward": _DIVIDE + 4, "native_dropout": 2,
    # Random numbers: a hash; normal ones a logarithm, a root and a cosine more.
    **dict.fromkeys(("bernoulli", "rand", "rand_like", "randint", "randint_like", "randperm", "uniform"), 10),
    **dict.fromkeys(("randn", "randn_like", "normal", "normal_functional"), 20 + 2 * _EXP + _ROOT),
    **dict.fromkeys(("exponential", "geometric"), 10 + _EXP + _DIVIDE), "cauchy": 12 + 2 * _EXP + _DIVIDE,
    "log_normal": 20 + 3 * _EXP + _ROOT, "rrelu_with_noise_functional": 13, "rrelu_with_noise_backward": 2,
    "addr": 4, "glu": _SIGMOID + 1, "glu_backward": _SIGMOID + 3, "_prelu_kernel": 2, "_prelu_kernel_backward": 3,
    "log_sigmoid_forward": 2 * _EXP + 2, "log_sigmoid_backward": _DIVIDE + 4, "mish_backward": 2 * (_EXP + _TANH),
    "hardswish_backward": 4, "hardsigmoid_backward": 3, "hardshrink_backward": 2, "softshrink_backward": 2,
    "adaptive_max_pool3d_backward": 1, "_adaptive_avg_pool3d_backward": 1,
    **{f"grid_sampler_{n}d{end}": (2 if end else 1) * 2**n * (n + 2) for n in (2, 3) for end in ("", "_backward")},
    # Interpolation: weights and sums over the 2, 4, 8 or 16 neighbours.
    **{f"upsample_{kind}{end}": flops for end in ("", "_backward")
       for kind, flops in (("linear1d", 5), ("bilinear2d", 11), ("trilinear3d", 23), ("bicubic2d", 43))},
    **{f"_upsample_{kind}2d_aa{end}": 2 * flops for end in ("", "_backward")
       for kind, flops in (("bilinear", 11), ("bicubic", 43))},  # wider windows when they shrink an image
    # Combinations in collectives, per element of the device's own buffer.
    "reduce_sum": 1, "reduce_product": 1, "reduce_max": 1, "reduce_min": 1, "halo_add": 1,
    "reduce_log_sums": _EXP + 2,  # (maximum, scaled sum): two exponentials for two numbers
    "reduce_moments": 5,  # (count, mean, squared deviations) merged by Chan et al., 1979: 13 flops for three numbers
})  # fmt: skip
"""Flops per element of the first output, where it is not one."""

_MOMENT = 3  # a moving average: lerp
_SQUARES = 1 + 3  # a moving average of squares: mul, addcmul
_STEP = _DIVIDE + 2  # parameter += rate * numerator / denominator
_ADAM = _MOMENT + _SQUARES + _ROOT + 2 + _STEP  # bias correction and epsilon: 2
_RMSPROP = _SQUARES + _ROOT + 1 + _STEP

OPTIMIZERS: Mapping[str, tuple[int, int, int]] = MappingProxyType({
    "sgd": (2, 2, 0), "sgd_momentum": (4, 2, 1), "sgd_nesterov": (6, 2, 1),
    "adam": (_ADAM, 2, 2), "adam_amsgrad": (_ADAM + 1, 2, 3),
    "adamw": (_ADAM, 1, 2), "adamw_amsgrad": (_ADAM + 1, 1, 3),
    # Nesterov's momentum steps twice, along the gradient and along its average.
    "nadam": (_ADAM + _STEP, 2, 2), "nadamw": (_ADAM + _STEP, 1, 2),
    # Rectification: average / correction * rate * (scale / (root + epsilon)) * rectification, then one addition.
    "radam": (_MOMENT + _SQUARES + 2 + _ROOT + 1 + _DIVIDE + 4, 2, 2),
    "radamw": (_MOMENT + _SQUARES + 2 + _ROOT + 1 + _DIVIDE + 4, 1, 2),
    "adamax": (_MOMENT + 4 + _STEP, 2, 2),  # scaled norm, magnitude, epsilon, maximum: 4
    "adagrad": (3 + _ROOT + 1 + _STEP, 2, 1),
    "adadelta": (2 * _SQUARES + 2 * (1 + _ROOT) + _DIVIDE + 1 + 2, 2, 2),
    "rmsprop": (_RMSPROP, 2, 1), "rmsprop_momentum": (_RMSPROP + 3, 2, 2),
    "rmsprop_centered": (_RMSPROP + _MOMENT + 3, 2, 2),
    "rmsprop_centered_momentum": (_RMSPROP + _MOMENT + 3 + 3, 2, 3),
    # Sign of the product, three comparisons with their choices, a bounded step, the gradient cleared, the step.
    "rprop": (2 + 6 + 1 + 2 + 2 + 1 + 3, 0, 2),
    "asgd": (1 + 2 + 3, 2, 1),  # shrink, step, and a running average of the parameter
})  # fmt: skip
"""Optimizer step -> (flops per parameter, flops more where there is weight decay, state tensors of its shape).

Counts follow the operators that torch.optim applies to each tensor; a division by a number is a multiplication by its
reciprocal. Decay is added to the gradient (2), or scales the parameter in the variants with decoupled decay (1).
"""

POOLINGS = frozenset(
    f"{kind}{end}"
    for kind in ("avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
    for end in ("", "_backward")
)
"""Op classes that walk windows of `kernel_size`."""

_BY_FORMULA = POOLINGS | frozenset({
    "argsort", "clip_scale", "embedding", "embedding_dense_backward", "nll_loss2d_backward", "nll_loss2d_forward",
    "nll_loss_backward", "nll_loss_forward", "sort", "square_sum", "topk", "kthvalue", "median", "mode", "nanmedian",
    "scatter_add", "scatter_reduce", "index_add", "_cdist_forward", "_cdist_backward",
})  # fmt: skip

_ONE_PER_OUTPUT = frozenset({
    "_adaptive_avg_pool2d_backward", "abs", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "add",
    "bitwise_and", "bitwise_not", "bitwise_or", "ceil", "eq", "floor", "ge", "gt", "hardtanh", "hardtanh_backward",
    "isnan", "le", "logical_and", "logical_not", "logical_or", "lt", "maximum", "minimum", "mul", "ne", "neg", "relu",
    "round", "rsub", "sign", "sub", "threshold_backward",
})  # fmt: skip


_WITH_NEIGHBOURS = (
    "adaptive", "_adaptive", "_fused_rms_norm", "_softmax", "_log_softmax", "native_", "grid_sampler", "upsample",
    "_upsample", "reduce_", "halo_", "glu", "rand", "bernoulli", "uniform", "normal", "exponential", "geometric",
    "cauchy", "log_normal", "batch_norm_running", "batch_norm_parameters",
)
"""How classes begin that have flops by output element, but more to look at than the same element of their inputs."""

POINTWISE = frozenset(
    name for name in (*PER_OUTPUT_ELEMENT, *_ONE_PER_OUTPUT, "copy", "clone", "fill", "masked_fill", "where")
    if not name.startswith(_WITH_NEIGHBOURS)
)
"""Op classes each of whose output elements follows from one element of every input (or one that is broadcast)."""


def base_name(op_class: str) -> str:
    """The name under which an op class is listed: without the underscore of an in-place variant."""
    return op_class.rstrip("_") or op_class


def is_listed(op_class: str) -> bool:
    """Whether the work of an op class is known; that of others is taken to be one flop per output element."""
    name = base_name(op_class)
    tables = (MATRIX, VIEWS, ALLOCATIONS, MOVEMENTS, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT, OPTIMIZERS, _BY_FORMULA)
    return name in _ONE_PER_OUTPUT or any(name in table for table in tables)
