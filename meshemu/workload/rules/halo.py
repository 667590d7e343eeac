"""Windows for operators that slide a kernel over the last dims of (N, C, *S) or (C, *S)."""

from collections.abc import Sequence
from dataclasses import dataclass

from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["Sliding", "output_layout", "spatial_splits", "window_layout"]


@dataclass(frozen=True)
class Sliding:
    """kernel, stride, padding and dilation of every spatial dim; the first of these dims is dim `lead` of a tensor."""

    lead: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(
        cls, lead: int, n: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int],
    ) -> "Sliding":  # fmt: skip
        """From ATen arguments: a list of one number stands for all n dims, an empty stride for the kernel."""
        stride = stride or kernel
        full = [tuple(x) * (n if len(x) == 1 else 1) for x in (kernel, stride, padding, dilation)]
        return cls(lead, full[0], full[1], full[2], full[3])

    def window(self, dim: int, lo: int, hi: int) -> tuple[int, int]:
        """Input range, padding included, that yields outputs lo..hi of tensor dim `dim`; empty if there are none."""
        d = dim - self.lead
        start = lo * self.stride[d] - self.padding[d]
        if hi <= lo:
            return start, start
        return start, (hi - 1) * self.stride[d] - self.padding[d] + self.dilation[d] * (self.kernel[d] - 1) + 1

    def sources(self, dim: int, lo: int, hi: int) -> tuple[int, int]:
        """Of a transposed operator: input range that reaches outputs lo..hi; one element where none does."""
        d = dim - self.lead
        reach = self.dilation[d] * (self.kernel[d] - 1)
        first = -((reach - lo - self.padding[d]) // self.stride[d])
        last = (hi - 1 + self.padding[d]) // self.stride[d]
        return first, max(last, first) + 1 if hi > lo else first

    def local_padding(self, cut: set[int]) -> list[int]:
        """Padding of the operator on a window: none along cut dims, whose window holds it already."""
        return [0 if self.lead + d in cut else p for d, p in enumerate(self.padding)]


def spatial_splits(value: Value, lead: int = 2) -> list[Split]:
    """Cuts of the dims from `lead` on."""
    return [s for s in value.layout.splits if s.dim >= lead]


def output_layout(low: Lowering, source: Value, output_shape: Sequence[int], lead: int = 2) -> Layout:
    """Cut of a sliding operator's output: spatial dims evenly over the input's axes, the others as the input's."""
    return Layout(
        tuple(
            s if s.dim < lead else Split(s.dim, s.axes, even_ranges(output_shape[s.dim], low.plan.size(s.axes)))
            for s in source.layout.splits
        )
    )


def window_layout(output: Layout, sliding: Sliding) -> Layout:
    """What each device must hold of the input to make its block of the output."""
    return Layout(
        tuple(
            s if s.dim < sliding.lead
            else Split(s.dim, s.axes, tuple(sliding.window(s.dim, lo, hi) for lo, hi in s.ranges))
            for s in output.splits
        )
    )  # fmt: skip
