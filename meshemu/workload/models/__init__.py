"""Built-in models, written as plain torch modules, and the way to a user's own."""

from meshemu.workload.models.gpt import GPT
from meshemu.workload.models.hydranet import HydraNet
from meshemu.workload.models.occupancy import OccupancyNet
from meshemu.workload.models.registry import MODELS, build_model, load_from_file
from meshemu.workload.models.regnet import RegNet
from meshemu.workload.models.resnet import ResNet

__all__ = ["GPT", "MODELS", "HydraNet", "OccupancyNet", "RegNet", "ResNet", "build_model", "load_from_file"]
