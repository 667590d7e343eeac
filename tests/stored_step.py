"""Results files around Programs that a test made, timed as they are."""

import numpy as np

from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.timed_step import TimingOptions, time_step
from meshemu.record import TrainingRecord
from meshemu.runtime.local import SingleComm


def stored_step(path, program, system, config_text="", options=None):
    """A results file of one step of `program` on `system`."""
    comm = SingleComm()
    memory = np.zeros(program.n_devices, np.int64)
    timed = time_step(program, system, memory, options or TimingOptions(), comm)
    recorder = Recorder.open(path, timed, comm, Layout(config_text=config_text, n_steps=1), overwrite=False)
    recorder.step(0, TrainingRecord(), wall_s=0.0)
    recorder.finish({})
    return path
