"""The rule table: ATen operator -> how blocks of its inputs give blocks of its outputs."""

from meshemu.workload.rules.table import find_rule, needs_rule

__all__ = ["find_rule", "needs_rule"]
