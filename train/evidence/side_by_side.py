"""Models of tables trained side by side, each in a process of its own (``worker.py``); this process only says which is next.

A model's result does not depend on the others: it follows from its seed and its teachers' files. Another command may train models of the
same run at the same time, as with one process.
"""

import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.host_memory import host_available_bytes
from lugpi_core.runtime.stopping import terminated_like_interrupted
from train.data.image_tokens import training_bytes
from train.data.outline import outline_of
from train.data.text_model import TextModel
from train.evidence.outcome import Outcome
from train.evidence.rows import PlannedModel
from train.evidence.schedule import LOOK_EVERY_S, Experiment, failed_with_teacher, is_ready, waiting_for
from train.evidence.worker import Answer, Job, Start, write_frame
from train.models.model_folder import finished_folders, model_lock, training_of
from train.models.plan import compute_on
from train.options.settings import Optimization

# Of a process that has imported torch and transformers.
LIBRARIES_BYTES = 700 << 20
WORKER = ("-c", "import sys; from train.evidence.worker import work; sys.exit(work())")


def processes_for(experiment: Experiment, processes: int | None) -> int:
    """Return how many models are trained at once: ``processes`` if that is given, else one on CUDA, and on the CPU one for each thread that
    torch would compute with, as far as memory reaches."""
    if processes is not None:
        return processes
    threads: int = torch.get_num_threads()
    if threads == 1 or compute_on(experiment.placement).device == "cuda":
        return 1
    room = int(host_available_bytes() // bytes_of_model(experiment.text_model, experiment.optimization))
    if room < threads:
        say(f"note: memory for {max(room, 1)} of {threads} models at a time (--processes sets another number)")
    return max(1, min(threads, room))


def bytes_of_model(text_model: TextModel, optimization: Optimization) -> int:
    """Return an upper estimate of the memory of a process that trains a teacher on the CPU: libraries, weights, the best epoch's weights,
    gradients, optimizer and activations."""
    weights = int(sum(parameter.numel() for parameter in outline_of("", text_model.config).model.parameters()))
    positions = 2 * text_model.max_length
    needed = training_bytes(text_model.config, weights=weights, batch_size=optimization.batch_size, positions=positions, state_bytes=8)
    return LIBRARIES_BYTES + 8 * weights + needed


def train_side_by_side(experiment: Experiment, models: Sequence[PlannedModel], processes: int) -> Outcome:
    """Return when every model is finished or has failed, as ``train_models`` does, with several of them in training at once.

    Raises:
        InputError: as ``train_models``; or a process ended without a result. The others stop with a checkpoint.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    threads = max(1, torch.get_num_threads() // processes)
    with terminated_like_interrupted(), _Crew(Start(experiment=experiment, threads=threads), processes) as crew:
        return train_with(crew, experiment, models)


def train_with(crew: "Crew", experiment: Experiment, models: Sequence[PlannedModel]) -> Outcome:
    """Return when a crew has finished every model, or it has failed."""
    outcome, pending, is_waiting = Outcome(), ending_together(models), False
    while pending:
        _settle(experiment, pending, outcome, crew)
        if crew.is_working:
            for model, answer in crew.answers():
                if answer.finished is not None:
                    outcome.add(model.name, answer.finished)
                    pending.remove(model)
            is_waiting = False
        elif pending:
            if not is_waiting:
                say(waiting_for([model for model in pending if is_ready(model, outcome)]))
                is_waiting = True
            time.sleep(LOOK_EVERY_S)
    order = [model.name for model in models]
    outcome.trained.sort(key=order.index)
    return outcome


def ending_together(models: Sequence[PlannedModel]) -> list[PlannedModel]:
    """Return the models with the teachers of the last two seeds before the others of these. A last teacher that is trained late leaves the
    other processes idle, because only its students are left, and they wait for it."""
    needed = {name for model in models for name in model.needs}
    last = list(dict.fromkeys(model.seed for model in models if model.name not in needed))[-2:]
    awaited = {name for model in models if model.seed in last for name in model.needs}
    return sorted(models, key=lambda model: 1 if model.name in awaited else 2 if model.seed in last else 0)


def _settle(experiment: Experiment, pending: list[PlannedModel], outcome: Outcome, crew: "Crew") -> None:
    """Take from ``pending`` what is finished or has failed, and give the first of the others to the processes that are free. What another
    command trains stays."""
    for model in list(pending):
        finished = failed_with_teacher(model, outcome)
        if finished is None and is_ready(model, outcome) and not crew.trains(model) and crew.has_room:
            # To plan a student may take its teachers' outputs, which its process computes or reads anyway: only if there may be something.
            taken = set(outcome.folders.values())
            others = [folder for folder in finished_folders(experiment.models) if folder not in taken and _is_like(folder, model)]
            with model_lock(experiment.models, model.name) as is_ours:
                finished = experiment.find(experiment.plan_of(model, outcome.folders)) if is_ours and others else None
            if is_ours and finished is None:
                crew.give(Job(model=model, folders={name: outcome.folders[name] for name in model.needs}))
        if finished is not None:
            outcome.add(model.name, finished)
            pending.remove(model)


def _is_like(folder: Path, model: PlannedModel) -> bool:
    """Whether a finished model may be this one under any name: of the same command and seed."""
    training = training_of(folder)
    return (training["command"], training["flags"]["seed"]) == (model.row.command, model.seed)


class Crew(Protocol):
    """What trains models at the same time.

    Attributes:
        is_working: whether there is a model without an answer.
        has_room: whether another may be given.
    """

    @property
    def is_working(self) -> bool: ...

    @property
    def has_room(self) -> bool: ...

    def trains(self, model: PlannedModel) -> bool:
        """Whether it has this model."""

    def give(self, job: Job) -> None:
        """Give it a model."""

    def answers(self) -> list[tuple[PlannedModel, Answer]]:
        """Wait for the first answer, one second at most; return all that there are. Raises InputError, or OSError for one of the disk."""


class _Worker:
    """A process of ``worker.py``.

    Attributes:
        model: that it finds or trains, or None.
    """

    def __init__(self, start: Start) -> None:
        self.model: PlannedModel | None = None
        threads = {"OMP_NUM_THREADS": str(start.threads), "MKL_NUM_THREADS": str(start.threads)}
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # A session of its own: Ctrl-C in a terminal reaches this process alone, which asks each worker once.
        self.process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads, "PYTHONPATH": paths},
            start_new_session=True,
        )
        self._send(start)

    def give(self, job: Job) -> None:
        """Give it a model."""
        self.model = job.model
        self._send(job)

    def answer(self) -> tuple[PlannedModel, Answer]:
        """Return its model and what became of it. Raises InputError, or OSError for one of the disk, if that ended the process."""
        assert self.process.stdout is not None
        assert self.model is not None
        line, model = self.process.stdout.readline(), self.model
        if not line.endswith(b"\n"):
            raise self._death_of_worker()
        answer = Answer.of_line(line)
        if answer.error is not None:
            raise InputError(**answer.error)
        if answer.disk_fault is not None:
            raise OSError(*answer.disk_fault)
        self.model = None
        return model, answer

    def _send(self, message: Start | Job | None) -> None:
        assert self.process.stdin is not None
        try:
            write_frame(self.process.stdin, b"" if message is None else pickle.dumps(message))
        except BrokenPipeError:
            raise self._death_of_worker() from None

    def _death_of_worker(self) -> InputError:
        status = self.process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        name = "a model" if self.model is None else self.model.name
        return InputError(
            got=f"the end of the process that trained {name} ({how})",
            expected="a finished model",
            do="see its message above; where memory ran out, give --processes 1; the same command continues from the last checkpoints",
        )

    def end(self) -> None:
        """Tell it that there is no more."""
        if self.process.poll() is None:
            self._send(None)

    def kill(self) -> None:
        """End it at once, if it has not ended; close its pipes."""
        with suppress(BrokenPipeError), self.process:
            self.process.kill()


class _Crew:
    """The processes, each started when there is a model for it; open inside a ``with`` block, at whose end all have ended."""

    def __init__(self, start: Start, most: int) -> None:
        self._start, self._most = start, most
        self._workers: list[_Worker] = []

    @property
    def is_working(self) -> bool:
        """Whether any of them has a model."""
        return any(worker.model is not None for worker in self._workers)

    @property
    def has_room(self) -> bool:
        """Whether there is one without a model, or one may be started."""
        return len(self._workers) < self._most or any(worker.model is None for worker in self._workers)

    def trains(self, model: PlannedModel) -> bool:
        """Whether one of them has this model."""
        return any(worker.model == model for worker in self._workers)

    def give(self, job: Job) -> None:
        """Give a model to one that has none."""
        free = next((worker for worker in self._workers if worker.model is None), None)
        if free is None:
            free = _Worker(self._start)
            self._workers.append(free)
        free.give(job)

    def answers(self) -> list[tuple[PlannedModel, Answer]]:
        """Wait for the first answer, one second at most; return all that there are. Raises as ``_Worker.answer`` does."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.model is not None:
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            return [key.data.answer() for key, _ in selector.select(LOOK_EVERY_S)]

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for worker in self._workers:
                if kind is None:
                    worker.end()
                else:
                    worker.process.terminate()  # they write a checkpoint
            for worker in self._workers:
                worker.process.wait()
        finally:
            for worker in self._workers:  # a second signal ends them at once
                worker.kill()
