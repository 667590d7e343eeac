"""The compiled loop of back-pressure mode: devices are looked at when something may have changed for them.

What one device does reaches another strictly later (a flit takes its time on a link, a credit at least 1 ps), so
devices that are looked at in one picosecond do not see each other, and a look at which nothing can move changes
nothing. That is why no order among devices and no common clock has to be kept. With NUMBA_DISABLE_JIT=1 the same code
runs as plain Python; `reference` states the model again.
"""

from meshemu.network.compiled import kernel
from meshemu.network.credit.allocation import allocate
from meshemu.network.credit.injection import hand_over, inject
from meshemu.network.credit.state import Routers
from meshemu.network.credit.wake import first, settle
from meshemu.network.events import NEVER, OP_KEYS, PACKET_BITS
from meshemu.network.heap import pop
from meshemu.network.ops import start_op
from meshemu.network.state import EVENTS, HEAP, NEXT_START, State, Work

__all__ = ["run"]


@kernel
def run(routers: Routers, work: Work, state: State) -> None:
    """Run everything. At one time first ops start and messages are handed over, then devices are looked at."""
    scalar, starts, wake = state.scalar, work.start, routers.wake
    while True:
        time, key = NEVER, NEVER
        if scalar[HEAP] > 0:
            time, key = state.heap[0, 0], state.heap[0, 1]
        next_start = scalar[NEXT_START]
        from_heap = next_start == len(starts) or (time, key) < (starts[next_start, 0], starts[next_start, 1])
        if not from_heap:
            time, key = starts[next_start, 0], starts[next_start, 1]
        if wake[1] < time:
            time = wake[1]
            device = first(wake)
            again = inject(routers, work, state, device, time)
            settle(wake, device, min(again, allocate(routers, work, state, device, time)))
        elif time == NEVER:
            return
        else:
            if from_heap:
                pop(state.heap, scalar)
            else:
                scalar[NEXT_START] += 1
            if key < 0:
                start_op(work, state, key + OP_KEYS, time)
            else:
                hand_over(routers, key >> PACKET_BITS, time)
        scalar[EVENTS] += 1
