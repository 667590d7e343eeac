"""How the channels of a convolution are cut: output channels, input channels (terms of sums), or whole groups."""

from dataclasses import dataclass

from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import axes_of
from meshemu.workload.spmd import Value

__all__ = ["Channels", "channel_cuts"]


@dataclass(frozen=True)
class Channels:
    """How channels are cut: of the input, of the output, of the weight; axes over which outputs are terms of sums."""

    source: Split | None = None
    output: Split | None = None
    weight: tuple[Split, ...] = ()
    summed: tuple[str, ...] = ()

    def of_source(self, value: Value) -> Layout:
        """The value's layout with its channels cut like this."""
        return _with_channels(value.layout, self.source)

    def of_output(self, layout: Layout, partial: tuple[str, ...] = ()) -> Layout:
        """An output's layout with its channels cut like this."""
        return Layout(_with_channels(layout, self.output).splits, partial)


def _with_channels(layout: Layout, cut: Split | None) -> Layout:
    others = tuple(s for s in layout.splits if s.dim != 1)
    return Layout(others if cut is None else (*others, cut))


def channel_cuts(
    low: Lowering, groups: int, transposed: bool, source: Value, weight: Value, grad: Value | None = None
) -> Channels:
    """Channels as the weight is cut, else as the activations are; batch and space have the first choice of axes."""
    used = set(axes_of(source, [d for d in range(len(source.shape)) if d != 1]))

    def usable(cut: Split | None) -> Split | None:
        return None if cut is None or used & set(cut.axes) else cut

    of_grad = None if grad is None else usable(grad.layout.split_of(1))
    if groups > 1:
        cut = usable(weight.layout.split_of(0)) or usable(source.layout.split_of(1)) or of_grad
        return Channels() if cut is None else _group_channels(low, groups, transposed, cut, source, weight)
    of_input, of_output = (0, 1) if transposed else (1, 0)
    output = usable(weight.layout.split_of(of_output))
    if output is None and usable(weight.layout.split_of(of_input)) is None:
        output = of_grad
    used |= set(output.axes) if output is not None else set()
    contracted = usable(source.layout.split_of(1)) or usable(weight.layout.split_of(of_input))
    cuts = [s.moved(d) for s, d in ((output, of_output), (contracted, of_input)) if s is not None]
    return Channels(
        None if contracted is None else contracted.moved(1),
        None if output is None else output.moved(1),
        tuple(cuts),
        () if contracted is None else contracted.axes,
    )


def _group_channels(
    low: Lowering, groups: int, transposed: bool, cut: Split, source: Value, weight: Value
) -> Channels:
    """Whole groups are independent."""
    parts = low.plan.size(cut.axes)
    if groups < parts:
        return Channels()

    def ranges(channels: int) -> tuple[tuple[int, int], ...]:
        per_group = channels // groups
        return tuple((lo * per_group, hi * per_group) for lo, hi in even_ranges(groups, parts))

    made = weight.shape[1] * groups if transposed else weight.shape[0]
    return Channels(
        Split(1, cut.axes, ranges(source.shape[1])),
        Split(1, cut.axes, ranges(made)),
        (Split(0, cut.axes, ranges(weight.shape[0])),),
    )
