"""What a configuration describes, built: the system, the model with its optimizer, data, loss, held-out scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meshemu.comm import Comm
from meshemu.config import Config
from meshemu.emulator.configured_system import system_of
from meshemu.emulator.root import on_root
from meshemu.execute.evaluation import HeldOut, held_out
from meshemu.execute.optimizer import Optimizer, make_optimizer
from meshemu.execute.schedule import Scheduler, make_schedule
from meshemu.execute.state import load_model
from meshemu.execute.training import DType, Module, Samples
from meshemu.hardware import System
from meshemu.workload import data as workload_data
from meshemu.workload import models
from meshemu.workload.data import Dataset, StoredSamples
from meshemu.workload.dtypes import DTYPES, cast
from meshemu.workload.index_limits import check_indices
from meshemu.workload.losses import LossFunction, load_loss
from meshemu.workload.spmd import IndexLimit

__all__ = ["Parts", "parts_of", "system_of"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that the sections of a configuration name."""

    settings: Config
    system: System
    model: Module
    dataset: Dataset
    loss: LossFunction
    optimizer: Optimizer
    schedule: Scheduler | None

    @property
    def autocast_dtype(self) -> DType | None:
        """What operators are cast to that torch.autocast knows."""
        return None if self.settings.model.autocast is None else DTYPES[self.settings.model.autocast]

    @property
    def dtype(self) -> DType:
        """Of parameters and inputs."""
        return DTYPES[self.settings.model.dtype]

    def batch(self, step: int, samples: Samples = None) -> tuple[Any, Any]:
        """(inputs, targets) of a step; of other `samples` only the place."""
        size, seed = self.settings.data.batch_size, self.settings.training.seed
        inputs, targets = workload_data.batch(self.dataset, step, size, seed, samples)
        return cast(inputs, self.dtype), cast(targets, self.dtype)

    def check_indices(self, limits: Sequence[IndexLimit]) -> None:
        """Raise InputError for a class or row that there is not, in what is held in memory: what is made, is right."""
        for name, samples in (("train", self.dataset.train), ("test", self.dataset.test)):
            if isinstance(samples, StoredSamples):
                check_indices(limits, (samples.inputs, samples.targets), f"data: {name}")

    def empty_batch(self) -> Any:
        """A batch without values."""
        return cast(workload_data.empty_batch(self.dataset, self.settings.data.batch_size), self.dtype)

    def held_out(self, comm: Comm, step: int) -> HeldOut | None:
        """Scores on the held-out data where they are due, computed by rank 0 in plain forward passes."""
        training = self.settings.training
        if not training.evaluate_every:
            return None
        if (step + 1) % training.evaluate_every and step + 1 != training.steps:
            return None

        def scores() -> HeldOut:
            count, size = len(self.dataset.test), self.settings.data.batch_size
            batches = (self.dataset.test.take(np.arange(lo, min(lo + size, count))) for lo in range(0, count, size))
            return held_out(
                self.model,
                batches,
                self.loss,
                self.dtype,
                autocast_dtype=self.autocast_dtype,
                classes=bool(self.dataset.n_classes),
            )

        found: HeldOut | None = comm.broadcast(on_root(comm, scores))
        return found


def parts_of(settings: Config) -> Parts:
    """Build all of it. Raises InputError for what does not fit."""
    system = system_of(settings)
    training = settings.training
    model, dataset = _workload(settings)
    optimizer = make_optimizer(model, training.optimizer.model_dump())
    schedule = None
    if training.schedule is not None:
        schedule = make_schedule(optimizer, training.schedule.model_dump(), training.steps)
    return Parts(settings, system, model, dataset, load_loss(training.loss, model), optimizer, schedule)


def _workload(settings: Config) -> tuple[Module, Dataset]:
    section, data = settings.model, settings.data
    if section.build is not None:
        model = models.load_from_file(section.build, section.args, seed=settings.training.seed)
    else:
        model = models.build_model(section.name or "", section.args, seed=settings.training.seed)
    if data.build is not None:
        dataset = workload_data.load_from_file(data.build, data.args)
    else:
        dataset = workload_data.load_dataset(data.name or "", data.args)
    model = model.to(DTYPES[section.dtype]).train()
    if section.load is not None:
        load_model(model, Path(section.load))
    return model, dataset
