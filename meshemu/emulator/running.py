"""`meshemu run`: a configured training run, from TOML to a results file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from meshemu.comm import Comm
from meshemu.config import Config, load, to_toml
from meshemu.emulator.prepare import FirstStep, PreparedStep, prepare
from meshemu.emulator.recording import Recorder
from meshemu.emulator.root import on_root
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.emulator.training_loop import History, OfTraining, train
from meshemu.errors import InputError
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.evaluation import HeldOut, held_out
from meshemu.execute.optimizer import make_optimizer
from meshemu.execute.schedule import make_schedule
from meshemu.execute.state import check_writable, load_model, save_state, state_of
from meshemu.execute.training import DType, Module, Samples, Trainer
from meshemu.hardware import System
from meshemu.runtime.mpi import as_comm
from meshemu.workload import data as workload_data
from meshemu.workload import models
from meshemu.workload.data import Dataset
from meshemu.workload.dtypes import DTYPES, cast
from meshemu.workload.losses import LossFunction, load_loss

__all__ = ["RunResult", "run", "system_of"]


@dataclass(frozen=True, eq=False)
class RunResult(OfTraining):
    """path of the results file; history: what the steps left behind; prepared: the partitioned and timed step."""

    path: Path
    history: History
    prepared: PreparedStep

    @property
    def accuracies(self) -> dict[int, float]:
        """Step -> held-out accuracy after it, where targets are class numbers."""
        return self.history.accuracies

    @property
    def held_out(self) -> dict[int, HeldOut]:
        """Step -> loss, its terms by name and accuracy on held-out data after it."""
        return self.history.held_out


def run(
    config: Config | str | Path,
    output: str | Path | None = None,
    *,
    execute: bool = True,
    save: str | Path | None = None,
    comm: Any = None,
) -> RunResult:
    """Run a configuration (a Config, or the path of a TOML file) and write its results to `output`.

    execute: False only times the step, without running the maths. save: a file for the state dicts of "model",
    "optimizer" and "schedule" after the last step, as torch.save writes them. comm: an mpi4py communicator (default:
    one rank). Raises InputError for anything wrong with the configuration, before the first step.
    """
    ranks = as_comm(comm)
    source = Path(config) if isinstance(config, str | Path) else None
    settings = config if isinstance(config, Config) else load(config)
    options = timing_options(TimingOptions(**settings.timing.model_dump()), settings.network.router)
    path = Path(output or settings.output.path or f"{source.stem if source else 'run'}.h5")
    if save is not None:
        _check_save(Path(save), execute, settings.output.overwrite, ranks)
    make_deterministic()
    started = time.perf_counter()
    system = system_of(settings)
    model, dataset = _workload(settings)
    training = settings.training
    optimizer = make_optimizer(model, training.optimizer.model_dump())
    schedule = None
    if training.schedule is not None:
        schedule = make_schedule(optimizer, training.schedule.model_dump(), training.steps)
    loss_function = load_loss(training.loss, model)
    dtype = DTYPES[settings.model.dtype]

    def batch_of(step: int, samples: Samples = None) -> tuple[Any, Any]:
        inputs, targets = workload_data.batch(dataset, step, settings.data.batch_size, training.seed, samples)
        return cast(inputs, dtype), cast(targets, dtype)

    prepared = prepare(
        model,
        cast(workload_data.empty_batch(dataset, settings.data.batch_size), dtype),
        lambda call, batch: loss_function(call(batch[0]), batch[1]),
        system=system,
        plan=settings.plan if isinstance(settings.plan, str) else settings.plan.model_dump(exclude_none=True),
        optimizer=optimizer,
        options=options,
        comm=ranks,
        clip_norm=training.clip_norm,
        micro_batches=training.micro_batches,
        strict=settings.strict,
        formats=settings.formats,
        autocast_dtype=_autocast_dtype(settings),
        first=FirstStep(lambda: batch_of(0), training.seed) if execute else None,
    )
    prepared_at = time.perf_counter()
    if ranks.rank == 0 and (prepared.reason or len(prepared.remarks) > 1):
        print("\n".join(f"meshemu: {remark}" for remark in prepared.remarks), file=sys.stderr)
    recorder = Recorder.open(
        path,
        prepared.timed,
        ranks,
        config_text=to_toml(settings),
        n_steps=training.steps,
        overwrite=settings.output.overwrite,
        remarks=prepared.remarks,
        loss_names=prepared.loss_names,
        n_parameter_groups=len(optimizer.param_groups),
    )
    try:
        trainer = None
        if execute:
            executor = prepared.executor(ranks)
            trainer = Trainer(model, optimizer, executor, training.seed, schedule, settings.formats)
        with _progress_bar(training.steps, ranks) as progress:
            history = train(
                trainer,
                training.steps,
                partial(batch_of, samples=None if trainer is None else trainer.samples),
                recorder=recorder,
                evaluate=partial(_evaluation, model, dataset, loss_function, settings, ranks),
                progress=progress,
                timed=lambda: prepared.last_timed,
            )
    except BaseException:
        recorder.abandon()
        raise
    recorder.finish({"prepare": prepared_at - started, "steps": time.perf_counter() - prepared_at})
    if save is not None:
        file = Path(save)
        on_root(ranks, lambda: save_state(file, state_of(model, optimizer, schedule)))
    return RunResult(path, history, prepared)


def system_of(settings: Config) -> System:
    """The hardware that the [system] section describes."""
    section = settings.system
    if section.grid is not None:
        grid = section.grid
        system = System.grid(rows=grid.rows, cols=grid.cols, bandwidth=grid.bandwidth, latency=grid.latency)
    else:
        system = System.preset(section.preset or "dojo-tile", devices=section.devices, figures=section.figures)
    return system.override(section.overrides) if section.overrides else system


def _check_save(path: Path, execute: bool, overwrite: bool, comm: Comm) -> None:
    """Refuse at the start what could not be saved at the end."""
    if not execute:
        raise InputError(f"save = {path}: nothing is trained without execution")
    on_root(comm, partial(check_writable, path, overwrite))


def _autocast_dtype(settings: Config) -> DType | None:
    return None if settings.model.autocast is None else DTYPES[settings.model.autocast]


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


def _evaluation(
    model: Module, dataset: Dataset, loss: LossFunction, settings: Config, comm: Comm, step: int
) -> HeldOut | None:
    """Scores on the held-out data where they are due, computed by rank 0 in plain forward passes."""
    training = settings.training
    if not training.evaluate_every:
        return None
    if (step + 1) % training.evaluate_every and step + 1 != training.steps:
        return None

    def scores() -> HeldOut:
        count, size = len(dataset.test), settings.data.batch_size
        batches = (dataset.test.take(np.arange(lo, min(lo + size, count))) for lo in range(0, count, size))
        return held_out(
            model,
            batches,
            loss,
            DTYPES[settings.model.dtype],
            autocast_dtype=_autocast_dtype(settings),
            classes=bool(dataset.n_classes),
        )

    found: HeldOut | None = comm.broadcast(on_root(comm, scores))
    return found


@contextmanager
def _progress_bar(n_steps: int, comm: Comm) -> Iterator[Callable[[float, HeldOut | None], None]]:
    """A bar on rank 0's terminal; nothing where stderr is no terminal."""
    hidden = comm.rank != 0 or not sys.stderr.isatty()
    with tqdm(total=n_steps, unit="step", disable=hidden) as bar:
        shown: dict[str, str] = {}

        def advance(loss: float, scores: HeldOut | None) -> None:
            shown["loss"] = f"{loss:.4f}"
            if scores is not None:
                shown["held out"] = f"{scores.loss:.4f}" if scores.accuracy is None else f"{scores.accuracy:.1%}"
            bar.set_postfix(shown, refresh=False)
            bar.update()

        yield advance
