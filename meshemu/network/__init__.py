"""The timing engine: virtual time of messages and ops on links and units, under contention."""

from meshemu.network.ideal import contention_free
from meshemu.network.results import EngineCounters, LinkStats, MessageTimes, OpTimes, Timeline, Timing
from meshemu.network.summary import StepSummary, step_summary
from meshemu.network.timing import simulate_messages, time_program

__all__ = [
    "EngineCounters",
    "LinkStats",
    "MessageTimes",
    "OpTimes",
    "StepSummary",
    "Timeline",
    "Timing",
    "contention_free",
    "simulate_messages",
    "step_summary",
    "time_program",
]
