"""Which process trains which model: each takes the next one whose teachers are finished and that no other process is training.

A process holds a model's lock while it trains it; when it dies, the next process goes on from the checkpoint.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from train.data.image_tokens import ImageTokens, open_column
from train.data.text_model import TextModel
from train.evidence.outcome import FinishedModel, Outcome
from train.evidence.rows import PlannedModel, Row, is_without_images
from train.learning.compile import forget_last_model
from train.learning.distributed import Processes
from train.learning.launch import find_launch
from train.learning.loop import NotFinite
from train.learning.losses import KD_PRESETS
from train.models.api import plan_model
from train.models.class_shares import require_one_class
from train.models.folds import require_texts
from train.models.kinds import (
    DistillationSource,
    ModelKind,
    baseline_kind,
    images_kind,
    is_contrastive,
    plain_weights,
    student_kind,
    teacher_kind,
)
from train.models.model_folder import find_finished, finished_metrics, metrics_of, model_lock
from train.models.plan import ModelPlan, compute_on, require_negatives
from train.models.shared import SharedInputs
from train.models.teachers import FoundTeacher, require_images, require_new_images
from train.models.train_model import confirm_model, fit_model
from train.options.distillation import LEARNT, shares_of
from train.options.settings import KD_EXTRA_WEIGHT, DistillationSettings, Optimization, Placement
from train.options.tables import shots_folder

LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What every model of a run's tables is trained from, and how.

    Attributes:
        corpus: what they are trained and scored on, without pictures: models read their tokens, and other processes get no copy.
        run: folder of the run.
        text_model: that all of them read.
        optimization: of all; each model has its own seed.
        placement: of all.
        distillation: the students' loss.
        unlabelled: texts that some students are distilled on too, or None.
        config: settings to record in each model's ``metrics.json`` besides its own, such as the corpus's flags.
        shots: of how many train texts of each class every model learns; None = of all.
        shared: what its models read and check once in each process.
    """

    corpus: Corpus
    run: Path
    text_model: TextModel
    optimization: Optimization
    placement: Placement
    distillation: DistillationSettings
    unlabelled: Corpus | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None
    shared: SharedInputs = field(default_factory=SharedInputs, repr=False, compare=False)
    _opened: dict[str, ImageTokens] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "corpus", _without_pictures(self.corpus))  # the dataclass is frozen
        object.__setattr__(self, "unlabelled", None if self.unlabelled is None else _without_pictures(self.unlabelled))

    @property
    def models(self) -> Path:
        """The folder in which the models' folders are: the run, or of few shots a folder of it."""
        return self.run if self.shots is None else self.run / shots_folder(self.shots)

    def tokens(self, column: str) -> ImageTokens:
        """Return a column of the run's store, or its text vectors; the shards are checked once. Raises InputError as ``open_column``."""
        if column not in self._opened:
            self._opened[column] = open_column(self.run / "tokens", column, self.corpus)
        return self._opened[column]

    def plan_of(self, model: PlannedModel, folders: Mapping[str, Path]) -> ModelPlan:
        """Return the plan of one model.

        Args:
            model: which one.
            folders: of its teachers, by their names; they may have been found under other names.
        """
        plan = plan_model(
            _kind(self, model, folders),
            self.run,
            name=model.name,
            text_model=self.text_model,
            optimization=replace(self.optimization, seed=model.seed),
            placement=self.placement,
        )
        terms = model.row.terms if model.row.command == "student" else None
        return replace(
            plan,
            folder=self.models / model.name,
            terms=terms,
            shots=self.shots,
            episode=None if self.shots is None else model.episode,
            config={**plan.config, **self.config},
            shared=self.shared,
        )

    def require_trainable(self, models: Sequence[PlannedModel]) -> None:
        """Plan one model of each row, as far as it follows from no other model: what cannot be is refused before anything is trained.

        Raises:
            InputError: as the plans of these models do, and as ``require_texts``, ``require_negatives``, ``require_one_class``,
                ``require_images`` and ``require_new_images``.
        """
        each, teachers = {model.row: model for model in reversed(models)}.values(), dict[str, FoundTeacher]()
        for model in each:
            if model.row.command != "student":
                plan = self.plan_of(model, {})
                require_texts(plan)
                # As it will be recorded once it is trained.
                teachers[model.row.name] = FoundTeacher(folder=plan.folder, metrics={}, fingerprint=plan.fingerprint())
        tokens = cache(self._tokens_of_unlabelled)
        for row in (model.row for model in each if model.row.command == "student"):
            weights = plain_weights(row_loss(self.distillation, row), has_folds=row.folds is not None)
            if is_contrastive(weights):
                require_negatives(self.optimization)
            if row.is_learnt:
                require_one_class(self.corpus)
            for teacher in (teachers[name] for name in row.teachers):
                if weights.predict_image:
                    require_images(teacher)
                column = teacher.fingerprint["image_tokens"]
                if row.more and column is not None:
                    require_new_images(teacher, tokens(column), with_vectors=weights.predict_image > 0)

    def _tokens_of_unlabelled(self, column: str) -> ImageTokens:
        assert self.unlabelled is not None
        return open_column(self.run / f"tokens-{self.unlabelled.name}", column, self.unlabelled)

    def find(self, plan: ModelPlan) -> FinishedModel | None:
        """Return a model if it is finished under any name in the run, its outputs written if they were lost; else None. The caller holds
        its lock."""
        folder = find_finished(plan.folder, plan.fingerprint())
        if folder is None:
            return None
        confirm_model(replace(plan, folder=folder), metrics_of(folder), Processes(), any_outputs_dtype=True)
        return FinishedModel(folder=folder)

    def make_room(self, plan: ModelPlan) -> None:
        """Remove what is in the way of a training that begins now. Nothing is: a folder with another model is refused. The caller holds the
        model's lock."""


def _without_pictures(corpus: Corpus) -> Corpus:
    labelled = None if corpus.labelled is None else _without_pictures(corpus.labelled)
    return replace(corpus, examples=replace(corpus.columns, pictures=None), labelled=labelled)


def train_models(experiment: Experiment, models: Sequence[PlannedModel]) -> Outcome:
    """Return when every model is finished or has failed: found under any name in the run, trained here, or by another process meanwhile.

    A model whose loss is not finite is recorded as failed, and so are the students of one that failed; the others go on.

    Raises:
        InputError: the input of a model is missing or damaged, or its folder holds a model with other settings.
        Stopped: a signal asked for it; finished models and checkpoints are kept.
    """
    outcome, pending, is_waiting = Outcome(), list(models), False
    while pending:
        model = _finish_next(experiment, pending, outcome)
        if model is not None:
            pending.remove(model)
            is_waiting = False
            continue
        if not is_waiting:
            say(waiting_for([model for model in pending if is_ready(model, outcome)]))
            is_waiting = True
        time.sleep(LOOK_EVERY_S)
    return outcome


def waiting_for(models: Sequence[PlannedModel]) -> str:
    """Return the line that says which models other commands are training."""
    return f"waiting for other processes, which train {', '.join(model.name for model in models)}"


def _finish_next(experiment: Experiment, pending: Sequence[PlannedModel], outcome: Outcome) -> PlannedModel | None:
    """Finish the first model that can be, and return it; None where other processes train all that could be."""
    for model in pending:
        finished = failed_with_teacher(model, outcome)
        if finished is None and is_ready(model, outcome):
            finished = finish_model(experiment, model, outcome.folders)
        if finished is not None:
            outcome.add(model.name, finished)
            return model
    return None


def is_ready(model: PlannedModel, outcome: Outcome) -> bool:
    """Whether all teachers of a model are finished."""
    return all(teacher in outcome.folders for teacher in model.needs)


def failed_with_teacher(model: PlannedModel, outcome: Outcome) -> FinishedModel | None:
    """Return a model as failed if one of its teachers has failed, else None."""
    failed = next((teacher for teacher in model.needs if teacher in outcome.failed), None)
    return None if failed is None else FinishedModel(folder=None, failure=f"{failed} failed")


def finish_model(experiment: Experiment, model: PlannedModel, folders: Mapping[str, Path]) -> FinishedModel | None:
    """Find a model or train it, with its lock; None if another process has that.

    Args:
        experiment: what it is trained from, and how.
        model: which one.
        folders: of its teachers, by their names.
    """
    with model_lock(experiment.models, model.name) as is_ours:
        if not is_ours:
            return None
        plan = experiment.plan_of(model, folders)
        if (finished := experiment.find(plan)) is not None:
            return finished
        experiment.make_room(plan)
        return _train(plan, model)


def _train(plan: ModelPlan, model: PlannedModel) -> FinishedModel:
    finished_metrics(plan.folder, plan.fingerprint(), remedy="rename that folder (a model is found under any name)")
    forget_last_model(plan.placement.compile, device=plan.compute.device)
    _reset_peak_memory(plan.compute)
    try:
        fit_model(plan, Processes())
    except NotFinite as error:
        failure = str(error).removeprefix("got ").split(";")[0]
        say(f"warning: {model.name} failed: {failure}; the others go on")
        return FinishedModel(folder=None, failure=failure)
    return FinishedModel(folder=plan.folder, is_new=True)


def add_finished(experiment: Experiment, models: Sequence[PlannedModel], outcome: Outcome) -> None:
    """Add to ``outcome`` those of the models that happen to be finished; nothing is trained."""
    for model in models:
        if is_ready(model, outcome):
            plan = experiment.plan_of(model, outcome.folders)
            if folder := find_finished(plan.folder, plan.fingerprint()):
                outcome.folders[model.name] = folder


def _kind(experiment: Experiment, model: PlannedModel, folders: Mapping[str, Path]) -> ModelKind:
    corpus, row = experiment.corpus, model.row
    if row.command == "student":
        source = DistillationSource(
            teachers=[folders[teacher] for teacher in model.needs],
            loss=row_loss(experiment.distillation, row),
            shares=shares_of(LEARNT if row.is_learnt else (), len(model.needs)),
            unlabelled=experiment.unlabelled if row.more else None,
        )
        return student_kind(corpus, source, compute_on(experiment.placement))
    tokens = None if row.column is None else experiment.tokens(row.column)
    if row.command == "teacher":
        return teacher_kind(corpus, tokens, row.privileged, folds=row.folds)
    return baseline_kind(corpus) if tokens is None else images_kind(corpus, tokens)


def row_loss(loss: DistillationSettings, row: Row) -> DistillationSettings:
    """Return the loss of a row's students: without the soft term that the row leaves out, without the prediction of images that its teacher
    does not see, and without these terms' own settings, which would be warned of as having no effect."""
    if row.terms == "l2":
        return replace(loss, alpha=0.0, temperature=None, kd_extra="none", kd_extra_weight=KD_EXTRA_WEIGHT)
    left = replace(loss, beta=0.0) if row.terms == "ce" else loss
    if is_without_images(row.name):
        left = replace(left, predict_image=0.0)
    beta = KD_PRESETS[left.kd_preset].beta if left.beta is None else left.beta
    return left if left == loss or beta or left.predict_image else replace(left, embedding_loss="mse")


def _reset_peak_memory(compute: Compute) -> None:
    if compute.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # some containers have no such file or forbid writing to it: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")  # Linux resets the peak resident set to what is resident now


def refuse_launchers() -> None:
    """Raise InputError under a launcher such as torchrun or srun, whose processes would train every model together."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1") or find_launch(os.environ) is not None:
        raise InputError(
            got="tables in several processes of one launcher",
            expected="a command for each",
            do="start the same command once per GPU, with CUDA_VISIBLE_DEVICES, without torchrun, mpirun or several tasks of srun",
        )
