"""`meshemu run`: a configured training run, from TOML to a results file."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from meshemu.comm import Comm
from meshemu.config import Config, load, to_toml
from meshemu.emulator.bulk import BulkOptions
from meshemu.emulator.checkpointing import Boundary
from meshemu.emulator.configured import Parts, parts_of, system_of
from meshemu.emulator.memory_policy import MemoryOptions
from meshemu.emulator.prepare import Capture, FirstStep, PreparedStep, prepare
from meshemu.emulator.recording import Layout, Recorder
from meshemu.emulator.resuming import Start, find_start, identity_of
from meshemu.emulator.root import on_root
from meshemu.emulator.timed_step import TimingOptions, timing_options
from meshemu.emulator.training_loop import History, OfTraining, train
from meshemu.errors import InputError
from meshemu.execute.determinism import make_deterministic
from meshemu.execute.evaluation import HeldOut
from meshemu.execute.state import check_writable, save_state, state_of
from meshemu.execute.training import Trainer
from meshemu.mesh import Order
from meshemu.record.checkpoint_files import CheckpointFolder
from meshemu.runtime.mpi import as_comm
from meshemu.runtime.stopping import stopping_in_order
from meshemu.workload.capture import capture_maths

__all__ = ["RunResult", "options_of", "prepared_step", "run", "system_of"]


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
    resume: bool = False,
    comm: Any = None,
    capture: Capture = capture_maths,
) -> RunResult:
    """Run a configuration (a Config, or the path of a TOML file) and write its results to `output`.

    execute: False only times the step, without running the maths. save: a file for the state dicts of "model",
    "optimizer" and "schedule" after the last step, as torch.save writes them. resume: go on with the run in `output`,
    from its last good checkpoint. comm: an mpi4py communicator (default: one rank). capture: as for
    `prepare`.

    In the main thread, SIGTERM, SIGUSR1 and SIGINT end the run after the step that they come in. Raises InputError for
    anything wrong with the configuration, before the first step; StoppedError when a signal has ended the run.
    """
    ranks = as_comm(comm)
    source = Path(config) if isinstance(config, str | Path) else None
    settings = config if isinstance(config, Config) else load(config)
    options = options_of(settings)
    path = Path(output or settings.output.path or f"{source.stem if source else 'run'}.h5")
    if save is not None:
        _check_save(Path(save), execute, settings.output.overwrite, ranks)
    make_deterministic()
    folder = CheckpointFolder.of(path, settings.checkpoint.path, settings.checkpoint.keep)
    start = find_start(path, folder, settings, ranks, resume=resume, execute=execute)
    _say(start.remarks, ranks)
    started = time.perf_counter()
    parts = parts_of(settings)
    training = settings.training
    prepared = prepared_step(parts, settings, execute=execute, comm=ranks, capture=capture)
    prepared_at = time.perf_counter()
    if prepared.reason or len(prepared.remarks) > 1:
        _say(prepared.remarks, ranks)
    trainer = None
    if execute:
        parts.check_indices(prepared.spmd.index_limits)
        executor = prepared.executor(ranks)
        trainer = Trainer(parts.model, parts.optimizer, executor, training.seed, parts.schedule, settings.formats)
        if start.checkpoint:
            trainer.load_state_dict(start.state(), start.name)
    history = History.recorded(start.records[: start.first_step])
    if start.done:
        return RunResult(path, history, prepared)
    with stopping_in_order() as request:
        recorder = _recorder(path, prepared, settings, ranks, start, options.routing, len(parts.optimizer.param_groups))
        boundary = Boundary(
            folder, settings.checkpoint.every_steps, training.steps, identity_of(settings), training.seed, trainer,
            recorder, ranks, request,
        )  # fmt: skip
        try:
            with _progress_bar(start.first_step, training.steps, ranks) as progress:
                train(
                    trainer,
                    range(start.first_step, training.steps),
                    partial(parts.batch, samples=None if trainer is None else trainer.samples),
                    history=history,
                    recorder=recorder,
                    evaluate=partial(parts.held_out, ranks),
                    progress=progress,
                    timed=lambda: prepared.last_timed,
                    passed=boundary.passed,
                )
            recorder.finish({"prepare": prepared_at - started, "steps": time.perf_counter() - prepared_at})
        except BaseException:
            recorder.abandon()
            raise
    if save is not None:
        file = Path(save)
        on_root(ranks, lambda: save_state(file, state_of(parts.model, parts.optimizer, parts.schedule)))
    return RunResult(path, history, prepared)


def prepared_step(
    parts: Parts,
    settings: Config,
    *,
    execute: bool = False,
    comm: Comm | None = None,
    capture: Capture = capture_maths,
) -> PreparedStep:
    """The timed step of a configuration, without a results file. parts: of this configuration, or of one with the same
    system, model, data and training; the others as for `run`. Raises InputError for anything wrong with it.
    """
    training = settings.training
    return prepare(
        parts.model,
        parts.empty_batch(),
        lambda call, batch: parts.loss(call(batch[0]), batch[1]),
        system=parts.system,
        plan=settings.plan if isinstance(settings.plan, str) else settings.plan.model_dump(exclude_none=True),
        optimizer=parts.optimizer,
        options=options_of(settings),
        comm=as_comm(None) if comm is None else comm,
        clip_norm=training.clip_norm,
        micro_batches=training.micro_batches,
        strict=settings.strict,
        formats=settings.formats,
        memory=MemoryOptions(settings.memory.when_full, settings.memory.spill_ahead, settings.ingest.edges),
        ingest_edges=settings.ingest.edges if settings.ingest.enabled else (),
        autocast_dtype=parts.autocast_dtype,
        first=FirstStep(lambda: parts.batch(0), training.seed) if execute else None,
        capture=capture,
    )


def options_of(settings: Config) -> TimingOptions:
    """How a configuration times its step."""
    return timing_options(TimingOptions(**settings.timing.model_dump()), settings.network.router)


def _recorder(
    path: Path, prepared: PreparedStep, settings: Config, comm: Comm, start: Start, order: Order, n_rates: int
) -> Recorder:
    """The results file: that of the run that goes on, or a new one."""
    if start.n_recorded is not None:
        return Recorder.resume(path, prepared.timed, comm, n_steps=settings.training.steps)
    layout = Layout(
        config_text=to_toml(settings),
        n_steps=settings.training.steps,
        remarks=prepared.remarks,
        loss_names=prepared.loss_names,
        n_parameter_groups=n_rates,
        order=order,
        bulk=BulkOptions(settings.output.record_budget, settings.output.messages),
    )
    recorder = Recorder.open(path, prepared.timed, comm, layout, overwrite=settings.output.overwrite)
    _say(recorder.left_out, comm)
    return recorder


def _say(remarks: Sequence[str], comm: Comm) -> None:
    """Print remarks on rank 0's stderr."""
    if comm.rank == 0 and remarks:
        print("\n".join(f"meshemu: {remark}" for remark in remarks), file=sys.stderr)


def _check_save(path: Path, execute: bool, overwrite: bool, comm: Comm) -> None:
    """Refuse at the start what could not be saved at the end."""
    if not execute:
        raise InputError(f"save = {path}: nothing is trained without execution")
    on_root(comm, partial(check_writable, path, overwrite))


@contextmanager
def _progress_bar(first_step: int, n_steps: int, comm: Comm) -> Iterator[Callable[[float, HeldOut | None], None]]:
    """A bar on rank 0's terminal; nothing where stderr is no terminal."""
    hidden = comm.rank != 0 or not sys.stderr.isatty()
    with tqdm(initial=first_step, total=n_steps, unit="step", disable=hidden) as bar:
        shown: dict[str, str] = {}

        def advance(loss: float, scores: HeldOut | None) -> None:
            shown["loss"] = f"{loss:.4f}"
            if scores is not None:
                shown["held out"] = f"{scores.loss:.4f}" if scores.accuracy is None else f"{scores.accuracy:.1%}"
            bar.set_postfix(shown, refresh=False)
            bar.update()

        yield advance
