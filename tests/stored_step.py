"""Results files around Programs that a test made, timed as they are."""

import numpy as np

from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.timed_step import TimingOptions, time_step
from meshemu.record import TrainingRecord
from meshemu.runtime.local import SingleComm


def stored_step(path, program, system, config_text="", options=None, memory=None, remarks=()):
    """A results file of one step of `program` on `system`; memory: what its devices hold, remarks: said in the run."""
    comm = SingleComm()
    peak = np.zeros(program.n_devices, np.int64)
    timed = time_step(program, system, peak, options or TimingOptions(), comm, memory=memory)
    layout = Layout(config_text=config_text, n_steps=1, remarks=remarks)
    recorder = Recorder.open(path, timed, comm, layout, overwrite=False)
    recorder.step(0, TrainingRecord(), wall_s=0.0)
    recorder.finish({})
    return path
