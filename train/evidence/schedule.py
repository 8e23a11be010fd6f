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

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.files import make_folder
from lugpi_core.files import sweep as sweep_partials
from lugpi_core.runtime.device import Compute
from train.evidence.rows import PlannedModel, options_of
from train.learning.compile import forget_last_model
from train.learning.distributed import Processes
from train.learning.loop import NotFinite
from train.models.commands import placement_of
from train.models.inputs import InputCache
from train.models.kinds import DistillationSource, ModelKind, baseline_kind, images_kind, student_kind, teacher_kind
from train.models.model_folder import find_finished, finished_metrics, metrics_of, model_lock
from train.models.plan import ModelPlan
from train.models.teachers import with_separator_of
from train.models.train_model import confirm_model, fit_model
from train.options.distillation import StudentOptions
from train.options.settings import DistillationSettings, Optimization
from train.options.tables import TablesOptions
from train.options.training import ImagesOptions, ModelOptions, TeacherOptions

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


def train_models(options: TablesOptions, models: Sequence[PlannedModel], sources: InputCache, compute: Compute) -> Outcome:
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
    options: TablesOptions, pending: Sequence[PlannedModel], outcome: Outcome, sources: InputCache, compute: Compute
) -> PlannedModel | None:
    """Finish the first model that can be, and return it; None where other processes train all that could be."""
    for model in pending:
        if failed := [teacher for teacher in model.needs if teacher in outcome.failed]:
            outcome.failed[model.name] = f"{failed[0]} failed"
            return model
        if _is_ready(model, outcome):
            with model_lock(options.run, model.name) as is_ours:
                if is_ours:
                    _finish(options, model, outcome, sources, compute)
                    return model
    return None


def _is_ready(model: PlannedModel, outcome: Outcome) -> bool:
    return all(teacher in outcome.folders for teacher in model.needs)


def _finish(options: TablesOptions, model: PlannedModel, outcome: Outcome, sources: InputCache, compute: Compute) -> None:
    """Find a model or train it, while this process holds its lock."""
    plan = _plan(options, model, outcome, sources, compute)
    if folder := find_finished(plan.folder, plan.fingerprint()):
        confirm_model(replace(plan, folder=folder), metrics_of(folder), Processes(), any_outputs_dtype=True)
        outcome.folders[model.name] = folder
        return
    finished_metrics(plan.folder, plan.fingerprint(), remedy="rename that folder (a model is found under any name)")
    forget_last_model(options.compile, device=compute.device)
    _reset_peak_memory(compute)
    try:
        fit_model(plan, Processes())
    except NotFinite as error:
        outcome.failed[model.name] = str(error).removeprefix("got ").split(";")[0]
        say(f"warning: {model.name} failed: {outcome.failed[model.name]}; the others go on")
        return
    outcome.trained.append(model.name)
    outcome.folders[model.name] = plan.folder


def add_finished(options: TablesOptions, models: Sequence[PlannedModel], outcome: Outcome, sources: InputCache, compute: Compute) -> None:
    """Add to ``outcome`` those of the models that happen to be finished; nothing is trained."""
    for model in models:
        if _is_ready(model, outcome):
            plan = _plan(options, model, outcome, sources, compute)
            if folder := find_finished(plan.folder, plan.fingerprint()):
                outcome.folders[model.name] = folder


def _plan(options: TablesOptions, model: PlannedModel, outcome: Outcome, sources: InputCache, compute: Compute) -> ModelPlan:
    flags = options_of(options, model, tuple(outcome.folders[teacher].name for teacher in model.needs))
    return ModelPlan(
        kind=_kind(flags, sources, compute),
        run_dir=options.run,
        folder=options.run / model.name,
        text_model=sources.text_model(options.text_model, options.max_length),
        optimization=part_of(flags, Optimization),
        placement=placement_of(flags),
        config=resolved_flags(flags),
        terms=model.row.terms if model.row.command == "student" else None,
    )


def _kind(flags: ModelOptions, sources: InputCache, compute: Compute) -> ModelKind:
    corpus = sources.corpus(flags)
    match flags:
        case ImagesOptions():
            return images_kind(corpus, sources.tokens(flags.run / "tokens", flags.image_tokens, corpus))
        case TeacherOptions(privileged="none"):
            return teacher_kind(corpus, None, "none")
        case TeacherOptions():
            return teacher_kind(corpus, sources.tokens(flags.run / "tokens", flags.image_tokens, corpus), flags.privileged)
        case StudentOptions(unlabelled=path):
            source = DistillationSource(
                teachers=[flags.run / name for name in flags.teachers],
                loss=part_of(flags, DistillationSettings),
                shares=flags.shares,
                unlabelled=None if path is None else with_separator_of(load_unlabelled(path, flags), corpus),
                layers=flags.student_layers,
            )
            return student_kind(corpus, source, compute)
    return baseline_kind(corpus)


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
