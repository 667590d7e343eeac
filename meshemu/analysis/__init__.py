"""What a run's figures say: metrics, the critical path, a report as text, and a picture of the links.

Modules are imported by name, so that reading figures does not load the plotting library.
"""

__all__: list[str] = []
