"""Which process trains which model: each takes the next one whose teachers are finished and that no other process is training.

A process holds a model's lock while it trains it; when it dies, the next process goes on from the checkpoint.
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
from train.evidence.rows import PlannedModel, options_of
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
class Outcome:
    """What became of the planned models.

    Attributes:
        folders: of the finished ones, by the models' names.
        failed: why the others are not there, by the models' names.
        trained: names of those that this process trained, or finished training.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)


def train_models(options: TablesOptions, models: Sequence[PlannedModel], sources: Sources, compute: Compute) -> Outcome:
    """Return when every model is finished or has failed: found under any name in the run, trained here, or by another process meanwhile.

    A model whose loss is not finite is recorded as failed, and so are the students of one that failed; the others go on.

    Raises:
        InputError: the input of a model is missing or damaged, or its folder holds a model with other settings.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    sweep_partials(make_folder(options.run))
    outcome, pending, is_waiting = Outcome(), list(models), False
    while pending:
        model = _finish_next(options, pending, outcome, sources, compute)
        if model is not None:
            pending.remove(model)
            is_waiting = False
            continue
        if not is_waiting:
            say(f"waiting for other processes, which train {', '.join(model.name for model in pending if _is_ready(model, outcome))}")
            is_waiting = True
        time.sleep(LOOK_EVERY_S)
    return outcome


def _finish_next(
    options: TablesOptions, pending: Sequence[PlannedModel], outcome: Outcome, sources: Sources, compute: Compute
) -> PlannedModel | None:
    """Finish the first model that can be, and return it; None where other processes train all that could be."""
    for model in pending:
        if failed := [teacher for teacher in model.needs if teacher in outcome.failed]:
            outcome.failed[model.name] = f"{failed[0]} failed"
            return model
        if _is_ready(model, outcome):
            with turn(options.run, model.name) as is_ours:
                if is_ours:
                    _finish(options, model, outcome, sources, compute)
                    return model
    return None


def _is_ready(model: PlannedModel, outcome: Outcome) -> bool:
    return all(teacher in outcome.folders for teacher in model.needs)


def _finish(options: TablesOptions, model: PlannedModel, outcome: Outcome, sources: Sources, compute: Compute) -> None:
    """Find a model or train it, while this process holds its lock."""
    run = _run(options, model, outcome, sources, compute)
    if folder := find_finished(run.folder, run.fingerprint()):
        confirmed(replace(run, folder=folder), metrics_of(folder), any_precision=True)
        outcome.folders[model.name] = folder
        return
    finished_metrics(run.folder, run.fingerprint(), remedy="rename that folder (a model is found under any name)")
    forget_last_model(options.compile, device=compute.device)
    _reset_peak_memory(compute)
    try:
        trained(run)
    except NotFinite as error:
        outcome.failed[model.name] = str(error).removeprefix("got ").split(";")[0]
        say(f"warning: {model.name} failed: {outcome.failed[model.name]}; the others go on")
        return
    outcome.trained.append(model.name)
    outcome.folders[model.name] = run.folder


def add_finished(options: TablesOptions, models: Sequence[PlannedModel], outcome: Outcome, sources: Sources, compute: Compute) -> None:
    """Add to ``outcome`` those of the models that happen to be finished; nothing is trained."""
    for model in models:
        if _is_ready(model, outcome):
            run = _run(options, model, outcome, sources, compute)
            if folder := find_finished(run.folder, run.fingerprint()):
                outcome.folders[model.name] = folder


def _run(options: TablesOptions, model: PlannedModel, outcome: Outcome, sources: Sources, compute: Compute) -> Run:
    teachers = tuple(outcome.folders[teacher].name for teacher in model.needs)
    run = find_run(options_of(options, model, teachers), options.run / model.name, sources, compute, Processes())
    return replace(run, terms=model.row.terms if model.row.command == "student" else None)


def _reset_peak_memory(compute: Compute) -> None:
    if compute.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # some containers have no such file or forbid writing to it: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")  # Linux resets the peak resident set to what is resident now


def refuse_launchers() -> None:
    """Raise InputError under a launcher such as torchrun, whose processes would train every model together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            got="tables in several processes of one launcher",
            expected="a command for each",
            do="start the same command once per GPU, with CUDA_VISIBLE_DEVICES, without torchrun",
        )
