"""A run as one HTML page that works without a network: figures as JSON, drawn by the scripts that it carries."""

from meshemu.analysis.page.document import render, save

__all__ = ["render", "save"]
