"""The timing engine: virtual time of messages and ops on links and units, under contention."""

from meshemu.hardware import Router
from meshemu.network.ideal import LoneMessages, contention_free, lone_messages
from meshemu.network.modes import Disagreement, compare_modes
from meshemu.network.results import EngineCounters, LinkStats, MessageTimes, OpTimes, RankCounters, Timeline, Timing
from meshemu.network.summary import StepSummary, step_summary
from meshemu.network.timing import simulate_messages, time_program

__all__ = [
    "Disagreement",
    "EngineCounters",
    "LinkStats",
    "LoneMessages",
    "MessageTimes",
    "OpTimes",
    "RankCounters",
    "Router",
    "StepSummary",
    "Timeline",
    "Timing",
    "compare_modes",
    "contention_free",
    "lone_messages",
    "simulate_messages",
    "step_summary",
    "time_program",
]
