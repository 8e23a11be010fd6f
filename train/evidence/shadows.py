"""Shadows: models with the settings of an audited one, each trained on a random half of its train texts.

They are in the folder ``audit`` of the run, a folder each. Two shadows make a pair: what one has seen, the other has not, so that each
train text is unseen by one shadow of each pair. A shadow of a student is distilled from shadows of its teachers on the same half, so that
the whole pipeline has not seen the other one.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.folds import fold_of_each
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json
from lugpi_core.fingerprint import differences, digest, flat
from lugpi_core.runtime.device import DeviceChoice
from train.data.text_model import TextModel, find_text_model
from train.evidence.outcome import FinishedModel, Outcome
from train.evidence.rows import PlannedModel, Row
from train.evidence.schedule import Experiment, is_ready, train_models
from train.evidence.side_by_side import processes_for, train_side_by_side
from train.file_names import METRICS, PREDICTIONS, TRAINING
from train.learning.losses import KD_PRESETS
from train.models.api import plan_model
from train.models.kinds import DistillationSource, ModelKind, baseline_kind, images_kind, student_kind, teacher_kind
from train.models.model_folder import is_whole, metrics_of, training_of
from train.models.plan import ModelPlan, compute_on
from train.options.distillation import LEARNT, Shares
from train.options.settings import DistillationSettings, Optimization, Placement

FOLDER = "audit"
# What may differ between the seeds of one row, besides the seed. The teachers are compared apart.
_OF_A_SEED = ("flags.seed", "teachers", "teachers_folds", "folds.seed")
# And, of a student that learns its teachers' shares: they differ as the teachers do.
_LEARNT_OF_A_SEED = ("shares", "class_shares")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A finished model, and all that its records say of how it was trained.

    Attributes:
        folder: of the model.
        training: its ``training.json``.
        metrics: its ``metrics.json``.
    """

    folder: Path
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Recorded":
        """Read the records of a finished model. Raises InputError if they are damaged."""
        return cls(folder=folder, training=training_of(folder), metrics=metrics_of(folder))

    def text_model(self) -> TextModel:
        """Return the text model that it was trained from. Raises InputError as ``find_text_model``, or if the records do not name it."""
        if (name := self.metrics["config"].get("text_model")) is None:
            raise InputError(
                got=f"{self.folder}, whose recorded config does not name its text model",
                expected="text_model in the config of its metrics.json",
                do="train it without config=…, or with one that has text_model",
            )
        return find_text_model(name, max_length=self.training["max_length"], flag=f"the text model of {self.folder.name},")

    @property
    def teachers(self) -> tuple[Path, ...]:
        """Folders of a student's teachers."""
        return tuple(self.folder.parent / teacher["name"] for teacher in self.metrics["teachers"])

    @property
    def optimization(self) -> Optimization:
        """Its optimization, with the seed that it had."""
        flags = {one.name: self.training["flags"][one.name] for one in fields(Optimization) if one.name in self.training["flags"]}
        several_images = self.training.get("several_images", "drawn")
        return Optimization(**flags, several_images=several_images, redraw=self.training.get("redraw"))

    @property
    def loss(self) -> DistillationSettings:
        """A student's loss: what differs from its preset is given, and β, which is another where teachers have folds and none is."""
        preset, given = self.metrics["config"].get("kd_preset", "paper"), self.training["distillation"]
        names = [one.name for one in fields(DistillationSettings) if one.name in given]
        differing = {name: given[name] for name in names if name == "beta" or given[name] != getattr(KD_PRESETS[preset], name)}
        return DistillationSettings(kd_preset=preset, **differing)

    def placement(self, device: DeviceChoice) -> Placement:
        """Return where a model of the same precision is trained."""
        return Placement(device=device, dtype=self.training["dtype"])


def require_one_setting(name: str, models: Sequence[Recorded]) -> None:
    """Raise InputError unless the models of a row, and their teachers, have the same settings but for the seed: its shadows are of all of
    them."""
    for model in models[1:]:
        if unlike := _differing_settings(models[0], model):
            raise InputError(
                got=f"{models[0].folder.name} and {model.folder.name}, models of {name} with other settings: {'; '.join(unlike)}",
                expected="the same, but for the seed, because they share their shadows",
                # A row's name is taken for the row: it does not name the folder of the same name.
                do=f"name one of them: --models {next(one.folder.name for one in models if one.folder.name != name)}",
            )


def _differing_settings(model: Recorded, other: Recorded) -> list[str]:
    """Return in which settings two models of one row differ; where in none, in which their teachers do."""
    if unlike := differences(_settings_without_seed(model.training), _settings_without_seed(other.training)):
        return unlike
    both = (sorted(map(training_of, one.teachers), key=_kind_of_teacher) for one in (model, other))
    each = [differences(*map(_settings_without_seed, pair)) for pair in zip(*both, strict=False)]
    return [f"{line} (their teachers)" for of_teacher in each for line in of_teacher]


def _settings_without_seed(training: Mapping[str, Any]) -> dict[str, Any]:
    left_out = _OF_A_SEED + (_LEARNT_OF_A_SEED if "class_shares" in training else ())
    return {key: value for key, value in flat(training) if key not in left_out and key.split(".")[0] not in left_out}


def _kind_of_teacher(training: Mapping[str, Any]) -> tuple[str, str]:
    """Return what tells the teachers of one student apart, whatever their order."""
    return str(training["privileged"]), str(training["image_tokens"])


def halves_of(corpus: Corpus, shadows: int, *, seed: int) -> NDArray[np.bool_]:
    """Return which examples each shadow sees, bool [shadows, N]: each train text is seen by one of shadows 2n and 2n + 1. Halves have their
    shares of each class, and rows of one text together; no validation or test text is seen. Raises InputError as ``fold_of_each``."""
    folds = [fold_of_each(corpus, 2, seed=_number(seed, 0, pair), has_each_class=False) for pair in range(shadows // 2)]
    return np.stack([fold_N == half for fold_N in folds for half in range(2)])


def _number(*parts: int) -> int:
    """Return a seed that follows from others."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


@dataclass(frozen=True, kw_only=True)
class Shadow(PlannedModel):
    """One shadow of one model.

    Attributes:
        number: of the shadow.
        left_out: rows of the train texts that it does not see.
    """

    number: int
    left_out: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return shadow_name(self.row.name, self.number)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the shadows that a student's is distilled from."""
        return tuple(shadow_name(teacher, self.number) for teacher in self.row.teachers)


def shadow_name(model: str, number: int) -> str:
    """Return the name of a model's shadow."""
    return f"{model}-shadow{number:03d}"


@dataclass(frozen=True, kw_only=True)
class Shadows(Experiment):
    """What shadows are trained from: the records of the models that they are shadows of, by those models' names. Text model, optimization
    and placement are those of the first."""

    device: DeviceChoice
    of: Mapping[str, Recorded]
    _text_models: dict[str, TextModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def models(self) -> Path:
        """The folder ``audit`` of the run."""
        return self.run / FOLDER

    def plan_of(self, model: PlannedModel, folders: Mapping[str, Path]) -> ModelPlan:
        """Return the plan of a shadow; its weights are not kept, unless it is a teacher's."""
        assert isinstance(model, Shadow)
        recorded = self.of[model.row.name]
        teachers = [folders[teacher] for teacher in model.needs]
        plan = self._plan(recorded, teachers, name=model.name, seed=model.seed, left_out=model.left_out)
        mark = {"shadow": {"number": model.number, "left_out": digest(list(model.left_out))}}
        kind = replace(plan.kind, fingerprint={**plan.kind.fingerprint, **mark})
        return replace(plan, kind=kind, left_out=model.left_out, keeps_weights=False)

    def find(self, plan: ModelPlan) -> FinishedModel | None:
        """Return a shadow if it is finished, with the settings of the plan."""
        whole = all((plan.folder / name).is_file() for name in (METRICS, PREDICTIONS, TRAINING))
        if not whole or (plan.kind.command == "teacher" and not is_whole(plan.folder)):
            return None
        return None if differences(read_json(plan.folder / TRAINING), plan.fingerprint()) else FinishedModel(folder=plan.folder)

    def make_room(self, plan: ModelPlan) -> None:
        """Remove a shadow of other settings, finished or begun: no name but the audit's own leads to it."""
        record = plan.folder / TRAINING
        unlike = differences(read_json(record), plan.fingerprint()) if record.is_file() else []
        if unlike:
            say(f"warning: {plan.folder} is a shadow of a model with other settings ({unlike[0]}): it is trained again")
        if plan.folder.exists() and (unlike or not record.is_file()):  # without a record where this was killed
            shutil.rmtree(plan.folder)

    def require_same(self, recorded: Recorded) -> None:
        """Raise InputError unless a plan from a model's records, with its own teachers, is the plan that it was trained with."""
        gone = [teacher.name for teacher in recorded.teachers if not is_whole(teacher)]
        if gone:
            raise InputError(
                got=f"{recorded.folder}, whose teacher {gone[0]} is not in the run",
                expected="the teacher, whose shadows its own are distilled from",
                do="train it again with the same settings, or leave the student out (--models)",
            )
        plan = self._plan(recorded, recorded.teachers, name=recorded.folder.name, seed=recorded.training["flags"]["seed"])
        if unlike := differences(recorded.training, plan.fingerprint()):
            raise InputError(
                got=f"{recorded.folder}, which cannot be trained again as it was: {'; '.join(unlike)}",
                expected="the text model, tokens, teachers and corpus that it was trained from",
                do="restore them, or train the model again under another name",
            )

    def _plan(self, recorded: Recorded, teachers: Sequence[Path], *, name: str, seed: int, left_out: tuple[int, ...] = ()) -> ModelPlan:
        placement = recorded.placement(self.device)
        plan = plan_model(
            self._kind(recorded, teachers, placement, left_out),
            self.run,
            name=name,
            text_model=self._text_model(recorded),
            optimization=replace(recorded.optimization, seed=seed),
            placement=placement,
        )
        return replace(plan, folder=self.models / name, shared=self.shared)

    def _text_model(self, recorded: Recorded) -> TextModel:
        name = recorded.folder.name
        if name not in self._text_models:
            self._text_models[name] = recorded.text_model()
        return self._text_models[name]

    def _kind(self, recorded: Recorded, teachers: Sequence[Path], placement: Placement, left_out: tuple[int, ...]) -> ModelKind:
        training, corpus = recorded.training, self.corpus
        match training["command"]:
            case "baseline":
                return baseline_kind(corpus)
            case "images":
                return images_kind(corpus, self.tokens(training["image_tokens"]))
            case "teacher":
                return teacher_kind(
                    corpus,
                    None if training["image_tokens"] is None else self.tokens(training["image_tokens"]),
                    training["privileged"],
                    outputs_dtype=recorded.metrics["config"].get("outputs_dtype", "float32"),
                    folds=training.get("folds", {}).get("count"),
                )
        shares: Shares = LEARNT if "class_shares" in training else tuple(training["shares"])
        layers = training["layers"]
        source = DistillationSource(teachers=teachers, loss=recorded.loss, shares=shares, layers=layers, left_out=left_out)
        return student_kind(corpus, source, compute_on(placement))


def shadows_of(models: Sequence[Recorded], corpus: Corpus, halves: NDArray[np.bool_], *, seed: int) -> list[Shadow]:
    """Return every shadow of some models, those of teachers first.

    Args:
        models: teachers of students among them too.
        corpus: of the run.
        halves: which examples each shadow sees, as ``halves_of``.
        seed: of the audit.

    The shadows of one number have one seed, but for teachers that differ from their student in it, as those of an ensemble do: with equal
    settings and one half of the texts they would be one network.
    """
    seeds = {model.folder.name: model.training["flags"]["seed"] for model in models}
    # Modulo 2³², because a seed is no negative number.
    apart = {teacher.name: (seeds[teacher.name] - seeds[model.folder.name]) % 2**32 for model in models for teacher in model.teachers}
    train_N = np.isin(np.arange(len(corpus.examples)), corpus.rows("train"))
    ordered = sorted(models, key=lambda model: model.training["command"] == "student")
    shadows = []
    for number, seen_N in enumerate(halves):
        left_out = tuple(np.flatnonzero(train_N & ~seen_N).tolist())
        for model in ordered:
            row = Row(
                name=model.folder.name,
                command=model.training["command"],
                groups=(),
                teachers=tuple(teacher.name for teacher in model.teachers),
            )
            own = [apart[row.name]] if apart.get(row.name) else []
            shadows.append(Shadow(row=row, seed=_number(seed, 1, number, *own), number=number, left_out=left_out))
    return shadows


def train_shadows(experiment: Shadows, shadows: Sequence[Shadow], processes: int | None) -> Outcome:
    """Return when every shadow is finished; those that are there are kept, and interrupted ones resumed.

    Raises:
        InputError: as ``train_models``; or a shadow's loss was not finite.
        Stopped: a signal asked for it; finished shadows and checkpoints are kept.
    """
    make_folder(experiment.models)
    outcome = Outcome()
    for shadow in shadows:
        if is_ready(shadow, outcome) and (found := experiment.find(experiment.plan_of(shadow, outcome.folders))):
            outcome.add(shadow.name, found)
    missing = len(shadows) - len(outcome.folders)
    say(f"shadows: {len(shadows)} models, each on half of the train texts, in {experiment.models}; {missing} to be trained")
    if missing:
        count = min(processes_for(experiment, processes), missing)
        outcome = train_models(experiment, shadows) if count == 1 else train_side_by_side(experiment, shadows, count)
    for name, why in outcome.failed.items():
        raise InputError(got=f"{name} without finite answers ({why})", expected="every shadow finished", do="give another --seed")
    return outcome
