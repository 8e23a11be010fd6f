"""Who trains which model: each process takes the next one whose teachers are finished and that nobody else is training.

A model's lock is held by whoever trains it; when its holder dies, the next process that comes by goes on from the checkpoint.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder
from lugpi_core.files import sweep as sweep_partials
from lugpi_core.runtime.device import Compute
from train.evidence.rows import Model, options_of
from train.learning.compile import forget_last_model
from train.learning.distributed import Processes
from train.learning.loop import NotFinite
from train.models.inputs import Sources
from train.models.locks import turn
from train.models.model_folder import find_finished, finished_metrics, metrics_of
from train.models.train_model import Run, confirmed, find_run, trained
from train.options.training import TablesOptions

LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of the models that were wanted.

    Attributes:
        folders: of the finished ones, by the models' names.
        failed: why the others are not there, by the models' names.
        trained: names of those that this process trained, or ended the training of.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)


def make_models(options: TablesOptions, models: Sequence[Model], sources: Sources, compute: Compute) -> Made:
    """Return when every model is finished or cannot be: found under any name in the run, trained here, or by another process meanwhile.

    A model whose loss does not stay finite is recorded as failed, and so are the students of one that failed; the others go on.

    Raises:
        InputError: what a model is to be made from is missing or damaged, or its folder holds a model that was trained otherwise.
        Stopped: a signal asked for it; what is done is kept.
    """
    sweep_partials(make_folder(options.run))
    made, pending, waits = Made(), list(models), False
    while pending:
        model = _one_done(options, pending, made, sources, compute)
        if model is not None:
            pending.remove(model)
            waits = False
            continue
        if not waits:
            say(f"waiting for other processes, which train {', '.join(one.name for one in pending if _is_ready(one, made))}")
            waits = True
        time.sleep(LOOK_EVERY_S)
    return made


def _one_done(options: TablesOptions, pending: Sequence[Model], made: Made, sources: Sources, compute: Compute) -> Model | None:
    """Bring the first model that can be to its end and return it; None where other processes hold all that could be."""
    for model in pending:
        if lost := [need for need in model.needs if need in made.failed]:
            made.failed[model.name] = f"{lost[0]} failed"
            return model
        if _is_ready(model, made):
            with turn(options.run, model.name) as is_ours:
                if is_ours:
                    _make(options, model, made, sources, compute)
                    return model
    return None


def _is_ready(model: Model, made: Made) -> bool:
    return all(need in made.folders for need in model.needs)


def _make(options: TablesOptions, model: Model, made: Made, sources: Sources, compute: Compute) -> None:
    """Find a model or train it; its lock is ours."""
    run = _run(options, model, made, sources, compute)
    if found := _finished(run):
        confirmed(replace(run, folder=found), metrics_of(found), any_precision=True)
        made.folders[model.name] = found
        return
    finished_metrics(run.folder, run.fingerprint(), remedy="rename that folder (a model is found under any name)")
    forget_last_model(options.compile, device=compute.device)
    _measure_anew(compute)
    try:
        trained(run)
    except NotFinite as error:
        made.failed[model.name] = str(error).removeprefix("got ").split(";")[0]
        say(f"warning: {model.name} failed: {made.failed[model.name]}; the others go on")
        return
    made.trained.append(model.name)
    made.folders[model.name] = run.folder


def find_models(options: TablesOptions, models: Sequence[Model], made: Made, sources: Sources, compute: Compute) -> None:
    """Add to ``made`` those of the models that happen to be finished; nothing is trained."""
    for model in models:
        if _is_ready(model, made) and (found := _finished(_run(options, model, made, sources, compute))):
            made.folders[model.name] = found


def _run(options: TablesOptions, model: Model, made: Made, sources: Sources, compute: Compute) -> Run:
    teachers = tuple(made.folders[need].name for need in model.needs)
    run = find_run(options_of(options, model, teachers), options.run / model.name, sources, compute, Processes())
    return replace(run, terms=model.row.terms if model.row.command == "student" else None)


def _finished(run: Run) -> Path | None:
    return find_finished(run.folder, run.fingerprint())


def _measure_anew(compute: Compute) -> None:
    """Forget the peaks of memory of the model before this one."""
    if compute.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # where there is no such file, or the container keeps it: the peak is then the process's so far
        Path("/proc/self/clear_refs").write_text("5")  # Linux counts the highest resident set anew from what is resident now


def refuse_launchers() -> None:
    """Raise InputError where a launcher started several processes to train one model together: these would train every model together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            got="tables in several processes of one launcher",
            expected="a command for each",
            do="start the same command once a card, with CUDA_VISIBLE_DEVICES, without torchrun",
        )
