"""Pictures of a run, one module per kind."""

from meshemu.analysis.plots.kinds import KINDS, draw, save

__all__ = ["KINDS", "draw", "save"]
