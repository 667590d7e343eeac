"""The TOML file of a run: what it may say, its defaults, and one line for everything that is wrong with it.

[system]    which hardware; keys that are not named here override a figure of it and are checked by meshemu.hardware
[model] [data] [training]    what is trained     plan    how it is spread over the devices
[formats]   number formats of values by role
[timing]    how virtual time is computed         [network]   routers with finite buffers, in place of unbounded FIFOs
[output]    the results file
"""

from meshemu.config.loading import key_and_value, load, parse, parse_timing, set_value, to_toml, toml_text
from meshemu.config.schema import (
    OPTIMIZER_NAMES,
    SCHEDULE_NAMES,
    Config,
    Data,
    Grid,
    Model,
    Network,
    Optimizer,
    Output,
    ParameterGroup,
    PlanShape,
    Schedule,
    System,
    Timing,
    Training,
)

__all__ = [
    "OPTIMIZER_NAMES",
    "SCHEDULE_NAMES",
    "Config",
    "Data",
    "Grid",
    "Model",
    "Network",
    "Optimizer",
    "Output",
    "ParameterGroup",
    "PlanShape",
    "Schedule",
    "System",
    "Timing",
    "Training",
    "key_and_value",
    "load",
    "parse",
    "parse_timing",
    "set_value",
    "to_toml",
    "toml_text",
]
