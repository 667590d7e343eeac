"""Built-in models, written as plain torch modules, and the way to a user's own."""

from meshemu.workload.models.gpt import GPT
from meshemu.workload.models.registry import MODELS, build_model, load_from_file
from meshemu.workload.models.regnet import RegNet

__all__ = ["GPT", "MODELS", "RegNet", "build_model", "load_from_file"]
