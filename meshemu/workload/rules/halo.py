"""Windows for operators that slide a kernel over spatial dims."""

from dataclasses import dataclass

from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["Sliding", "output_layout", "spatial_splits", "window_layout"]


@dataclass(frozen=True)
class Sliding:
    """kernel, stride, padding and dilation of every spatial dim."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, n: int, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> "Sliding":
        """From ATen arguments: a list of one number stands for all n dims, an empty stride for the kernel."""
        stride = stride or kernel
        full = [tuple(x) * (n if len(x) == 1 else 1) for x in (kernel, stride, padding, dilation)]
        return cls(full[0], full[1], full[2], full[3])

    def window(self, dim: int, lo: int, hi: int) -> tuple[int, int]:
        """Input range, padding included, that yields outputs lo..hi of spatial dim `dim`; empty if there are none."""
        start = lo * self.stride[dim] - self.padding[dim]
        if hi <= lo:
            return start, start
        return start, (hi - 1) * self.stride[dim] - self.padding[dim] + self.dilation[dim] * (self.kernel[dim] - 1) + 1

    def local_padding(self, cut: set[int]) -> list[int]:
        """Padding of the operator on a window: none along cut dims, whose window holds it already."""
        return [0 if d in cut else p for d, p in enumerate(self.padding)]


def spatial_splits(value: Value) -> list[Split]:
    """Cuts of the dims behind (N, C)."""
    return [s for s in value.layout.splits if s.dim >= 2]


def output_layout(low: Lowering, source: Value, output_shape: tuple[int, ...]) -> Layout:
    """Cut of a sliding operator's output: the batch as the input's, spatial dims evenly over the input's axes."""
    batch = [s for s in source.layout.splits if s.dim == 0]
    spatial = [
        Split(s.dim, s.axes, even_ranges(output_shape[s.dim], low.plan.size(s.axes))) for s in spatial_splits(source)
    ]
    return Layout((*batch, *spatial))


def window_layout(source: Value, output: Layout, sliding: Sliding) -> Layout:
    """What each device must hold of the input to make its block of the output."""
    batch = [s for s in source.layout.splits if s.dim == 0]
    spatial = [
        Split(s.dim, s.axes, tuple(sliding.window(s.dim - 2, lo, hi) for lo, hi in s.ranges))
        for s in output.splits
        if s.dim >= 2
    ]
    return Layout((*batch, *spatial))
