"""The four kinds of model: how a baseline, an image classifier, a teacher and a student differ in network, loss and inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.store.layout import OWN_IMAGES
from train.data.image_tokens import ImageTokens
from train.data.teacher_outputs import TeacherOutputs
from train.data.text_model import TextModel, keep_layers, load_text_classifier
from train.data.training_data import Batch
from train.learning.loop import Loss
from train.learning.losses import Distillation, TeacherTarget, anchored_loss, distillation, distillation_loss
from train.learning.networks import FusionHead, ImageClassifier, Output, Student, TextClassifier, text_dropout, text_width
from train.learning.task_rules import rules_of
from train.models.anchor import Anchor, find_anchor
from train.models.class_shares import soft_labels
from train.models.teachers import (
    NO_IMAGE_TOKENS,
    FoundTeacher,
    build_teacher,
    find_teacher,
    last_layer,
    outputs_for,
    require_images,
    require_same_folds,
    require_task,
)
from train.options.distillation import ANCHOR_WEIGHT, LEARNT, Shares
from train.options.settings import DistillationSettings, OutputsDtype, Privileged


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """What distinguishes one kind of model from another.

    Attributes:
        command: baseline, images, teacher or student.
        corpus: what it is trained and scored on.
        fingerprint: what decides the result in addition to optimization, corpus and text model.
        build: creates the model from the text model; new weights follow from torch's seed.
        loss: of the model's output and a batch.
        learns_labels: whether the labels have a weight in the loss.
        is_contrastive: whether the loss tells the texts of a batch from each other.
        reads_text: whether it reads the texts.
        image_tokens: the image tokens it reads, or None.
        privileged: whose images it reads.
        extra: unlabelled texts it is trained on as well, or None.
        anchor: an earlier model near to whose answers it is held, or None.
        teachers: the outputs it is distilled on, for the corpus followed by ``extra``.
        teacher_records: name, privileged information and share of each teacher, for ``metrics.json``.
        learnt_shares: the teachers' shares by group of classes, for ``metrics.json``; None if they are given.
        outputs_dtype: how a teacher's embeddings are stored.
        folds: of the train texts, on which a teacher's outputs are cross-fitted; None = its outputs are its own.
        licenses: of what the model derives from, other than corpus and text model.
        notice: what a reader of the metrics has to know, or None.
        settings: of this kind, for the ``config`` in ``metrics.json``.
    """

    command: Literal["baseline", "images", "teacher", "student"]
    corpus: Corpus
    fingerprint: dict[str, Any]
    build: Callable[[TextModel], nn.Module]
    loss: Loss
    learns_labels: bool = True
    is_contrastive: bool = False
    reads_text: bool = True
    image_tokens: ImageTokens | None = None
    privileged: Privileged = "images"
    extra: Corpus | None = None
    anchor: Anchor | None = None
    teachers: tuple[TeacherOutputs, ...] = ()
    teacher_records: tuple[dict[str, Any], ...] = ()
    learnt_shares: dict[str, Any] | None = None
    outputs_dtype: OutputsDtype = "float32"
    folds: int | None = None
    licenses: tuple[str, ...] = ()
    notice: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def baseline_kind(corpus: Corpus) -> ModelKind:
    """Return the kind of a baseline: the text model with a classification head."""
    return ModelKind(
        command="baseline",
        corpus=corpus,
        fingerprint={},
        build=lambda text_model: TextClassifier(load_text_classifier(text_model, corpus)),
        loss=label_loss(corpus.task),
    )


def images_kind(corpus: Corpus, tokens: ImageTokens) -> ModelKind:
    """Return the kind of a classifier of image tokens alone: the fusion head without text."""

    def build(text_model: TextModel) -> nn.Module:
        return ImageClassifier(
            FusionHead(
                text_width=text_width(text_model.config, "--text-model"),
                image_width=tokens.width,
                classes=len(corpus.label_names),
                reads_text=False,
                dropout=text_dropout(text_model.config),
            )
        )

    _warn_of_failed_images(tokens)
    if tokens.is_subset:
        say(f"note: of the train texts, only those that have an image are read; {_without_image(tokens)}")
    spec = tokens.reader.spec
    return ModelKind(
        command="images",
        corpus=corpus,
        fingerprint={"image_tokens": spec.name, "tokens": tokens.fingerprint()},
        build=build,
        loss=label_loss(corpus.task),
        reads_text=False,
        image_tokens=tokens,
        licenses=(spec.license,),
        notice=spec.notice,
        settings={"image_tokens": spec.name},
    )


def teacher_kind(
    corpus: Corpus,
    tokens: ImageTokens | None,
    privileged: Privileged,
    *,
    outputs_dtype: OutputsDtype = "float32",
    folds: int | None = None,
) -> ModelKind:
    """Return the kind of a multimodal teacher, or of one of its controls; ``tokens`` are None if and only if ``privileged`` is none. With
    ``folds`` its outputs are cross-fitted on as many."""
    no_image = None
    if tokens is not None:
        _warn_of_failed_images(tokens)
        if tokens.is_subset:
            no_image = {"tokens": tokens.reader.spec.row_shape[0], "texts": int((~tokens.has_image).sum())}
            say(f"note: {no_image['tokens']} learnt tokens stand for an image that was not drawn; {_without_image(tokens)}")
    spec = None if tokens is None else tokens.reader.spec
    return ModelKind(
        command="teacher",
        corpus=corpus,
        fingerprint={
            "image_tokens": None if spec is None else spec.name,
            "tokens": {} if tokens is None else tokens.fingerprint(),
            "privileged": privileged,
            **({} if no_image is None else {NO_IMAGE_TOKENS: no_image}),
        },
        build=lambda text_model: build_teacher(
            text_model, len(corpus.label_names), None if tokens is None else tokens.width, None if no_image is None else no_image["tokens"]
        ),
        loss=label_loss(corpus.task),
        image_tokens=tokens,
        privileged=privileged,
        outputs_dtype=outputs_dtype,
        folds=folds,
        licenses=() if spec is None else (spec.license,),
        notice=None if spec is None else spec.notice,
        settings={
            "image_tokens": None if spec is None else spec.name,
            "privileged": privileged,
            "outputs_dtype": outputs_dtype,
            **({} if folds is None else {"folds": folds}),
        },
    )


@dataclass(frozen=True, kw_only=True)
class DistillationSource:
    """What a student is distilled from, and how.

    Attributes:
        teachers: folders of one teacher or several.
        loss: its settings.
        shares: of each teacher in the soft terms, which sum to 1; or learnt: by group of classes in the soft labels, of all texts in the
            other soft terms.
        unlabelled: texts to distil on as well, or None.
        layers: of the text model that the student keeps; None = all.
        anchor: folder of an earlier model near to whose answers it is held, or None.
        anchor_weight: λ, the anchor's share of the loss.
        left_out: train examples whose labels decide nothing: what a shadow has not seen.
    """

    teachers: Sequence[Path]
    loss: DistillationSettings
    shares: Shares
    unlabelled: Corpus | None = None
    layers: int | None = None
    anchor: Path | None = None
    anchor_weight: float = ANCHOR_WEIGHT
    left_out: tuple[int, ...] = ()


def student_kind(corpus: Corpus, source: DistillationSource, compute: Compute) -> ModelKind:
    """Return the kind of a text-only student, distilled on its teachers' cached outputs. It reads neither images nor teachers, except that
    teachers are run once, on ``compute``, on unlabelled texts that they have not read yet.

    Raises:
        InputError: every weight of the loss is zero; a teacher is missing or unfinished, or has no images to predict; shares are to be
            learnt for another task than single-label; or as ``require_boundary``, ``find_anchor`` and ``outputs_for`` do.
    """
    teachers, extra = [find_teacher(folder) for folder in source.teachers], source.unlabelled
    anchor = None if source.anchor is None else find_anchor(source.anchor, corpus, source.anchor_weight)
    for teacher in teachers:
        require_task(teacher, corpus)
    has_folds = require_same_folds(teachers) is not None
    require_boundary(source.loss, corpus.task, has_folds=has_folds, is_mixed=source.shares == LEARNT)
    weights = loss_weights(source.loss, corpus.task, has_folds=has_folds)
    if weights.predict_image:
        for teacher in teachers:
            require_images(teacher)
    cached = tuple(outputs_for(teacher, corpus, extra, compute, with_images=weights.predict_image > 0) for teacher in teachers)
    soft = soft_labels(corpus, teachers, cached, source.shares, weights.temperature, left_out=source.left_out)
    heads = [last_layer(teacher) for teacher in teachers] if weights.kd_extra == "bss" else []
    image_widths = [outputs.images.shape[1] for outputs in cached if outputs.images is not None]

    def build(text_model: TextModel) -> nn.Module:
        for teacher in teachers:
            if Path(theirs := teacher.metrics["config"]["text_model"]).name != Path(text_model.name).name:
                say(f"warning: {teacher.folder.name} reads {theirs}, the student {text_model.name}; the paper uses one for both")
        model = load_text_classifier(text_model, corpus)
        if source.layers is not None:
            keep_layers(model, source.layers)
        widths = [outputs.embeddings.shape[1] for outputs in cached] if weights.beta or heads else []
        return Student(TextClassifier(model), widths, image_widths, heads)

    of_models = [*(teacher.metrics for teacher in teachers), *([] if anchor is None else [anchor.metrics])]
    return ModelKind(
        command="student",
        corpus=corpus,
        fingerprint={
            "teachers": [outputs.teacher for outputs in cached],
            **({"teachers_folds": folds} if any(folds := [outputs.folds for outputs in cached]) else {}),
            "teachers_embeddings": [str(outputs.embeddings.dtype).removeprefix("torch.") for outputs in cached],
            "shares": list(soft.shares),
            **({} if soft.learnt is None else {"class_shares": soft.learnt.fingerprint()}),
            "distillation": _recorded(weights),
            "layers": source.layers,
            "unlabelled": None if extra is None else extra.fingerprint(),
            **({"unlabelled_images": images} if any(images := [outputs.unlabelled_images for outputs in cached]) else {}),
            **({} if anchor is None else {"anchor": {"model": anchor.model, "weight": anchor.weight}}),
        },
        build=build,
        loss=_student_loss(weights, soft.shares, source.anchor_weight, corpus.task),
        learns_labels=weights.hard > 0,
        is_contrastive=is_contrastive(weights),
        extra=extra,
        anchor=anchor,
        teachers=soft.outputs,
        teacher_records=tuple(
            {"name": teacher.folder.name, "privileged": teacher.fingerprint["privileged"], "share": round(share, 6), **_more(teacher)}
            for teacher, share in zip(teachers, soft.shares, strict=True)
        ),
        learnt_shares=soft.record,
        licenses=tuple(dict.fromkeys(line for metrics in of_models for line in metrics["licenses"])),
        notice=next((teacher.metrics["notice"] for teacher in teachers if teacher.metrics["notice"]), None),
        settings={
            **vars(source.loss),
            "teachers": [teacher.folder.name for teacher in teachers],
            "teacher_weights": source.shares if isinstance(source.shares, str) else list(source.shares),
            "student_layers": source.layers,
            "unlabelled": None if extra is None else extra.name,
            **({} if anchor is None else {"anchor": str(anchor.folder), "anchor_weight": anchor.weight}),
        },
    )


def _recorded(weights: Distillation) -> dict[str, Any]:
    """Return the weights of a loss for a fingerprint: those that came later where they count, so that older students are recognized."""
    idle = {"predict_image"} if weights.predict_image == 0 else set()
    idle |= {"kd_extra", "kd_extra_weight"} if weights.kd_extra == "none" else set()
    return {name: value for name, value in vars(weights).items() if name not in idle}


def _student_loss(weights: Distillation, shares: Sequence[float], anchor_weight: float, task: Task) -> Loss:
    """Return the loss of a student of one teacher or several, and of an anchor if the batches have its logits."""

    def loss(output: Output, batch: Batch) -> torch.Tensor:
        # Without a distance of the embeddings nothing is projected, and the teacher's are a placeholder that the loss does not read.
        students = output.projected or [teacher.embeddings for teacher in batch.teachers]
        predictions, heads = output.predicted or [None for _ in batch.teachers], output.heads or [None for _ in batch.teachers]
        targets = [
            TeacherTarget(share, teacher.logits, teacher.embeddings, student_BD, teacher.images, predicted_BI, of_teacher)
            for share, teacher, student_BD, predicted_BI, of_teacher in zip(
                shares, batch.teachers, students, predictions, heads, strict=True
            )
        ]
        loss = distillation_loss(weights, output.logits, targets, batch.labels, task=task, class_weights=batch.class_weights)
        if batch.anchor is None:
            return loss
        return anchored_loss(loss, output.logits, batch.anchor, weight=anchor_weight, task=task)

    return loss


def _more(teacher: FoundTeacher) -> dict[str, Any]:
    """Return what is recorded of a teacher whose images are a user's own, or whose outputs are cross-fitted; nothing of others."""
    generation = teacher.fingerprint["tokens"].get("generation", {})
    own = {"own_images": True} if isinstance(generation, Mapping) and generation.get("generator") == OWN_IMAGES else {}
    return own | ({"folds": teacher.fingerprint["folds"]["count"]} if "folds" in teacher.fingerprint else {})


def is_contrastive(weights: Distillation) -> bool:
    """Whether a loss tells the texts of a batch from each other."""
    return weights.embedding_loss == "infonce" and (weights.beta > 0 or weights.predict_image > 0)


def plain_weights(settings: DistillationSettings, *, has_folds: bool = False) -> Distillation:
    """Return the weights of a student's loss. Of teachers with folds β is 0 unless it is given: embeddings of several trainings share no
    space. It stays where α is 0, because it is then the only soft term that a text-only control has.

    Raises:
        InputError: every weight is zero.
    """
    weights = distillation(
        settings.kd_preset,
        hard=settings.hard,
        alpha=settings.alpha,
        beta=settings.beta,
        temperature=settings.temperature,
        embedding_loss=settings.embedding_loss,
        predict_image=settings.predict_image,
        kd_extra=settings.kd_extra,
        kd_extra_weight=settings.kd_extra_weight,
    )
    return replace(weights, beta=0.0) if has_folds and settings.beta is None and weights.alpha else weights


def loss_weights(settings: DistillationSettings, task: Task = "single-label", *, has_folds: bool = False) -> Distillation:
    """Return ``plain_weights``, and say which settings have no effect. Raises InputError as it does."""
    weights = plain_weights(settings, has_folds=has_folds)
    if (beta := plain_weights(settings).beta) != weights.beta:
        say(
            f"note: --beta 0, not {beta:g}: embeddings of the folds' teachers share no space; --beta {beta:g} takes them, "
            "rotated into that of the teacher on all texts"
        )
    elif has_folds and settings.beta is None and weights.beta:
        say(
            f"note: --beta {weights.beta:g} stays with --alpha 0, although embeddings of the folds' teachers share no space: "
            "they are rotated into that of the teacher on all texts; --beta 0 leaves them out"
        )
    if weights.kd_extra != "none" and weights.beta == 0:
        say(f"note: --kd-extra {weights.kd_extra} with --beta 0: nothing but it brings the student's embeddings into the teacher's space")
    if settings.temperature is not None and weights.alpha == 0 and weights.kd_extra == "none":
        say("warning: --temperature has no effect with --alpha 0")
    elif settings.temperature is not None and task == "regression":
        say("warning: --temperature has no effect on a regression: a teacher's number is no distribution that could be softened")
    if settings.embedding_loss != "mse" and weights.beta == weights.predict_image == 0:
        say(f"warning: --embedding-loss {settings.embedding_loss} has no effect without --beta or --predict-image")
    return weights


def require_boundary(settings: DistillationSettings, task: Task, *, has_folds: bool, is_mixed: bool = False) -> None:
    """Raise InputError if samples at the boundary are asked for where a teacher has none that is known."""
    if settings.kd_extra == "none":
        return
    do = "leave --kd-extra out"
    if task != "single-label":
        why = {"multi-label": "where each class is a question of its own", "regression": "whose answers are numbers"}[task]
        raise InputError(got=f"--kd-extra {settings.kd_extra} for a {task} task, {why}", expected="one class for each text", do=do)
    if has_folds:
        raise InputError(
            got=f"--kd-extra {settings.kd_extra} with teachers of folds, each of which has a boundary of its own",
            expected="teachers that were trained on all texts",
            do=f"{do}, or name teachers without folds",
        )
    if is_mixed:
        raise InputError(
            got=f"--kd-extra {settings.kd_extra} with --teacher-weights learnt, a mixture of teachers that has no last layer",
            expected="shares that are the same for all texts",
            do=f"{do}, or give the weights",
        )


def label_loss(task: Task) -> Loss:
    """Return the loss of a model that learns from the labels alone, a scalar in float32: the task's loss on them."""
    rules = rules_of(task)
    return lambda output, batch: rules.hard_loss(output.logits.float(), batch.labels, batch.class_weights)


def _without_image(tokens: ImageTokens) -> str:
    return f"none was drawn for {int((~tokens.has_image).sum()):,} of {len(tokens.has_image):,} texts (featurize --subset)"


def _warn_of_failed_images(tokens: ImageTokens) -> None:
    if flagged := len(tokens.reader.flagged):
        say(f"warning: {flagged} images failed and are read as blank; python -m featurize info lists them")
