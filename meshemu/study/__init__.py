"""Studies over several systems: published figures beside the model's, and one model on many machines.

Modules are imported by name, so that tables of figures do not load PyTorch.
"""

__all__: list[str] = []
