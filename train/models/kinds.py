"""What tells a baseline, an image classifier, a teacher and a student from another: model, loss, and what they read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusOptions
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.runtime.device import Compute
from train.data.image_tokens import ImageTokens
from train.data.privileged import Privileged
from train.data.teacher_outputs import TeacherOutputs
from train.data.text_model import TextModel, keep_layers, load_text_classifier
from train.data.training_data import Batch, teacher_name
from train.learning.loop import Loss
from train.learning.losses import Distillation, Taught, distillation, distillation_loss
from train.learning.networks import FusionHead, ImageClassifier, Output, Student, TextClassifier, text_dropout, text_width
from train.models.inputs import Sources
from train.models.teachers import FoundTeacher, build_teacher, find_teacher, outputs_for
from train.options.training import (
    BaselineOptions,
    DistillationOptions,
    ImagesOptions,
    StudentOptions,
    TeacherOptions,
    TokensOptions,
    TrainOptions,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tells one kind of model from another.

    Attributes:
        command: baseline, images, teacher or student.
        corpus: what it learns and is scored on.
        fingerprint: what decides the result beside flags, corpus and text model.
        build: makes the model from the text model; new weights follow the seed.
        loss: of an output and its batch.
        reads_text: whether texts are tokenised and fed.
        image_tokens: the tokens it reads, or None.
        privileged: whose of them it is shown.
        extra: texts without labels that it learns from too, or None.
        teachers: the outputs it is distilled from, for the corpus and behind it for ``extra``.
        taught_by: name, privileged information and share of each teacher, for the record.
        outputs_dtype: how a teacher's embeddings are kept.
        licenses: of what the model comes from beside corpus and text model.
        notice: what a reader of the figures must know, or None.
    """

    command: str
    corpus: Corpus
    fingerprint: dict[str, Any]
    build: Callable[[TextModel], nn.Module]
    loss: Loss
    reads_text: bool = True
    image_tokens: ImageTokens | None = None
    privileged: Privileged = "images"
    extra: Corpus | None = None
    teachers: tuple[TeacherOutputs, ...] = ()
    taught_by: tuple[dict[str, Any], ...] = ()
    outputs_dtype: Literal["float32", "float16"] = "float32"
    licenses: tuple[str, ...] = ()
    notice: str | None = None


def baseline_recipe(options: BaselineOptions, sources: Sources) -> Recipe:
    """Fine-tune the text model alone."""
    corpus = sources.corpus(options)
    return Recipe(
        command="baseline",
        corpus=corpus,
        fingerprint={},
        build=lambda text_model: TextClassifier(load_text_classifier(text_model, corpus)),
        loss=cross_entropy,
    )


def images_recipe(options: ImagesOptions, sources: Sources) -> Recipe:
    """Train the fusion head on image tokens alone."""
    corpus = sources.corpus(options)
    tokens = _open_tokens(options, sources, corpus)

    def build(text_model: TextModel) -> nn.Module:
        width = text_width(text_model.config, "--text-model")
        classes, dropout = len(corpus.label_names), text_dropout(text_model.config)
        return ImageClassifier(FusionHead(text_width=width, image_width=tokens.width, classes=classes, reads_text=False, dropout=dropout))

    return Recipe(command="images", corpus=corpus, build=build, loss=cross_entropy, reads_text=False, **_of_tokens(tokens))


def teacher_recipe(options: TeacherOptions, sources: Sources) -> Recipe:
    """Train the multimodal teacher, or one of its controls."""
    corpus = sources.corpus(options)
    seen: dict[str, Any] = {"fingerprint": {"image_tokens": None, "tokens": {}}}
    width: int | None = None
    if options.privileged != "none":
        tokens = _open_tokens(options, sources, corpus)
        seen, width = _of_tokens(tokens), tokens.width
    elif options.image_tokens is not None or options.tokens_on != "auto":
        say("warning: --image-tokens and --tokens-on have no effect with --privileged none")
    return Recipe(
        command="teacher",
        corpus=corpus,
        build=lambda text_model: build_teacher(text_model, len(corpus.label_names), width),
        loss=cross_entropy,
        privileged=options.privileged,
        outputs_dtype=options.outputs_dtype,
        **{**seen, "fingerprint": {**seen["fingerprint"], "privileged": options.privileged}},
    )


def student_recipe(options: StudentOptions, sources: Sources, compute: Compute) -> Recipe:
    """Distil a text-only student from teachers' cached outputs; neither images nor teachers are touched, but once for texts without
    labels that a teacher has not read yet."""
    weights = distillation_of(options)
    corpus = sources.corpus(options)
    extra = None if options.unlabelled is None else unlabelled_texts(options.unlabelled, options, corpus)
    found = [find_teacher(options, name) for name in options.teachers]
    _warn_of_other_text_models(options, found)
    outputs = tuple(outputs_for(options, teacher, corpus, extra, compute) for teacher in found)
    shares = options.shares

    def build(text_model: TextModel) -> nn.Module:
        model = load_text_classifier(text_model, corpus)
        if options.student_layers is not None:
            keep_layers(model, options.student_layers)
        widths = [one.embeddings.shape[1] for one in outputs] if weights.beta else []
        return Student(TextClassifier(model), widths)

    def loss(output: Output, batch: Batch) -> torch.Tensor:
        return distillation_loss(weights, output.logits, _taught(output, batch, shares), batch["labels"])

    return Recipe(
        command="student",
        corpus=corpus,
        fingerprint={
            "teachers": [one.teacher for one in outputs],
            "teachers_embeddings": [str(one.embeddings.dtype).removeprefix("torch.") for one in outputs],
            "shares": list(shares),
            "distillation": vars(weights),
            "layers": options.student_layers,
            "unlabelled": None if extra is None else extra.fingerprint(),
        },
        build=build,
        loss=loss,
        extra=extra,
        teachers=outputs,
        taught_by=tuple(
            {"name": teacher.folder.name, "privileged": teacher.made_from["privileged"], "share": round(share, 6)}
            for teacher, share in zip(found, shares, strict=True)
        ),
        licenses=tuple(dict.fromkeys(line for teacher in found for line in teacher.metrics["licenses"])),
        notice=next((teacher.metrics["notice"] for teacher in found if teacher.metrics["notice"]), None),
    )


def recipe_of(options: TrainOptions, sources: Sources, compute: Compute) -> Recipe:
    """Return the recipe of the model that the options are for."""
    match options:
        case BaselineOptions():
            return baseline_recipe(options, sources)
        case ImagesOptions():
            return images_recipe(options, sources)
        case TeacherOptions():
            return teacher_recipe(options, sources)
        case StudentOptions():
            return student_recipe(options, sources, compute)
    raise AssertionError(f"{type(options).__name__} are no options of a model")


def cross_entropy(output: Output, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy with the labels, a scalar in float32."""
    return F.cross_entropy(output.logits.float(), batch["labels"])


def _taught(output: Output, batch: Batch, shares: tuple[float, ...]) -> list[Taught]:
    """Return each teacher's word on a batch; without a distance of embeddings there are no embeddings in its width."""
    taught = []
    for n, share in enumerate(shares):
        embeddings_BD = batch[teacher_name("teacher_embeddings", n)]
        taught.append(
            Taught(
                weight=share,
                logits_BK=batch[teacher_name("teacher_logits", n)],
                embeddings_BD=embeddings_BD,
                student_BD=output.projected[n] if output.projected else embeddings_BD,
            )
        )
    return taught


def distillation_of(options: DistillationOptions) -> Distillation:
    """Return the weights of a student's loss; those that will have no effect are warned of.

    Raises:
        InputError: every weight is zero.
    """
    weights = distillation(
        options.kd_preset,
        hard=options.hard,
        alpha=options.alpha,
        beta=options.beta,
        temperature=options.temperature,
        embedding_loss=options.embedding_loss,
    )
    if options.temperature is not None and weights.alpha == 0:
        say("warning: --temperature has no effect with --alpha 0")
    if options.embedding_loss != "mse" and weights.beta == 0:
        say(f"warning: --embedding-loss {options.embedding_loss} has no effect without --beta")
    return weights


def unlabelled_texts(path: Path, options: CorpusOptions, corpus: Corpus) -> Corpus:
    """Return the texts without labels of a file, to be read as those of the corpus; those that a model is scored on are warned of.

    Raises:
        InputError: as ``load_unlabelled`` does.
    """
    extra = replace(load_unlabelled(path, options), separator=corpus.separator)
    held_out = {example.text for example in corpus.examples if example.split != "train"}
    if seen := sum(example.text in held_out for example in extra.examples):
        say(f"warning: {seen:,} texts of {path} are validation or test texts, which the student will be scored on")
    return extra


def _warn_of_other_text_models(options: StudentOptions, teachers: list[FoundTeacher]) -> None:
    for teacher in teachers:
        theirs = teacher.metrics["config"]["text_model"]
        if Path(theirs).name != Path(options.text_model).name:
            say(f"warning: {teacher.folder.name} reads {theirs}, the student {options.text_model}; the paper uses one for both")


def _open_tokens(options: TokensOptions, sources: Sources, corpus: Corpus) -> ImageTokens:
    tokens = sources.tokens(options.run / "tokens", options.image_tokens, corpus)
    if flagged := len(tokens.reader.flagged):
        say(f"warning: {flagged} drawings failed and are read as blank; python -m featurize info lists them")
    return tokens


def _of_tokens(tokens: ImageTokens) -> dict[str, Any]:
    spec = tokens.reader.spec
    return {
        "fingerprint": {"image_tokens": spec.name, "tokens": tokens.fingerprint()},
        "image_tokens": tokens,
        "licenses": (spec.license,),
        "notice": spec.notice,
    }
