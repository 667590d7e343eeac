"""The TOML file of a run: what it may say, its defaults, and one line for everything that is wrong with it.

[system]    which hardware; keys that are not named here override a figure of it and are checked by meshemu.hardware
[model] [data] [training]    what is trained     plan    how it is spread over the devices
[formats]   number formats of values by role
[timing]    how virtual time is computed         [network]   routers with finite buffers, in place of unbounded FIFOs
[output]    the results file                     [checkpoint]    states to go on from
[memory]    what to do about a step that does not fit
[ingest]    how batches get to the devices
"""

from meshemu.config.identity import difference, identity
from meshemu.config.loading import key_and_value, load, parse, parse_timing, set_value, to_toml, toml_text
from meshemu.config.schema import (
    OPTIMIZER_NAMES,
    SCHEDULE_NAMES,
    Checkpoint,
    Config,
    Data,
    Grid,
    Ingest,
    Memory,
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
    "Checkpoint",
    "Config",
    "Data",
    "Grid",
    "Ingest",
    "Memory",
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
    "difference",
    "identity",
    "key_and_value",
    "load",
    "parse",
    "parse_timing",
    "set_value",
    "to_toml",
    "toml_text",
]
