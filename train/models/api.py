"""Train a baseline, an image classifier, a teacher or a student: the Python API, and what the commands call.

Every function resumes an interrupted training, confirms a finished model, and refuses a folder whose model has other settings.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypedDict, Unpack, cast, get_args

from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusSettings, require_folds
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import require_choice, require_known_arguments, require_type
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.libraries import prepare_libraries
from train.data.image_tokens import open_image_tokens
from train.data.text_model import TextModel, find_text_model
from train.learning.distributed import joined
from train.learning.networks import text_width
from train.learning.progress import require_trackers
from train.models.arguments import column_of, require_numbers, require_trainable, teacher_folders
from train.models.kinds import DistillationSource, ModelKind, baseline_kind, images_kind, student_kind, teacher_kind
from train.models.plan import ModelPlan, compute_on
from train.models.teachers import open_privileged, with_separator_of
from train.models.train_model import TrainedModel, train_model
from train.options.distillation import ANCHOR_WEIGHT, LEARNT, require_anchor_weight, shares_of
from train.options.settings import TEXT_MODEL, DistillationSettings, Optimization, OutputsDtype, Placement, Preset, Privileged
from train.options.training import folds_suffix, require_model_name


class TrainingArguments(TypedDict, total=False):
    """The keyword arguments that every function below takes.

    Attributes:
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, seed, …
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        name: of the model's folder in the run (default: the command's name). Models with different settings need different names.
        config: settings to record in ``metrics.json`` besides its own.
    """

    text_model: str | TextModel
    optimization: Optimization
    placement: Placement
    name: str
    config: Mapping[str, Any]


class TeacherArguments(TrainingArguments, total=False):
    """The keyword arguments of ``train_teacher``.

    Attributes:
        outputs_dtype: how its embeddings are stored for the student.
        folds: how many folds of the train texts its outputs are cross-fitted on; None = on none.
    """

    outputs_dtype: OutputsDtype
    folds: int | None


class StudentArguments(TrainingArguments, total=False):
    """The keyword arguments of ``distill``.

    Attributes:
        student_layers: keep only that many layers of the text model, 1 or more, evenly spaced; None = all.
        anchor: an earlier student or baseline of the same classes, or its folder, near to whose answers the student is held; or None.
        anchor_weight: its share of the loss, between 0 and 1 (default: 0.5).
    """

    student_layers: int | None
    anchor: TrainedModel | str | Path | None
    anchor_weight: float


def train_baseline(corpus: Corpus, run_dir: str | Path, **training: Unpack[TrainingArguments]) -> TrainedModel:
    """Fine-tune the text model alone: what a student has to beat.

    Args:
        corpus: what it is trained and scored on.
        run_dir: the run, the folder in which the model's folder is created.
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, seed, …
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        name: of the model's folder in the run (default: baseline). Baselines with different settings need different names.
        config: settings to record in ``metrics.json`` besides its own.

    Raises:
        InputError: a setting or the text model is unusable, a text of the corpus has no label, or the folder holds another model.
        TypeError: an argument has another type.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    require_type("run_dir", run_dir, str, PathLike)
    return _train(corpus, lambda _: plan_model(baseline_kind(corpus), run_dir, **training), training)


def train_images(
    corpus: Corpus,
    store: str | PathLike[str],
    *,
    column: str | None = None,
    run_dir: str | Path | None = None,
    **training: Unpack[TrainingArguments],
) -> TrainedModel:
    """Train the fusion head on image tokens alone: the image-only rows of the paper's Table 1.

    Args:
        corpus: whose images the store holds.
        store: its folder, or a ``TokenStore`` of whole columns (``image`` 0 or None).
        column: which of its tokens to read; None = the only ones there, or opened. Of several images per text each epoch reads one at
            random and predictions the first, or all read their mean, weighted or not, or the best (``Optimization.several_images``).
        run_dir: the run (default: the folder of the store).
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, seed, …
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        name: of the model's folder in the run (default: images). Models with different settings need different names.
        config: settings to record in ``metrics.json`` besides its own.

    Raises:
        InputError, TypeError: as ``train_baseline``, and as ``open_image_tokens``.
        Stopped: a signal asked for it; a checkpoint is written.
    """

    require_type("store", store, str, PathLike)
    require_type("run_dir", run_dir, str, PathLike, NoneType)

    def plan(_: Compute) -> ModelPlan:
        kind = images_kind(corpus, open_image_tokens(Path(store), column_of(store, column), corpus))
        return plan_model(kind, run_dir or Path(store).parent, **training)

    return _train(corpus, plan, training)


def train_teacher(
    corpus: Corpus,
    store: str | PathLike[str] | None,
    *,
    column: str | None = None,
    privileged: Privileged = "images",
    run_dir: str | Path | None = None,
    **arguments: Unpack[TeacherArguments],
) -> TrainedModel:
    """Train the multimodal teacher on text and image tokens, and write its outputs for the student.

    Args:
        corpus: whose images the store holds.
        store: its folder, or a ``TokenStore`` of whole columns (``image`` 0 or None); may be None with ``privileged="none"`` and a
            ``run_dir``.
        column: which of its tokens to read; None = the only ones there, or opened. Of several images per text each epoch reads one at
            random and predictions the first, or all read their mean, weighted or not, or the best (``Optimization.several_images``).
        privileged: what it reads in addition to the text: the example's own images, or, as controls, the vectors of the generator's text
            encoder ("text": the store's column ``prompt-text``), images of other examples, blank ones, or none.
        run_dir: the run (default: the folder of the store).
        outputs_dtype: how its embeddings are stored for the student: "float32", the default, or "float16".
        folds: 2 or more train that many more teachers, each without one fold of the train texts, and give students of each train text what
            the teacher that has not seen it says (cross-fitting); None, the default = one teacher for all texts.
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, seed, …
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        name: of the model's folder in the run (default: teacher, of controls teacher-text, teacher-shuffled, …, and with folds
            teacher-folds5, teacher-none-folds5, …). Teachers with different settings need different names.
        config: settings to record in ``metrics.json`` besides its own.

    Raises:
        InputError, TypeError: as ``train_baseline``, and as ``open_image_tokens``.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    require_type("store", store, str, PathLike, NoneType)
    require_type("run_dir", run_dir, str, PathLike, NoneType)
    require_choice("privileged", privileged, get_args(Privileged))
    require_known_arguments(arguments, TeacherArguments)
    outputs_dtype, folds = arguments.get("outputs_dtype", "float32"), arguments.get("folds")
    require_choice("outputs_dtype", outputs_dtype, get_args(OutputsDtype))
    require_type("folds", folds, int, NoneType)
    require_folds(folds)
    if store is not None:
        run_dir = run_dir or Path(store).parent
    if run_dir is None or (store is None and privileged != "none"):
        raise InputError(got="no token store", expected="one, or privileged='none' and a run_dir", do="give the folder of the store")
    run = Path(run_dir)
    training = cast(TrainingArguments, {name: value for name, value in arguments.items() if name in TrainingArguments.__annotations__})
    training.setdefault("name", ("teacher" if privileged == "images" else f"teacher-{privileged}") + folds_suffix(folds))

    def plan(_: Compute) -> ModelPlan:
        tokens = None
        if store is not None and privileged != "none":
            chosen = column if privileged == "text" else column_of(store, column)
            tokens = open_privileged(Path(store), chosen, privileged, corpus)
        return plan_model(teacher_kind(corpus, tokens, privileged, outputs_dtype=outputs_dtype, folds=folds), run, **training)

    return _train(corpus, plan, training)


def distill(
    corpus: Corpus,
    teachers: Sequence[TrainedModel | str | Path],
    *,
    distillation: DistillationSettings | Preset = "paper",
    teacher_weights: Sequence[float] | Literal["learnt"] = (),
    unlabelled: Corpus | str | Path | None = None,
    **arguments: Unpack[StudentArguments],
) -> TrainedModel:
    """Distil a text-only student from the cached outputs of one teacher or several.

    Args:
        corpus: the teachers'.
        teachers: trained teachers, or their folders.
        distillation: the loss: "paper", "hinton" or "lopez-paz", or ``DistillationSettings``.
        teacher_weights: of each teacher in the soft terms; empty = equal ones; "learnt" = for each group of classes those that fit texts
            best that the teachers have not been trained on.
        unlabelled: texts to distil on as well, or a file of them in a column ``text``; of pairs, or with other columns, a
            ``Corpus.from_texts(…)`` with the name of the file. Their images are in the store ``tokens-<name>`` of the run.
        student_layers: keep only that many layers of the text model, 1 or more, evenly spaced; None = all.
        anchor: an earlier student or baseline of the same classes, or its folder, near to whose answers the student is held; or None.
        anchor_weight: its share of the loss, between 0 and 1 (default: 0.5).
        text_model: name on the Hugging Face hub, folder, or "demo"; or ``find_text_model(name, max_length=…)`` (default:
            distilbert-base-uncased).
        optimization: ``Optimization``: epochs, batch size, learning rate, seed, …
        placement: ``Placement``: device, precision, compilation, trackers, where image tokens are.
        name: of the model's folder in the run (default: student). A student with other settings than an earlier one needs another name.
        config: settings to record in ``metrics.json`` besides its own.

    Raises:
        InputError, TypeError: as ``train_baseline``; a teacher is missing, unfinished, or of another corpus; every weight of the loss
            is zero.
        Stopped: a signal asked for it; a checkpoint is written.
    """
    folders = teacher_folders(teachers)
    require_type("distillation", distillation, DistillationSettings, str)
    loss = distillation if isinstance(distillation, DistillationSettings) else DistillationSettings(kd_preset=distillation)
    is_learnt = isinstance(teacher_weights, str) and teacher_weights == LEARNT
    shares = shares_of(LEARNT if is_learnt else require_numbers("teacher_weights", teacher_weights), len(folders))
    require_type("unlabelled", unlabelled, Corpus, str, Path, NoneType)
    require_known_arguments(arguments, StudentArguments)
    layers, anchor = arguments.get("student_layers"), arguments.get("anchor")
    require_type("student_layers", layers, int, NoneType)
    require_type("anchor", anchor, TrainedModel, str, Path, NoneType)
    require_type("anchor_weight", weight := arguments.get("anchor_weight", ANCHOR_WEIGHT), int, float)
    require_anchor_weight(weight, has_anchor=anchor is not None)
    training = cast(TrainingArguments, {name: value for name, value in arguments.items() if name in TrainingArguments.__annotations__})

    def plan(compute: Compute) -> ModelPlan:
        extra = unlabelled
        if isinstance(extra, str | Path):
            extra = load_unlabelled(Path(extra), CorpusSettings())
        source = DistillationSource(
            teachers=folders,
            loss=loss,
            shares=shares,
            unlabelled=None if extra is None else with_separator_of(extra, corpus),
            layers=layers,
            anchor=anchor.folder if isinstance(anchor, TrainedModel) else None if anchor is None else Path(anchor),
            anchor_weight=weight,
        )
        return plan_model(student_kind(corpus, source, compute), folders[0].parent, **training)  # a record names teachers of its own run

    return _train(corpus, plan, training)


def plan_model(kind: ModelKind, run_dir: str | Path, **training: Unpack[TrainingArguments]) -> ModelPlan:
    """Return the plan of one model of that kind in a run.

    Raises:
        InputError: the text model is unusable, or the name is no folder name.
    """
    run_dir, name = Path(run_dir), training.get("name", kind.command)
    require_model_name(name, flag="--name")
    text_model = training.get("text_model", TEXT_MODEL)
    if isinstance(text_model, str):
        text_model = find_text_model(text_model, max_length=None)
    if kind.command == "teacher" or kind.image_tokens is not None:
        text_width(text_model.config, "--text-model")  # before anything is trained
    optimization, placement = training.get("optimization", Optimization()), training.get("placement", Placement())
    if optimization.class_weights != "none" and not kind.learns_labels:
        say(f"warning: --class-weights {optimization.class_weights} has no effect on the loss with --hard 0")
    settings = {
        "dataset": kind.corpus.name,
        "run_dir": str(run_dir),
        "name": name,
        "text_model": text_model.name,
        "max_length": text_model.max_length,
        **resolved_flags(optimization),
        **resolved_flags(placement),
        **kind.settings,
    }
    return ModelPlan(
        kind=kind,
        run_dir=run_dir,
        folder=run_dir / name,
        text_model=text_model,
        optimization=optimization,
        placement=placement,
        config={**settings, **training.get("config", {})},
    )


def warn_of_idle_settings(optimization: Optimization, on: str = "") -> None:
    """Name the settings of frozen layers that do nothing because others were not given; ``on`` says for which model."""
    if optimization.head_learning_rate != Optimization.head_learning_rate and optimization.update != "lp-ft":
        say("warning: --head-learning-rate has no effect without --update lp-ft")
    if optimization.prefix_dtype != Optimization.prefix_dtype and not optimization.freeze_layers and optimization.update == "full":
        say(f"warning: --prefix-dtype has no effect{on}: no layers are frozen")


def _why_one_image(plan: ModelPlan) -> str:
    """Return why a model reads the same of each text in every epoch."""
    if plan.kind.image_tokens is None:
        return "it reads no images"
    return "it reads blank images" if plan.kind.privileged == "blank" else "each text has one image"


def _train(corpus: Corpus, plan: Callable[[Compute], ModelPlan], training: TrainingArguments) -> TrainedModel:
    require_known_arguments(training, TrainingArguments)
    require_trainable(corpus, training)
    prepare_libraries()
    placement = training.get("placement", Placement())
    require_trackers(placement.track)
    compute = compute_on(placement)
    with joined(compute.device) as processes:
        with processes.first_before_others():
            planned = plan(compute)
        if (asked := planned.optimization.several_images) != planned.several_images:
            say(f"warning: --several-images {asked} has no effect on {planned.folder.name}: {_why_one_image(planned)}")
        if planned.optimization.redraw != planned.redraw:
            raise InputError(
                got=f"--redraw {planned.optimization.redraw} for {planned.folder.name}: {_why_one_image(planned)}",
                expected="a model that reads one of several images of each text",
                do="leave it out, or draw several: featurize --images-per-text 4",
            )
        if planned.placement.tokens_on != "auto" and planned.kind.image_tokens is None and planned.trains_all:
            say(f"warning: --tokens-on has no effect on {planned.folder.name}: it reads no images, and no layers are frozen")
        warn_of_idle_settings(planned.optimization, f" on {planned.folder.name}")
        if not planned.kind.reads_text and (planned.optimization.freeze_layers or planned.optimization.update != "full"):
            say(f"warning: --freeze-layers and --update have no effect on {planned.folder.name}: it reads no text")
        return train_model(planned, processes)
